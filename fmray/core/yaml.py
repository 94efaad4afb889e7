"""Reads experiment files: YAML with floats as people write them (`3e-3`), and dotted overrides."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fmray.core.config import did_you_mean
from fmray.core.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads `3e-3` as a float (YAML 1.1 takes it for text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$|^[-+]?\d[\d_]*\.[\d_]*$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(loader.construct_object(key_node))
        if key in seen:
            raise ConfigError(f"the key '{key}' stands twice", where=f"line {key_node.start_mark.line + 1}")
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, where: str) -> Any:
    """Plain values of a YAML text.

    Raises:
        ConfigError: it is not YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"is not valid YAML{line}: {getattr(error, 'problem', None) or error}", where=where) from None
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where} {error.where}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: it cannot be read or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot be read ({reason})", where=str(path), todo="give the path of an experiment file") from None
    data = parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError("is not an experiment: expected a mapping with `name` and `steps`", where=str(path))
    return data


def apply_overrides(experiment: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets `step.key.subkey=value` (value is YAML; nothing is an empty text, `null` is null) in the plain experiment, in order, in place.

    Raises:
        ConfigError: no `=`, an unknown step, or a path through something that is not a mapping.
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals or not path:
            raise ConfigError(f"'{override}' is not an override", todo="write step.key=value")
        set_path(experiment, path, parse_yaml(text, path) if text else "")


def set_path(experiment: dict[str, Any], path: str, value: Any) -> None:
    """Sets one dotted path, whose first part is a step's name or `name`, to a plain value."""
    first, *rest = path.split(".")
    if not rest:
        if first != "name":
            raise ConfigError("cannot be overridden as a whole", where=path, todo="write step.key=value")
        experiment["name"] = value
        return
    steps = experiment.get("steps") or {}
    if first not in steps:
        raise ConfigError(f"there is no step '{first}'{did_you_mean(first, steps)}", where=path, todo=f"steps: {', '.join(steps)}")
    here = steps[first]
    for index, part in enumerate(rest[:-1]):
        below = here.get(part) if isinstance(here, dict) else None
        if below is None and isinstance(here, dict):
            below = here[part] = {}
        if not isinstance(below, dict):
            raise ConfigError(f"{'.'.join([first, *rest[: index + 1]])} is not a mapping", where=path)
        here = below
    if not isinstance(here, dict):
        raise ConfigError(f"the step '{first}' is not a mapping", where=path)
    here[rest[-1]] = value
