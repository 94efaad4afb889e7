"""Inputs of a stage, read from its annotations: how a step's YAML names them, and how they are bound."""

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from fmray.core.artifact import Artifact, Payload
from fmray.core.config import did_you_mean
from fmray.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Ref:
    """What an input names: a step above in the file, or an artifact of another run."""

    step: str | None = None
    uri: str | None = None


@dataclasses.dataclass(frozen=True)
class One:
    """An input `Artifact[X]`; `optional` when it may be absent."""

    payload: type[Payload]
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Many:
    """An input `tuple[X, ...]`; `may_be_empty` when the stage's argument has a default of ()."""

    item: "Shape"
    may_be_empty: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """An input that is a frozen dataclass of further inputs."""

    cls: type[Any]
    fields: dict[str, "Shape"]


Shape = One | Many | Group
Bound = Any  # Ref, None, a tuple of Bound, or a mapping of Bound: the same tree as the shape


def shape_of_argument(annotation: Any, default: Any) -> Shape | None:
    """The input shape of a stage's argument, or None when it is not an input."""
    shape = shape_of(annotation)
    return dataclasses.replace(shape, may_be_empty=True) if isinstance(shape, Many) and default == () else shape


def shape_of(annotation: Any) -> Shape | None:
    """The input shape of an annotation, or None when it is not an input."""
    origin = get_origin(annotation)
    if origin is Artifact:
        return One(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        inner = [shape_of(a) for a in get_args(annotation) if a is not type(None)]
        if len(inner) == 1 and isinstance(inner[0], One):
            return One(inner[0].payload, optional=True)
        return None
    if origin is tuple:
        item = shape_of(get_args(annotation)[0])
        return Many(item) if item is not None else None
    if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
        hints = typing.get_type_hints(annotation)
        shapes = {name: shape_of(hint) for name, hint in hints.items()}
        if all(shape is not None for shape in shapes.values()):
            return Group(annotation, typing.cast(dict[str, Shape], shapes))
    return None


def parse(shape: Shape, raw: Any, where: str) -> Bound:
    """Turns what the YAML says at `where` into references of the given shape.

    Raises:
        ConfigError: it has another form than the stage needs.
    """
    if isinstance(shape, One):
        if raw is None and shape.optional:
            return None
        if isinstance(raw, str):
            return Ref(step=raw)
        if isinstance(raw, Mapping) and set(raw) == {"artifact"} and isinstance(raw["artifact"], str):
            return Ref(uri=raw["artifact"])
        raise ConfigError(f"names a {shape.payload.kind}: a step above or {{artifact: PATH}} (got {raw!r})", where=where)
    if isinstance(shape, Many):
        if not isinstance(raw, Sequence) or isinstance(raw, str) or not (raw or shape.may_be_empty):
            raise ConfigError(f"is a list{'' if shape.may_be_empty else ' of at least one'} (got {raw!r})", where=where)
        return tuple(parse(shape.item, item, f"{where}.{index}") for index, item in enumerate(raw))
    if not isinstance(raw, Mapping):
        raise ConfigError(f"is a mapping with {', '.join(shape.fields)} (got {raw!r})", where=where)
    for key in raw:
        if key not in shape.fields:
            raise ConfigError(f"unknown key '{key}'{did_you_mean(str(key), shape.fields)}", where=f"{where}.{key}", todo=f"known keys: {', '.join(shape.fields)}")
    for name, field in shape.fields.items():
        if name not in raw and not (isinstance(field, One) and field.optional):
            raise ConfigError("is required", where=f"{where}.{name}", todo="add it to the experiment file")
    return {name: parse(field, raw.get(name), f"{where}.{name}") for name, field in shape.fields.items()}


def leaves(shape: Shape, bound: Bound, name: str) -> Iterator[tuple[str, One, Ref]]:
    """Every reference in the tree with its dotted name."""
    if isinstance(shape, One):
        if bound is not None:
            yield name, shape, bound
    elif isinstance(shape, Many):
        for index, item in enumerate(bound):
            yield from leaves(shape.item, item, f"{name}.{index}")
    else:
        for key, field in shape.fields.items():
            yield from leaves(field, bound[key], f"{name}.{key}")


def bind(shape: Shape, bound: Bound, resolve: Callable[[Ref, One], Any]) -> Any:
    """The argument for the stage: references replaced by artifacts, mappings by their dataclass."""
    if isinstance(shape, One):
        return None if bound is None else resolve(bound, shape)
    if isinstance(shape, Many):
        return tuple(bind(shape.item, item, resolve) for item in bound)
    return shape.cls(**{key: bind(field, bound[key], resolve) for key, field in shape.fields.items()})
