"""Instruction tuning of a causal model: conversations in its chat template, of which only the answers are learnt."""

from collections import Counter
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from fmray.core.errors import ArtifactError, DataError
from fmray.data.sources import Document, Source
from fmray.data.text import normalise
from fmray.model.checkpoint import Head
from fmray.tasks import Predictions, Split, TaskData
from fmray.tasks.classifier import Rows
from fmray.tasks.generative import Generative, causal_rows
from fmray.tasks.question_answering import squad_scores
from fmray.tasks.rouge import rouge
from fmray.tasks.sourced import Example, is_blank

ROLES = ("system", "user", "assistant")
TEMPLATES = {
    "plain": "{{ bos_token }}{% for m in messages %}{{ m.role + '\\n' + m.content }}{{ eos_token if m.role == 'assistant' }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
}
"""Chat templates by name, for tokenizers without one of their own."""

Message = dict[str, str]


class InstructionTuning(Generative):
    """What an assistant says, given the conversation before it. Every answer of a conversation is learnt; the last one is judged.

    Attributes:
        prompt, response: how a document becomes a question and its answer: texts in which `{column}` stands for a field.
        messages: the field that holds a whole conversation instead, a list of `{role, content}` that ends with the assistant.
        system: what the system says first.
        chat_template: Jinja, or `plain`; needed where the tokenizer has none. It is saved with the model.
    """

    type: Literal["instruction_tuning"] = "instruction_tuning"
    head: ClassVar[Head] = "causal_lm"
    metric_names: ClassVar[tuple[str, ...]] = ("exact_match", "f1", "rouge_l")
    main_metric: ClassVar[str] = "f1"
    per_example: ClassVar[tuple[str, ...]] = metric_names
    lower_is_better: ClassVar[tuple[str, ...]] = ("perplexity",)
    name: str = Field("instructions", pattern=r"^[a-z0-9][a-z0-9_-]*$")
    prompt: str = "{text}"
    response: str = "{response}"
    messages: str | None = None
    system: str | None = None
    chat_template: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _columns_are_named(self) -> Self:
        for field in ("prompt", "response"):
            try:
                named = fields_of(getattr(self, field))
            except ValueError as error:
                raise ValueError(f"{field}: {error}; write a brace itself as two") from None
            if not named or not all(name.replace("_", "a").isalnum() for name in named):
                raise ValueError(f"{field}: name a column in braces, as in '{{text}}'")
        return self

    def examples(self, source: Source) -> list[Example]:
        """See `Sourced`: the conversation before the last answer, and that answer."""
        found: list[Example] = []
        blank: Counter[str] = Counter()
        for document in source.iter_documents():
            turns = self._asked(document, blank) if self.messages is None else self._held(document)
            told = ([{"role": "system", "content": self.system}] if self.system else []) + list(turns)
            before, last = told[:-1], told[-1]
            found.append(Example(before, last["content"], "\n".join(turn["content"] for turn in before)))
        self.refuse_blanks(len(found), blank)
        return found

    def _asked(self, document: Document, blank: Counter[str]) -> list[Message]:
        turns = []
        for role, text in (("user", self.prompt), ("assistant", self.response)):
            names = fields_of(text)
            values = dict(zip(names, self.columns(document, names), strict=True))
            blank.update(name for name, value in values.items() if is_blank(value))
            turns.append({"role": role, "content": normalise(text.format(**values)).strip()})
        return turns

    def _held(self, document: Document) -> list[Message]:
        (turns,) = self.columns(document, [str(self.messages)])
        where = f"{self.where}, {document['id']}"
        sound = isinstance(turns, list) and all(
            isinstance(turn, Mapping) and turn.get("role") in ROLES and isinstance(turn.get("content"), str) and turn["content"].strip() for turn in turns
        )
        if not sound:
            raise DataError(f"the column '{self.messages}' holds no list of turns with a role ({', '.join(ROLES)}) and a content", where=where)
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            raise DataError("the conversation does not end with an answer of the assistant", where=where)
        if turns[0]["role"] == "assistant":
            raise DataError("the conversation begins with the assistant, who has nothing to answer yet", where=where, todo="drop that turn, or put what was asked before it")
        return [{"role": turn["role"], "content": normalise(turn["content"]).strip()} for turn in turns]

    def encode(self, tokenizer: Any, split: Split, max_length: int, n_labels: int) -> Rows:
        """See `Task` and `causal_rows`. A token that reaches into an answer belongs to it.

        Raises:
            ArtifactError: the tokenizer has no chat template, or one by which answers cannot be told from what stands before them.
            DataError: the chat template refuses a conversation.
        """
        if self.chat_template is not None:
            tokenizer.chat_template = TEMPLATES.get(self.chat_template, self.chat_template)
        if tokenizer.chat_template is None:
            raise ArtifactError("its tokenizer has no chat template", where=self.where, todo="set task.chat_template: Jinja, or plain")
        if not tokenizer.is_fast:
            raise ArtifactError("its tokenizer tells no offsets, so answers cannot be told from prompts", where=self.where, todo="give a model with a tokenizer.json")
        from jinja2 import TemplateError

        answered = []
        for before, answer in zip(split.inputs, split.targets, strict=True):
            try:
                text, spans = self._rendered(tokenizer, [*before, {"role": "assistant", "content": answer}])
            except (TemplateError, ValueError) as error:
                roles = ", ".join(turn["role"] for turn in before)
                raise DataError(
                    f"the chat template refuses a conversation of {roles}, assistant ({type(error).__name__}: {error})", where=self.where,
                    todo="mend its turns, or set task.chat_template",
                ) from None  # fmt: skip
            encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            offsets = encoded["offset_mapping"]
            learnt = [any(start < last and end > first for first, last in spans) for start, end in offsets]
            answered.append((encoded["input_ids"], learnt, sum(end <= spans[-1][0] for _, end in offsets)))
        return causal_rows(answered, max_length, tokenizer.pad_token_id, self.where)

    def _rendered(self, tokenizer: Any, turns: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """A conversation as the model reads it, and from where to where its answers and their ends stand."""
        text = tokenizer.apply_chat_template(list(turns), tokenize=False)
        spans = []
        for number, turn in enumerate(turns):
            if turn["role"] == "assistant":
                asked = tokenizer.apply_chat_template(list(turns[:number]), tokenize=False, add_generation_prompt=True)
                told = tokenizer.apply_chat_template(list(turns[: number + 1]), tokenize=False)
                if not (text.startswith(told) and told.startswith(asked)):
                    raise ArtifactError(
                        "its chat template does not begin a longer conversation as it renders a shorter one, so answers cannot be told from prompts",
                        where=self.where, todo="set task.chat_template",
                    )  # fmt: skip
                # Many templates end a line behind the end token. The model writes no further than that token, so the line's end is no answer.
                spans.append((len(asked), len(told.rstrip("\n"))))
        return text, spans

    def scores(self, said: str, right: Sequence[str]) -> Mapping[str, float]:
        """Exact match and F1 of words by the rules of SQuAD, and ROUGE-L."""
        exact, f1 = squad_scores(said, right, self.by_character)
        return {"exact_match": exact, "f1": f1, "rouge_l": rouge(said, tuple(right), self.by_character)[0]}

    def baselines(self, data: TaskData, seed: int) -> dict[str, tuple[Predictions, str]]:
        """The most frequent answer of the training split, for every example."""
        counts = Counter(data.splits["train"].targets)
        most = min(counts, key=lambda answer: (-counts[answer], answer))
        return {"majority": (Predictions([most] * len(data.splits["test"])), "the most frequent training answer for every example")}


def fields_of(text: str) -> list[str]:
    """The names in braces in a text, in order.

    Raises:
        ValueError: a brace is not closed.
    """
    return [name for _, name, _, _ in Formatter().parse(text) if name is not None]
