"""The stage import: any Hugging Face directory becomes a Checkpoint, so that a model from outside enters by the same door."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmray.core.artifact import Artifact, sha256_file
from fmray.core.config import Config
from fmray.core.errors import ArtifactError, ConfigError
from fmray.core.stage import Out, stage
from fmray.model.adapter import (
    ADAPTER,
    CONFIG,
    WEIGHTS,
    Adapter,
    adapter_digest,
    is_adapter,
    merge,
    read_adapter,
    require_fit,
)
from fmray.model.checkpoint import Checkpoint, Head, count_weights, hf_digest, hf_files, read_hf_config, tokenizer_files
from fmray.model.language_model import LanguageModel

# What the name of a model's class ends in, in the order in which it is asked: a bare `BertModel` is an encoder without a head.
HEADS: dict[str, Head] = {
    "ForCausalLM": "causal_lm", "LMHeadModel": "causal_lm", "ForMaskedLM": "masked_lm", "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification", "ForQuestionAnswering": "question_answering", "Model": "encoder",
}  # fmt: skip
# Encoder-decoders of text: other types' `ForConditionalGeneration` read sound or images as well.
WRITERS = ("t5", "mt5", "umt5", "bart", "mbart")
IMAGES: dict[str, Head] = {"ViTMAEForPreTraining": "masked_image"}
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
LABELLED = ("sequence_classification", "token_classification")


class ImportConfig(Config):
    """Where the model lies: a directory that `save_pretrained` wrote, with safetensors weights and its tokenizer (or image processor), or one
    that peft wrote, with a low-rank adapter on the input `base`."""

    path: str

    @property
    def folder(self) -> Path:
        """The absolute directory."""
        return Path(self.path).expanduser().absolute()

    def identity(self) -> dict[str, Any]:
        """The files by name and sha256, wherever they lie.

        Raises:
            ArtifactError: the directory is no checkpoint and no adapter.
        """
        if is_adapter(self.folder):
            read_adapter(self.folder)
            names = [CONFIG, WEIGHTS]
        else:
            check_directory(self.folder)
            names = hf_files(self.folder)
        return {"files": {name: sha256_file(self.folder / name) for name in names}}


def plan(config: ImportConfig, upstream: Mapping[str, Config]) -> dict[str, str]:
    """What `fmray check` says: the model or the adapter that lies there."""
    if is_adapter(config.folder):
        return {"adapter": f"{len(read_adapter(config.folder).layers)} layers from {config.path}"}
    hf_config = check_directory(config.folder)
    return {"model": f"{hf_config['architectures'][0]} from {config.path}", "parameters": f"{count_weights(config.folder):,}"}


@stage("import", version=1, plan=plan)
def import_(config: ImportConfig, out: Out, base: Artifact[Checkpoint] | None = None) -> Checkpoint:
    """Copies the Hugging Face files; an adapter's beside the sum of its base and it. No code of the model's is run and no pickle is read.

    Raises:
        ArtifactError: the directory is not a checkpoint of a head that fmray knows, or an adapter that does not fit the base.
        ConfigError: an adapter without a base, or a base without an adapter.
    """
    if is_adapter(config.folder) != (base is not None):
        what = "is a model of its own, and only an adapter has a base" if base is not None else "is an adapter, and there is no base"
        raise ConfigError(what, where=str(config.folder), todo="give the input `base`, a checkpoint, to adapters alone")
    if base is not None:
        return _sum(read_adapter(config.folder), base, out)
    hf_config = check_directory(config.folder)
    for number, name in enumerate(names := hf_files(config.folder)):
        out.progress(name, done=number, total=len(names))
        shutil.copyfile(config.folder / name, out.path / name)
    labels = hf_config.get("id2label") or {}
    head = _head(hf_config, config.folder)
    return Checkpoint(
        head=head,
        architecture=str(hf_config["model_type"]),
        digest=hf_digest(out.path),
        n_params=count_weights(out.path),
        vocab_size=int(hf_config.get("vocab_size") or 0),
        labels=tuple(labels[key] for key in sorted(labels, key=int)) if head in LABELLED else (),
    )


def _sum(adapter: Adapter, base: Artifact[Checkpoint], out: Out) -> Checkpoint:
    """The base with the adapter merged into its weights, so that it is judged as any model, and the adapter beside it."""
    if base.payload.head != "causal_lm":
        raise ArtifactError(f"has a {base.payload.head} head, and adapters are imported on causal models", where=str(base.path))
    require_fit(adapter, base.path)
    opened = LanguageModel.load(base.path, "cpu")
    merge(adapter, opened.model)
    opened.model.save_pretrained(out.path)
    for name in tokenizer_files(base.path):
        shutil.copyfile(base.path / name, out.path / name)
    (out.path / ADAPTER).mkdir(exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(adapter.folder / name, out.path / ADAPTER / name)
    digest, kept = hf_digest(out.path), adapter_digest(out.path / ADAPTER)
    return Checkpoint(
        head=base.payload.head, architecture=base.payload.architecture, digest=digest, n_params=count_weights(out.path),
        vocab_size=base.payload.vocab_size, parent=base.fingerprint, adapter_digest=kept,
    )  # fmt: skip


def check_directory(root: Path) -> Mapping[str, Any]:
    """The `config.json` of a directory that can be imported.

    Raises:
        ArtifactError: config, weights, a shard of them or the tokenizer (of images: the processor) is missing or damaged, or the head is
            of another kind.
    """
    hf_config = read_hf_config(root)
    index = root / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ArtifactError(f"is damaged ({error})", where=str(index), todo="copy the checkpoint again") from None
        missing = sorted(name for name in shards if not (root / name).is_file())
        if missing:
            raise ArtifactError(f"lacks {len(missing)} of its {len(shards)} weight files, {missing[0]} first", where=str(root), todo="copy the checkpoint again")
    count_weights(root)
    if _head(hf_config, root) == "masked_image":
        _check_pixels(root)
        return hf_config
    if not any((root / name).is_file() for name in TOKENIZERS):
        raise ArtifactError("has no tokenizer beside its weights", where=str(root), todo="save the tokenizer into the same directory")
    if not isinstance(hf_config.get("vocab_size"), int):
        raise ArtifactError("has no vocab_size in its config.json", where=str(root))
    return hf_config


def _check_pixels(root: Path) -> None:
    """Refuses a model of images that reads other pixels than fmray gives: from -1 to 1."""
    try:
        processor = json.loads((root / "preprocessor_config.json").read_text(encoding="utf-8"))
        mean_and_std = [value for name in ("image_mean", "image_std") for value in processor[name]]
    except FileNotFoundError:
        raise ArtifactError("has no preprocessor_config.json beside its weights", where=str(root), todo="save the image processor into the same directory") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"has no readable mean and standard deviation of pixels in preprocessor_config.json ({type(error).__name__})", where=str(root)) from None
    if any(value != 0.5 for value in mean_and_std):
        raise ArtifactError(f"reads pixels with image_mean {processor['image_mean']} and image_std {processor['image_std']}, and fmray gives them from -1 to 1 (0.5 and 0.5)", where=str(root))


def _head(hf_config: Mapping[str, Any], root: Path) -> Head:
    named = (hf_config.get("architectures") or ["a model without `architectures`"])[0]
    if named in IMAGES:
        return IMAGES[named]
    if hf_config.get("is_encoder_decoder"):
        # The first T5s are called T5WithLMHeadModel.
        if hf_config.get("model_type") in WRITERS and named.endswith(("ForConditionalGeneration", "WithLMHeadModel")):
            return "seq2seq_lm"
        raise ArtifactError(
            f"holds {named}, and of encoder-decoders only those of text with their language model are known: {', '.join(WRITERS)}", where=str(root),
            todo="save it with AutoModelForSeq2SeqLM",
        )  # fmt: skip
    for suffix, head in HEADS.items():
        if named.endswith(suffix):
            return head
    known = ", ".join(dict.fromkeys([*HEADS.values(), "seq2seq_lm", *IMAGES.values()]))
    todo = "save it with AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification or AutoModel"
    raise ArtifactError(f"holds {named}, which has none of the heads {known}", where=str(root), todo=todo)
