"""Several sources together, in shares of their own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fmray.core.config import Config
from fmray.data.sources import Counts, Document, Partition, Share, Source

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Weighted(Config):
    """One source of a mixture.

    Attributes:
        weight: its part of the train split's tokens, in proportion to the other weights; None (then of all): as much as there is.
    """

    source: Source
    weight: float | None = Field(None, gt=0, allow_inf_nan=False)


class Mixture(Source):
    """Sources by name, with weights for all of them or for none. They are of one modality, and none is a mixture itself.

    What an unreadable input does is said by each source for itself.
    """

    type: Literal["mixture"] = "mixture"

    sources: dict[Name, Weighted] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        without = [name for name, part in self.sources.items() if part.weight is None]
        if without and len(without) < len(self.sources):
            raise ValueError(f"sources: {', '.join(without)} have no weight and others have; give all or none")
        nested = [name for name, part in self.sources.items() if isinstance(part.source, Mixture)]
        if nested:
            raise ValueError(f"sources.{nested[0]} is a mixture itself; list its sources here")
        modalities = {name: part.source.modality for name, part in self.sources.items()}
        if len(set(modalities.values())) > 1:
            raise ValueError(f"sources of different modalities: {', '.join(f'{n} {m}' for n, m in modalities.items())}")
        return self

    @property
    def modality(self) -> Literal["text", "image"]:  # type: ignore[override]
        """That of all its sources."""
        return next(iter(self.sources.values())).source.modality

    def identity(self) -> dict[str, Any]:
        """The weights in proportion, and each source's own identity."""
        total = sum(part.weight or 0.0 for part in self.sources.values())
        parts = {
            name: {"weight": part.weight and part.weight / total, "source": part.source.identity()} for name, part in sorted(self.sources.items())
        }
        return {"type": self.type, "sources": parts}

    def mixture(self) -> Mapping[str, Share]:
        """The sources by name, sorted, with weights that add up to 1, or with None."""
        total = sum(part.weight or 0.0 for part in self.sources.values())
        return {name: Share(part.source, part.weight and part.weight / total) for name, part in sorted(self.sources.items())}

    def partitions(self) -> Sequence[Partition]:
        """Those of all sources, whose documents bear `source` and have their ids under its name."""
        return [Named(name, part) for name, share in self.mixture().items() for part in share.source.partitions()]


@dataclass(frozen=True)
class Named:
    """A partition of one source of the mixture."""

    name: str
    partition: Partition

    def read(self, counts: Counts) -> Iterator[Document]:
        """The partition's documents, told from those of other sources."""
        for document in self.partition.read(counts):
            yield {**document, "id": f"{self.name}/{document['id']}", "source": self.name}
