"""Where jobs run: in this process, or on Ray actors that each hold the model. Both give the same answers in the same order."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from fmray.core.errors import FmrayError, RunError
from fmray.evaluate.lm_tasks.causal import CausalScorer
from fmray.evaluate.lm_tasks.masked import MaskedScorer

Job = tuple[Any, ...]
SCORERS: dict[str, Any] = {"causal_lm": CausalScorer, "masked_lm": MaskedScorer}


class Asked(Protocol):
    """Who scores jobs."""

    def map(self, method: str, jobs: Sequence[Job]) -> list[Any]:
        """What each job's arguments give to a method of the scorer, in the jobs' order."""


class _Actor:
    """A scorer in a process of its own. It opens its model for its first job, for Ray tells of an error in a constructor only the text."""

    def __init__(self, head: str, *opens: Any) -> None:
        self._head, self._opens = head, opens
        self._scorer: Any = None

    def ask(self, method: str, job: Job) -> Any:
        """What a method of the scorer gives."""
        if self._scorer is None:
            self._scorer = SCORERS[self._head](*self._opens)
        return getattr(self._scorer, method)(*job)


class Workers:
    """One scorer in this process, or several as Ray actors, of a model or (with a seed) its untrained twin.

    What is computed together is fixed by the jobs, never by who takes them, so the number of workers changes no figure.
    """

    def __init__(self, head: str, path: Path, seed: int | None, num_workers: int, num_cpus: int, num_gpus: int) -> None:
        device = "cuda" if num_gpus else "cpu"
        self._local: Any = None
        self._actors: list[Any] = []
        if num_workers == 1:
            self._local = SCORERS[head](path, seed, num_cpus, device)
            return
        import ray

        # A job can be done again by another process without harm, so a lost worker is replaced.
        remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_restarts=2, max_task_retries=2)(_Actor)
        self._actors = [remote.remote(head, path, seed, num_cpus, device) for _ in range(num_workers)]

    def map(self, method: str, jobs: Sequence[Job]) -> list[Any]:
        """What each job's arguments give, in the jobs' order.

        Raises:
            FmrayError: a worker raised it.
            RunError: a worker failed otherwise.
        """
        if self._local is not None:
            return [getattr(self._local, method)(*job) for job in jobs]
        from ray.util import ActorPool

        return _told(lambda: list(ActorPool(self._actors).map(lambda actor, job: actor.ask.remote(method, job), list(jobs))))

    def shares(self) -> bool:
        """Whether rows may be packed (see CausalScorer), by every worker: on other hardware one may answer otherwise."""
        if self._local is not None:
            return bool(self._local.may_pack())
        import ray

        return all(_told(lambda: ray.get([actor.ask.remote("may_pack", ()) for actor in self._actors])))

    def close(self) -> None:
        """Lets go of the models, so that the next workers find the memory free."""
        import ray

        self._local = None
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


def _told(asked: Callable[[], list[Any]]) -> list[Any]:
    """What workers answer; their errors as they raised them."""
    import ray

    try:
        return asked()
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, FmrayError):
            raise cause from None
        raise RunError(f"a scoring worker failed: {str(error).strip().splitlines()[-1]}") from error
