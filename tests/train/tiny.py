"""A tiny decoder with a trained tokenizer as an artifact, labelled texts that it can learn, and outs to run stages with."""

import csv
import random
from pathlib import Path
from typing import Any

import fmray  # noqa: F401  registers the stages
from fmray.core.artifact import Artifact, Payload, Provenance, Record, fingerprint, load, write_json
from fmray.core.config import load_config
from fmray.core.report import Decision
from fmray.core.stage import STAGES, Job, produce
from fmray.data.tokenizers.bpe import Bpe
from fmray.model.architectures.decoder import Decoder
from fmray.model.architectures.encoder import Encoder
from fmray.model.architectures.t5 import T5
from fmray.model.checkpoint import Checkpoint, hf_digest
from fmray.train.tuning import Epochs, Tuned, TuningConfig, tune_classifier

WORDS = {
    "weather": ["rain", "snow", "wind", "storm", "cloud", "sunshine", "thunder", "frost", "humid", "breeze"],
    "cooking": ["butter", "onion", "simmer", "roast", "flour", "garlic", "oven", "whisk", "pepper", "broth"],
    "sailing": ["anchor", "mast", "rudder", "harbour", "sail", "tide", "deck", "rope", "captain", "hull"],
}
PLAIN = ["the", "a", "of", "it", "was", "and", "then", "we", "saw", "very", "much", "little", "again", "near", "over"]


def labelled(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """`n` distinct texts of each label: a few of its words among plain ones."""
    draw = random.Random(seed)
    rows: dict[str, str] = {}
    for label, words in WORDS.items():
        while sum(v == label for v in rows.values()) < n:
            length = draw.randint(6, 14)
            rows[" ".join(draw.choice(words) if draw.random() < 0.35 else draw.choice(PLAIN) for _ in range(length)) + f" {draw.choice(words)}"] = label
    return list(rows.items())


def write_csv(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    """A CSV file of texts and labels."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def task(path: Path, **changes: Any) -> dict[str, Any]:
    """The config of a text classification over a CSV file."""
    return {"type": "text_classification", "name": "topics", "source": {"type": "csv", "path": str(path)}, "label": "label", "classes": 3} | changes


def config_of(path: Path, **changes: Any) -> TuningConfig:
    """The config of a fine-tuning on that file, three epochs if not told otherwise."""
    return load_config(TuningConfig, {"task": task(path), "epochs": 3, "optim": {"lr": 2e-3, "warmup_steps": 2}} | changes)


def tune(config: TuningConfig, start: Path, *, keep: Epochs | None = None, stop_after: int | None = None, **more: Any) -> Tuned:
    """The model after its last epoch, or after so many; its epochs go to `keep`."""
    ended: list[Tuned] = []

    def on_epoch(tuned: Tuned) -> bool:
        ended.append(tuned)
        if keep is not None:
            keep.add(tuned)
        return tuned.progress.epoch != stop_after

    tune_classifier(config, start, config.task.load(), on_epoch=on_epoch, **more)
    return ended[-1]


def save_decoder(folder: Path, vocab_size: int = 400, max_positions: int = 64) -> None:
    """A random Llama of two thin layers and a byte-level BPE tokenizer, saved as Hugging Face files."""
    from transformers import AutoModelForCausalLM

    shape = Decoder(num_hidden_layers=2, hidden_size=48, num_attention_heads=2, intermediate_size=96)
    _save(folder, AutoModelForCausalLM, shape.hf_config(vocab_size, max_positions), vocab_size, max_positions)


def save_encoder(folder: Path, vocab_size: int = 400, max_positions: int = 64) -> None:
    """A random BERT of two thin layers, with a masked language modelling head and a byte-level BPE tokenizer."""
    from transformers import AutoModelForMaskedLM

    shape = Encoder(num_hidden_layers=2, hidden_size=48, num_attention_heads=2, intermediate_size=96)
    _save(folder, AutoModelForMaskedLM, shape.hf_config(vocab_size, max_positions), vocab_size, max_positions)


def save_roberta(folder: Path, vocab_size: int = 400, table: int = 64) -> None:
    """A random RoBERTa of two thin layers, whose table of positions has rows before the first one."""
    from transformers import AutoModelForMaskedLM, RobertaConfig

    config = RobertaConfig(num_hidden_layers=2, hidden_size=48, num_attention_heads=2, intermediate_size=96, vocab_size=vocab_size, max_position_embeddings=table)
    _save(folder, AutoModelForMaskedLM, config, vocab_size, table)


def save_encoder_decoder(folder: Path, vocab_size: int = 400, max_positions: int = 64) -> None:
    """A random T5 of two thin layers a half and a byte-level BPE tokenizer."""
    from transformers import AutoModelForSeq2SeqLM

    config = T5(num_layers=2, d_model=48, num_heads=2, d_kv=24, d_ff=96).hf_config(vocab_size, max_positions)
    config.decoder_start_token_id = 0
    _save(folder, AutoModelForSeq2SeqLM, config, vocab_size, max_positions)


def _save(folder: Path, auto: Any, config: Any, vocab_size: int, max_positions: int) -> None:
    import torch
    from transformers import AutoTokenizer

    Bpe().make([[text for text, _ in labelled(200)]], vocab_size, max_positions, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)


def commit(folder: Path, payload: Payload, name: str) -> Artifact[Any]:
    """Writes a record so that the folder is a complete artifact."""
    identity = {"stage": "by hand", "name": name}
    made = Provenance(git_commit=None, git_dirty=None, argv=(), host="", python="", versions={}, devices=(), device_hours=0.0, started_at="")
    record = Record(
        kind=type(payload).kind, name=name, stage="by hand", version=1, round=1, fingerprint=fingerprint(identity), identity=identity, config={},
        inputs={}, payload=payload.model_dump(mode="json"), provenance=made, wall_s=0.0,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "record.json", record.model_dump(mode="json"))
    return load(folder)


def base_model(folder: Path) -> Artifact[Checkpoint]:
    """The tiny decoder as a checkpoint."""
    save_decoder(folder)
    payload = Checkpoint(head="causal_lm", architecture="llama", digest=hf_digest(folder), n_params=1, vocab_size=400)
    return commit(folder, payload, "base")


def admitting(folder: Path, checkpoint: Artifact[Checkpoint]) -> Artifact[Decision]:
    """A decision that admits the checkpoint."""
    payload = Decision(subject=checkpoint.fingerprint, subject_digest=checkpoint.payload.digest, admitted=True, reasons=())
    return commit(folder, payload, "gate")


class Watcher:
    """Keeps what a stage tells while it runs."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float | None, float | None, dict[str, float]]] = []
        self.tables: list[tuple[list[str], list[list[str]]]] = []

    def progress(self, step: str, text: str, done: float | None, total: float | None, figures: Any) -> None:
        """Keeps it."""
        self.told.append((text, done, total, dict(figures)))

    def table(self, step: str, columns: Any, rows: Any) -> None:
        """Keeps it."""
        self.tables.append((list(columns), [list(row) for row in rows]))


def run(stage: str, config: dict[str, Any], root: Path, watcher: Watcher | None = None, **inputs: Artifact[Any]) -> Artifact[Any]:
    """The artifact that a stage makes in `root`, through the core, as `fmray run` makes it."""
    spec = STAGES[stage]
    prints = {name: artifact.fingerprint for name, artifact in inputs.items()}
    job = Job(root.name, 1, spec, load_config(spec.config, config, root.name), inputs, prints, {}, root)
    return produce(job, redo=False, watcher=watcher)[0]
