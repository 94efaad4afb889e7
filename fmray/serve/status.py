"""What `fmray status`, `promote` and `rollback` say of the registry."""

from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from fmray.serve.judge import DECISION, OBSERVATIONS
from fmray.serve.registry import REGISTRY, Entry, Event, Registry


def status(registry: Registry, name: str | None = None) -> dict[str, Any]:
    """Each model's aliases, versions, the canary under way, and history, newest first.

    Raises:
        ConfigError: the model named is not registered.
        ArtifactError: the registry is damaged.
    """
    models = {name: registry.entry(name)} if name is not None else registry.read()
    return {"registry": str(registry.folder), "models": {name: _entry(registry, name, entry) for name, entry in models.items()}}


def _entry(registry: Registry, name: str, entry: Entry) -> dict[str, Any]:
    plain = entry.model_dump(mode="json", exclude={"history"})
    return plain | {"canary": _canary(registry, name, entry), "history": [e.model_dump(mode="json") for e in reversed(entry.history)]}


def _canary(registry: Registry, name: str, entry: Entry) -> dict[str, Any] | None:
    """How far the canary under way is: observations until now."""
    folder = registry.folder / name / f"v{entry.candidate}-against-v{entry.champion}"
    if entry.candidate is None or entry.champion is None:
        return None
    try:
        seen = len((folder / OBSERVATIONS).read_text(encoding="utf-8").splitlines())
    except FileNotFoundError:
        seen = 0
    return {"folder": str(folder), "observations": seen, "decided": (folder / DECISION).is_dir()}


def table(said: dict[str, Any]) -> RenderableType:
    """The status for a terminal."""
    if not said["models"]:
        return f"no model is registered in {said['registry']}: a `deploy` step registers what it serves, and --storage says where"
    shown = Table(title=f"models in {said['registry']}", title_justify="left", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("model", "champion", "candidate", "versions", "last change"):
        shown.add_column(column, overflow="fold")
    for name, entry in said["models"].items():
        canary = entry["canary"]
        candidate = _version(entry["candidate"]) + (f", {canary['observations']} observations" if canary else "")
        last = Event.model_validate(entry["history"][0]) if entry["history"] else None
        shown.add_row(name, _version(entry["champion"]), candidate, str(len(entry["versions"])), line(last) if last else "")
    return shown


def line(event: Event) -> str:
    """One change in words."""
    words = {
        "register": f"version {event.version} registered", "champion": f"version {event.version} deployed as champion",
        "candidate": f"version {event.version} is the candidate", "promote": f"version {event.version} promoted over {_version(event.before)}",
        "dismiss": f"candidate {event.version} rolled back, {_version(event.before)} stays", "rollback": f"champion {event.version} rolled back",
    }  # fmt: skip
    who = f" by {event.by}" if event.by else ""
    why = f": {event.reason}" if event.reason else ""
    return f"{words[event.action]}{who}{why} ({event.at[:16]})"


def changed(registry: Registry, name: str, entry: Entry, as_json: bool) -> dict[str, Any] | str:
    """What a change of the aliases left, as JSON or as a line."""
    if as_json:
        return _entry(registry, name, entry)
    return f"{name}: {line(entry.history[-1])}; champion is {_version(entry.champion)}"


def _version(number: int | None) -> str:
    return "none" if number is None else f"v{number}"


def registry_of(storage: Path) -> Registry:
    """The registry in a run's storage."""
    return Registry(storage / REGISTRY)
