"""Figures of tasks while a training goes on, asked of the model that is trained by the code that evaluates it afterwards."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fmray import cluster
from fmray.core.errors import ConfigError
from fmray.data.vocabulary import read_vocabulary
from fmray.evaluate.lm_tasks.asking import Setup, answers, positions
from fmray.evaluate.lm_tasks.causal import answered, read_plainly
from fmray.evaluate.lm_tasks.config import LmTask
from fmray.evaluate.lm_tasks.documents import Drawn, draw
from fmray.evaluate.lm_tasks.encoding import Encoder, check_fits
from fmray.evaluate.lm_tasks.masked import tell_hidden
from fmray.evaluate.lm_tasks.opened import OpenTask
from fmray.evaluate.lm_tasks.workers import SCORERS, Job
from fmray.train.config import PretrainConfig
from fmray.train.engine import Engine
from fmray.train.evaluation import SEED, looked_at


def check_tasks(config: PretrainConfig, tokenizer: Path, vocab_size: int, where: str) -> dict[str, Drawn]:
    """The documents of the tasks that are asked about while it trains, which are those that the stage evaluate draws by its own seed.

    Raises:
        ConfigError: the objective trains no model of language, lm-eval is not installed, or a definition does not fit its documents.
        ArtifactError: the tokenizer is not the model's.
        DataError: the documents cannot be read.
    """
    if not config.eval_tasks:
        return {}
    head = config.objective.head
    if head not in SCORERS:
        raise ConfigError(f"tasks are put to language models ({', '.join(SCORERS)}), and the objective trains the head {head}", where=f"{where}.eval_tasks", todo="leave them out")
    if find_spec("lm_eval") is None:
        raise ConfigError("tasks need lm-eval", where=f"{where}.eval_tasks", todo="pip install 'fmray[lm-eval]'")
    check_fits(read_vocabulary(tokenizer), vocab_size, head, str(tokenizer))
    drawn = {name: draw(name, task, SEED) for name, task in config.eval_tasks.items()}
    try:
        cluster.call(_open, config.eval_tasks, drawn)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}.eval_{error.where}", todo=error.todo) from None
    return drawn


def _open(tasks: Mapping[str, LmTask], drawn: Mapping[str, Drawn]) -> None:
    for name, task in tasks.items():
        OpenTask(name, task, drawn[name])


class TaskFigures:
    """Asks the documents of tasks of the model in an engine, on all workers together: job i is worker i mod W's.

    Every worker makes equally many passes, for at ZeRO stage 3 they need each other, and each row holds one request. Figures are in the
    engine's precision: in float32 those that the stage evaluate tells of the same weights.
    """

    def __init__(self, config: PretrainConfig, drawn: Mapping[str, Drawn], tokenizer: Path, *, rank: int, world_size: int) -> None:
        self._config, self._drawn, self._path = config, drawn, tokenizer
        self._rank, self._world_size = rank, world_size

    @cached_property
    def _tasks(self) -> dict[str, OpenTask]:
        # When it is first asked for: lm-eval takes seconds to import.
        return {name: OpenTask(name, task, self._drawn[name]) for name, task in self._config.eval_tasks.items()}

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._path, local_files_only=True, trust_remote_code=False)

    def figures(self, engine: Engine) -> dict[str, float | None]:
        """Each task's figures by the names that an evaluation gives them; None of what is no number. Every worker calls it; all get the same.

        Raises:
            DataError: a document does not fit the model.
        """
        import torch

        masked = self._config.objective.head == "masked_lm"
        module: Any = engine.module
        length = positions(module.config.to_dict(), self._tokenizer, masked)
        setup = Setup(Encoder(self._tokenizer, length), masked, shares=False, micro_batch_size=1)
        together = _Together(engine, self._tokenizer.mask_token_id if masked else None, self._rank, self._world_size)
        found: dict[str, float | None] = {}
        # Not inference_mode: see score_rows.
        with looked_at(engine), torch.no_grad():
            for name, task in self._tasks.items():
                given, _ = answers(task.config.output, task.asks, setup, together)
                for metric, items in task.values(dict(enumerate(given))).items():
                    value = task.figure(metric, items)
                    found[f"eval/{name}/{metric}"] = value if math.isfinite(value) else None
        return found


class _Together:
    """Jobs that all workers share."""

    def __init__(self, engine: Engine, mask_id: int | None, rank: int, world_size: int) -> None:
        self._engine, self._mask_id, self._rank, self._world_size = engine, mask_id, rank, world_size

    def map(self, method: str, jobs: Sequence[Job]) -> list[Any]:
        """The answers to all jobs, on every worker; what is short of a whole turn is made up with the first job, whose answer then does not count."""
        import torch

        turns = range(self._rank, math.ceil(len(jobs) / self._world_size) * self._world_size, self._world_size)
        mine = [self._score(*jobs[at if at < len(jobs) else 0]) for at in turns]
        if self._world_size == 1:
            return mine
        every: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(every, mine)
        return [every[at % self._world_size][at // self._world_size] for at in range(len(jobs))]

    def _score(self, *job: Any) -> Any:
        if self._mask_id is not None:
            return tell_hidden(self._engine.forward, self._engine.device, self._mask_id, *job)
        _, row = job
        return answered(row, *read_plainly(self._engine.forward, self._engine.device, row))
