"""Who may be served: a model directory with an admitting Decision about exactly the files in it, or a recorded waiver."""

import datetime
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmray.core.artifact import Artifact, Record, load, read_record
from fmray.core.errors import ArtifactError, ConfigError, GateRefused, ResourceError
from fmray.core.report import Decision
from fmray.model.checkpoint import Head, hf_digest, read_hf_config, tokenizer_files

WAIVERS = "waivers.jsonl"
ASIDE = re.compile(r"\.old\d+$")


@dataclass(frozen=True)
class Waiver:
    """Who lets a model be served without an admitting decision, and why."""

    by: str
    reason: str

    @classmethod
    def of(cls, reason: str | None, by: str | None) -> "Waiver | None":
        """The waiver that `--waive REASON --by NAME` asks for, or None when neither is given.

        Raises:
            ConfigError: one is given without the other, or is blank.
        """
        if reason is None and by is None:
            return None
        if not (reason or "").strip() or not (by or "").strip():
            raise ConfigError("a waiver needs both a reason and a name", where="serve", todo="give --waive REASON --by NAME")
        return cls(by=str(by).strip(), reason=str(reason).strip())


@dataclass(frozen=True)
class Admission:
    """A model directory that may be served: by its decision, or by a waiver in spite of what `missing` names."""

    path: Path
    head: Head
    digest: str
    record: Record | None
    decision: Artifact[Decision] | None
    waiver: Waiver | None


def admit(path: Path, *, decision: Path | None = None, waiver: Waiver | None = None) -> Admission:
    """Holds a model directory to the gate rule, by the digest of the files that lie in it now.

    Args:
        decision: the decision's artifact directory; None looks through the step directories beside `path`, where every
            decision about these files must admit.
        waiver: takes the place of a missing or refusing decision, and is then recorded in `waivers.jsonl` beside `path`.

    Raises:
        ArtifactError: `path` is no model directory, or `decision` no decision.
        GateRefused: no decision admits these very files, and there is no waiver.
        ResourceError: a waiver cannot be recorded.
    """
    head, digest, record = _head(path), hf_digest(path), read_record(path)
    found = [load(decision, Decision)] if decision is not None else _decisions_beside(path)
    about = [d for d in found if d.payload.subject_digest == digest]
    if about and all(d.payload.admitted for d in about):
        return Admission(path, head, digest, record, about[0], None)
    missing = _missing(record, found, about)
    if waiver is None:
        raise GateRefused(missing, where=str(path), todo="gate this checkpoint, give --decision DIR, or --waive REASON --by NAME")
    _record_waiver(path, digest, waiver, missing)
    return Admission(path, head, digest, record, next((d for d in about if not d.payload.admitted), None), waiver)


HEADS: tuple[tuple[Head, tuple[str, ...]], ...] = (
    ("causal_lm", ("ForCausalLM", "LMHeadModel")),
    ("sequence_classification", ("ForSequenceClassification",)),
    ("token_classification", ("ForTokenClassification",)),
    ("question_answering", ("ForQuestionAnswering",)),
    ("masked_lm", ("ForMaskedLM",)),
    ("seq2seq_lm", ("ForConditionalGeneration",)),
    ("encoder", ("Model",)),
)
"""How the names of architectures end, by head; the first that fits holds."""


def _head(path: Path) -> Head:
    """What the model can do, by the architecture that its config.json names."""
    names = tuple(str(name) for name in read_hf_config(path).get("architectures") or ())
    for head, endings in HEADS:
        if any(name.endswith(endings) for name in names):
            _require_tokenizer(path)
            return head
    todo = "serve a language model, an encoder, or a model with a task's head"
    raise ArtifactError(f"holds a model that cannot be served (architectures: {', '.join(names) or 'none named'})", where=str(path), todo=todo)


def _require_tokenizer(path: Path) -> None:
    if not set(tokenizer_files(path)) - {"chat_template.jinja", "preprocessor_config.json", "special_tokens_map.json"}:
        raise ArtifactError("has no tokenizer", where=str(path), todo="save the model's own tokenizer beside it")


def _decisions_beside(path: Path) -> list[Artifact[Decision]]:
    """The decisions of the same experiment, newest first, without those that `--redo` put aside."""
    found = []
    for folder in sorted(path.resolve().parent.iterdir()):
        try:
            record = read_record(folder) if folder.is_dir() and not ASIDE.search(folder.name) else None
            if record is not None and record.kind == Decision.kind:
                found.append(load(folder, Decision))
        except ArtifactError:
            continue  # a damaged neighbour admits nothing, and is not what was asked for
    return sorted(found, key=lambda d: d.record.provenance.started_at, reverse=True)


def _missing(record: Record | None, found: list[Artifact[Decision]], about: list[Artifact[Decision]]) -> str:
    refusing = next((d for d in about if not d.payload.admitted), None)
    if refusing is not None:
        failed = [reason.rule for reason in refusing.payload.reasons if not reason.passed]
        return f"the gate {refusing.name} refused this checkpoint (not met: {', '.join(failed) or 'its rules'})"
    changed = record is not None and any(d.payload.subject == record.fingerprint for d in found)
    if changed:
        return "its files are not those that the gate judged: they changed since"
    if found:
        return f"no decision is about these files (looked at {', '.join(d.name for d in found)})"
    return "no decision about this checkpoint was found beside it"


def _record_waiver(path: Path, digest: str, waiver: Waiver, missing: str) -> None:
    entry: dict[str, Any] = {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "model": path.name, "digest": digest,
        "waived": missing, **asdict(waiver),
    }  # fmt: skip
    file = path.resolve().parent / WAIVERS
    try:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ResourceError(f"the waiver cannot be recorded ({error.strerror})", where=str(file), todo="make the folder writable") from None
