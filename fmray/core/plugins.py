"""A user's own components: Python files named in the experiment, imported under `fmray_plugins`, carried to workers by their text."""

import hashlib
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmray.core.errors import ConfigError

PACKAGE = "fmray_plugins"
_sources: dict[str, str] = {}


def install_from(names: Any, folder: Path) -> dict[str, str]:
    """Imports the plugin files (paths relative to the experiment file's folder) and returns the sha256 of each by name.

    Raises:
        ConfigError: not a list of .py files, a file that cannot be read, or one that fails on import.
    """
    if not isinstance(names, list) or not all(isinstance(n, str) and n.endswith(".py") for n in names):
        raise ConfigError(f"is a list of Python files (got {names!r})", where="plugins")
    texts: dict[str, str] = {}
    for name in names:
        try:
            texts[Path(name).stem] = (folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot be read ({error})", where=f"plugins.{name}") from None
    install(texts)
    return {stem: hashlib.sha256(text.encode()).hexdigest() for stem, text in texts.items()}


def install(texts: Mapping[str, str]) -> None:
    """Imports plugin modules from their source text, once; the same call serves on the workers."""
    if texts and PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = []
        sys.modules[PACKAGE] = package
    for stem, text in texts.items():
        if _sources.get(stem) == text:
            continue
        name = f"{PACKAGE}.{stem}"
        module = types.ModuleType(name)
        module.__file__ = f"{stem}.py"
        sys.modules[name] = module
        try:
            exec(compile(text, f"{stem}.py", "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[name]
            raise ConfigError(f"fails on import: {type(error).__name__}: {error}", where=f"plugins.{stem}.py") from error
        _sources[stem] = text


def sources() -> dict[str, str]:
    """The source texts of the plugins in use, to be installed on workers."""
    return dict(_sources)
