"""The prepare stage: a corpus becomes a TokenDataset."""

import shutil
from pathlib import Path

from pydantic import Field, model_validator

from fmray.cluster import connect
from fmray.core.config import Config
from fmray.core.errors import ConfigError
from fmray.core.stage import Out, stage
from fmray.data.canaries import Canaries
from fmray.data.corpus_bias import CorpusBias
from fmray.data.dataset import SPLITS, TOKENIZER, TokenDataset
from fmray.data.filters import Filter
from fmray.data.images import ImageRows, prepare_images
from fmray.data.near_duplicates import NearDuplicates
from fmray.data.packings import Packing
from fmray.data.packings.concatenate import Concatenate
from fmray.data.passes import Passes, one_pass, two_passes
from fmray.data.sources import Source
from fmray.data.summary import finish
from fmray.data.tokenizers import TokenizerModel
from fmray.data.tokenizers.bpe import Bpe

SMALLEST_VOCABULARY = 8


class Deduplicate(Config):
    """What is removed because it stands there already, over the whole corpus, after the filters.

    Attributes:
        exact: documents whose normalised text is the same; the one read first stays.
        near: documents that are nearly the same, by MinHash; null: they stay.
    """

    exact: bool = True
    near: NearDuplicates | None = None


class PrepareConfig(Config):
    """What to prepare, from where and how.

    Text needs `seq_len` and `vocab_size`, images need `image`. The corpus is read once where nothing needs the whole of it
    first: with a tokenizer that is not trained, `deduplicate: {exact: false}`, no weights, no canaries and no correction of bias. Rows then
    stand in the order of the files. Else it is read, laid down in shuffled order, and taken up from there.

    Attributes:
        vocab_size: tokens of the vocabulary, special tokens included; the size of the loaded one with `{type: pretrained}`.
        tokenizer_sample_mb: how much text (millions of characters) a tokenizer is trained on: distinct documents of the train
            split, drawn by hash from the whole corpus.
        filters: applied in their order to every document, before duplicates are removed.
        packing: how documents share rows.
        bias: measures how the corpus speaks of groups, and corrects it if told to.
        max_repeats: how often at most a document may stand in the train split for the mixture's shares to come out.
        validation_fraction: the share of documents held out, drawn by hash of their text.
        shard_mb: text for one shard, in millions of bytes; by default a 64th of the corpus, at least 4 and at most 256. One
            worker holds a few times as much. Without effect where the corpus is read once.
        seed: shuffles the documents and draws the split.
    """

    source: Source
    seq_len: int | None = Field(None, ge=8, le=1_048_576)
    vocab_size: int | None = Field(None, ge=SMALLEST_VOCABULARY, le=2_000_000)
    tokenizer: TokenizerModel = Bpe()
    tokenizer_sample_mb: float = Field(64.0, gt=0)
    filters: tuple[Filter, ...] = ()
    deduplicate: Deduplicate = Deduplicate()
    packing: Packing = Concatenate()
    image: ImageRows | None = None
    bias: CorpusBias | None = None
    canaries: Canaries | None = None
    max_repeats: int = Field(4, ge=1, le=64)
    validation_fraction: float = Field(0.05, gt=0, lt=1)
    shard_mb: float | None = Field(None, gt=0)
    seed: int = 0

    @model_validator(mode="after")
    def _fits_the_modality(self) -> "PrepareConfig":
        if self.source.modality == "image":
            for name in ("seq_len", "vocab_size", "bias", "canaries"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is for text, and the source holds images")
            if self.filters or self.deduplicate.near:
                raise ValueError("filters and deduplicate.near are for text, and the source holds images")
            if self.image is None:
                raise ValueError("the source holds images: give their rows, such as image: {height: 28, width: 28, channels: 1}")
        elif self.image is not None:
            raise ValueError("image is for sources of images, and the source holds text")
        elif self.seq_len is None or self.vocab_size is None:
            raise ValueError("text needs seq_len and vocab_size")
        elif self.vocab_size < self.tokenizer.smallest:
            raise ValueError(f"vocab_size is {self.vocab_size}, and a tokenizer of this type has at least {self.tokenizer.smallest} tokens")
        strangers = [name for rule in self.filters for name in rule.sources if name not in self.source.mixture()]
        if strangers:
            raise ValueError(f"filters name the source '{strangers[0]}'; the sources are {', '.join(self.source.mixture())}")
        return self

    def passes(self) -> Passes:
        """The parts of this config that the passes over text read."""
        if self.seq_len is None or self.vocab_size is None:
            raise ConfigError("text needs seq_len and vocab_size")
        return Passes(
            seq_len=self.seq_len, vocab_size=self.vocab_size, tokenizer=self.tokenizer, tokenizer_sample_mb=self.tokenizer_sample_mb,
            filters=self.filters, exact=self.deduplicate.exact, near=self.deduplicate.near, packing=self.packing, bias=self.bias,
            canaries=self.canaries, max_repeats=self.max_repeats, validation_fraction=self.validation_fraction,
            shard_mb=self.shard_mb, seed=self.seed, shares=dict(self.source.mixture()),
        )  # fmt: skip


def plan(config: PrepareConfig, upstream: dict[str, Config]) -> dict[str, str]:
    """What `fmray check` can say before anything is read."""
    lines = {"rows, tokens": "unknown until prepare has run"}
    shares = config.source.mixture()
    if len(shares) > 1:
        lines["mixture"] = ", ".join(f"{name}: {'all' if s.weight is None else f'{s.weight:g}'}" for name, s in shares.items())
    if config.filters:
        lines["filters"] = ", ".join(str(f.type) for f in config.filters)  # type: ignore[attr-defined]
    if config.image is not None:
        return lines | {"row": f"an image of {config.image.height} x {config.image.width}, {config.image.channels} channel(s)"}
    passes = config.passes()
    kind = config.tokenizer.type  # type: ignore[attr-defined]
    made = f"{kind} trained on up to {config.tokenizer_sample_mb:g} MB" if config.tokenizer.is_trained else f"{kind}, loaded"
    lines |= {
        "vocabulary": f"{passes.vocab_size:,} ({made})",
        "row": f"{passes.seq_len:,} positions, {config.packing.type}",  # type: ignore[attr-defined]
        "corpus": "read once, straight into shards" if passes.is_one_pass else "read, laid down shuffled, taken up by ranges",
    }
    if config.canaries:
        lines["canaries"] = (
            f"{config.canaries.per_level} secrets at each of the levels {', '.join(map(str, config.canaries.levels))}"
        )
    return lines


@stage("prepare", version=2, plan=plan)
def prepare(config: PrepareConfig, out: Out) -> TokenDataset:
    """Reads, normalises, cleans, removes duplicates, makes the tokenizer, tokenizes, packs and writes shards.

    The result depends on the texts and the config alone, not on CPUs, and but for a single pass not on files' order and
    partitions either. Killed, it goes on behind the last finished part of the corpus, and ends in the same bytes.

    Raises:
        DataError: the corpus is unreadable or empty, too small for the vocabulary, or leaves a split without a row.
        ConfigError: a loaded tokenizer has another size than `vocab_size`.
    """
    connect()
    _folders(out)
    if config.image is not None:
        payload = prepare_images(config, out)
    else:
        passes = config.passes()
        made = one_pass(passes, out) if passes.is_one_pass else two_passes(passes, out)
        payload = finish(passes, made, config.source.identity(), out)
    # At once, so that no run ever takes up half of what is being removed.
    work = out.path / "work"
    work.rename(_leftover(out))
    shutil.rmtree(_leftover(out))
    return payload


def _leftover(out: Out) -> Path:
    return out.path / ".work-removed"


def _folders(out: Out) -> None:
    """The folders of a dataset; what an interrupted attempt left in them is used again."""
    shutil.rmtree(_leftover(out), ignore_errors=True)
    for folder in (*(out.path / split for split in SPLITS), out.work / "documents", out.work / "signatures", out.work / "hashes"):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out.path / f".{TOKENIZER}", ignore_errors=True)
