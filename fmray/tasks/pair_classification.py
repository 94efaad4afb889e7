"""Pair classification: one label for two texts, as in natural language inference and paraphrase."""

from typing import ClassVar, Literal

from pydantic import Field

from fmray.tasks.text_classification import TextClassification


class PairClassification(TextClassification):
    """How two texts stand to each other. The model reads both at once, apart as its tokenizer sets pairs apart.

    Attributes:
        text, second: the fields of a document that hold the first and the second text. A source names one of its columns its `text`:
            with `source.text: premise` and `second: hypothesis` both are named.
    """

    type: Literal["pair_classification"] = "pair_classification"  # type: ignore[assignment]
    name: str = Field("pairs", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    second: str = "sentence2"
    label: str = "gold_label"
    classes: int | tuple[str, ...] | None = 3
    main_metric: ClassVar[str] = "accuracy"

    @property
    def text_columns(self) -> tuple[str, ...]:
        """Both texts."""
        return (self.text, self.second)
