"""What a running application is told about its operation, and which version of a model a request goes to."""

import time
from dataclasses import dataclass
from pathlib import Path

from fmray.core.errors import ArtifactError
from fmray.serve.canary import takes_candidate
from fmray.serve.judge import Canary
from fmray.serve.registry import FILE, Registry

FOLLOW_S = 0.5


@dataclass(frozen=True)
class Operation:
    """How an application is operated.

    Attributes:
        canaries: the models of which two versions are up.
        feedback: the file that POST /v1/feedback appends to; None: it is refused.
        request_log: the file that gets a line a request; None: none is written.
        log_prompts: whether those lines hold the text of requests.
    """

    canaries: tuple[Canary, ...] = ()
    feedback: str | None = None
    request_log: str | None = None
    log_prompts: bool = False


@dataclass(frozen=True)
class Route:
    """Where a request goes. `version` is None for a model without a canary; `fallback` is asked when this one fails."""

    served: str
    version: int | None = None
    fallback: "Route | None" = None
    canary: Canary | None = None


class Router:
    """Follows the registry's aliases, so that a promotion or a rollback moves the traffic within `FOLLOW_S`."""

    def __init__(self, canaries: tuple[Canary, ...]) -> None:
        self._canaries = {canary.name: canary for canary in canaries}
        self._aliases: dict[str, tuple[int | None, int | None]] = {c.name: (c.champion, None) for c in canaries}
        self._asked: dict[str, tuple[float, int]] = {}

    def route(self, model: str, request_id: str) -> Route:
        """The version that answers a request for a model: always the same one for the same id while the aliases stay."""
        canary = self._canaries.get(model)
        if canary is None:
            return Route(model)
        champion, candidate = self._follow(canary)
        names = {canary.champion: canary.name, canary.candidate: canary.candidate_name}
        # A champion from elsewhere (deployed since, and not up here) leaves this application as it was deployed.
        own = Route(names.get(champion or 0, canary.name), champion if champion in names else canary.champion)
        if candidate == canary.candidate and champion == canary.champion:
            if takes_candidate(request_id, canary.config.share):
                return Route(canary.candidate_name, candidate, fallback=Route(own.served, own.version), canary=canary)
            return Route(own.served, own.version, canary=canary)
        return own

    def _follow(self, canary: Canary) -> tuple[int | None, int | None]:
        now = time.monotonic()
        asked, stamp = self._asked.get(canary.name, (-FOLLOW_S, 0))
        if now - asked >= FOLLOW_S:
            file = Path(canary.registry) / FILE
            try:
                changed = file.stat().st_mtime_ns
                if changed != stamp:
                    entry = Registry(file.parent).read()[canary.name]
                    self._aliases[canary.name] = (entry.champion, entry.candidate)
                stamp = changed
            except (OSError, KeyError, ArtifactError):
                stamp = 0  # storage is out of reach for the moment: the traffic stays where it is
            self._asked[canary.name] = (now, stamp)
        return self._aliases[canary.name]
