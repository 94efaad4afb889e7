"""The typed config tree: strict frozen models, families of components chosen by `type`, runtime fields."""

import difflib
import importlib
import json
import pkgutil
import types
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from fmray.core.errors import ConfigError

RUNTIME_KEY = "runtime"


class Config(BaseModel):
    """Base of every config: frozen, strict (no silent conversions), and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    def identity(self) -> dict[str, Any]:
        """What enters the fingerprint: every field but the runtime ones, as plain JSON values.

        Override where data must enter by digest rather than by path.
        """
        return {name: _plain(getattr(self, name), identity=True) for name in _identity_fields(type(self))}


def runtime(default: Any, **field: Any) -> Any:
    """A field about where and how a run executes: it stays out of the fingerprint."""
    return Field(default, json_schema_extra={RUNTIME_KEY: True}, **field)


def _identity_fields(cls: type[BaseModel]) -> list[str]:
    def is_runtime(extra: object) -> bool:
        return isinstance(extra, dict) and bool(extra.get(RUNTIME_KEY))

    return [name for name, field in cls.model_fields.items() if not is_runtime(field.json_schema_extra)]


def _plain(value: Any, *, identity: bool) -> Any:
    if isinstance(value, Config):
        return value.identity() if identity else {n: _plain(getattr(value, n), identity=False) for n in type(value).model_fields}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, identity=identity) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, identity=identity) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item, identity=identity) for item in value)
    return value


def dump(config: BaseModel) -> dict[str, Any]:
    """The whole config, runtime fields and component tags included, as plain JSON values."""
    return {name: _plain(getattr(config, name), identity=False) for name in type(config).model_fields}


class Component(Config):
    """A noun with a `type` tag. Subclass it once for a family (naming the package that holds its members), then once a member.

    A member declares `type: Literal["tag"] = "tag"`. A field annotated with the family accepts `{type: tag, ...}`;
    members are found by importing every module of the family's package on first use.
    """

    _members: ClassVar[dict[str, type["Component"]]]
    _package: ClassVar[str | None]

    @classmethod
    def __pydantic_init_subclass__(cls, *, package: str | None = None, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if cls._family_root():
            cls._members, cls._package = {}, package
            return
        tag = cls.model_fields["type"].default if "type" in cls.model_fields else None
        if isinstance(tag, str):
            cls._members[tag] = cls

    def __init_subclass__(cls, *, package: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)

    @classmethod
    def members(cls) -> dict[str, type["Component"]]:
        """The members of this family by tag, after importing the family's package."""
        if cls._package is not None:
            found = importlib.import_module(cls._package)
            for module in pkgutil.iter_modules(found.__path__):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{cls._package}.{module.name}")
        return dict(sorted(cls._members.items()))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if cls._family_root():
            return core_schema.no_info_plain_validator_function(cls._resolve)
        return handler(source)

    @classmethod
    def _family_root(cls) -> bool:
        # By name, for pydantic asks while `Component` itself is still being made.
        return any(base.__module__ == __name__ and base.__qualname__ == "Component" for base in cls.__bases__)

    @classmethod
    def _resolve(cls, data: Any) -> "Component":
        if isinstance(data, cls):
            return data
        family = cls.__name__.lower()
        if not isinstance(data, Mapping):
            raise PydanticCustomError("component", "expected a mapping with a `type` ({family})", {"family": family})
        tag = data.get("type")
        known = cls.members()
        if tag is None:
            raise PydanticCustomError("component", "`type` is missing; {family} is one of {known}", {"family": family, "known": ", ".join(known)})
        if tag not in known:
            raise PydanticCustomError(
                "component",
                "unknown {family} '{tag}'{hint}; known: {known}",
                {"family": family, "tag": str(tag), "hint": did_you_mean(str(tag), known), "known": ", ".join(known)},
            )
        try:
            return known[tag].model_validate_json(json.dumps(data))
        except ValidationError as error:
            # pydantic flattens a nested ValidationError to text: carry its details so that the dotted path survives.
            raise PydanticCustomError("nested", "invalid", {"details": (known[tag], error.errors())}) from None


M = TypeVar("M", bound=BaseModel)


def load_config(cls: type[M], data: Mapping[str, Any], where: str = "") -> M:
    """Validates plain data against a config class.

    Raises:
        ConfigError: one line with the dotted path of the first fault and a suggestion.
    """
    try:
        text = json.dumps(data)
    except TypeError as error:
        raise ConfigError(f"a value is not plain YAML ({error})", where=where, todo="quote it") from None
    try:
        return cls.model_validate_json(text)
    except ValidationError as error:
        raise _to_config_error(cls, error.errors(), where) from None
    except ConfigError as error:
        raise ConfigError(error.what, where=".".join(p for p in (where, error.where) if p), todo=error.todo) from None


def _to_config_error(cls: type[BaseModel], details: list[ErrorDetails], where: str) -> ConfigError:
    first = details[0]
    path = ".".join([p for p in [where, *(str(x) for x in first["loc"])] if p])
    context = first.get("ctx") or {}
    if first["type"] == "nested":
        member, inner = context["details"]
        return _to_config_error(member, inner, path)
    if first["type"] == "extra_forbidden":
        owner = _owner(cls, first["loc"][:-1])
        names = list(owner.model_fields) if owner else []
        key = str(first["loc"][-1])
        return ConfigError(f"unknown key '{key}'{did_you_mean(key, names)}", where=path, todo=f"known keys: {', '.join(names)}" if names else "")
    if first["type"] == "missing":
        return ConfigError("is required", where=path, todo="add it to the experiment file")
    message = first["msg"].removeprefix("Value error, ")
    shown = "" if first["type"] in ("component", "value_error") else f" (got {first['input']!r})"
    return ConfigError(message + shown, where=path)


def _owner(cls: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model class that holds the fields at `loc`, followed through optionals and tuples."""
    current: Any = cls
    for part in loc:
        if isinstance(part, int):
            continue
        field = current.model_fields.get(part)
        current = _model_in(field.annotation) if field else None
        if current is None:
            return None
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_in, get_args(annotation)) if m is not None), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion such as `, did you mean 'optim'?`, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean '{close[0]}'?" if close else ""
