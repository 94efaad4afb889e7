"""The English prose of the running Python's own documentation: a small corpus that lies on every machine."""

import ast
import functools
import hashlib
import inspect
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fmray.core.artifact import sha256_file
from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition, Source
from fmray.data.text import paragraphs

TOPICS = "pydoc_data/topics.py"
N_PARTS = 8
MIN_WORDS = 8
MIN_LETTERS = 0.8

_NO_PROSE = {"test", "tests", "idle_test", "__pycache__", "site-packages", "dist-packages", "lib-dynload"}


class PythonDocs(Source):
    """A demonstration corpus: docstrings of the standard library and the topics of `help()`, about 270 thousand words.

    The files are parsed, never imported; tests are left out. A paragraph counts as prose when it has at least 8 words, is at
    least 80 % letters and spaces, and shows no interpreter session; its lines are joined. One domain in a terse register.

    For a corpus (`partitions`) each paragraph is a document, so that the removal of duplicates sees paragraphs that the library
    repeats. For a task (`iter_documents`) each docstring is one, its prose paragraphs with a blank line between them.
    Metadata: `module` (dotted) and `package` (its first part). Nothing of a docstring's prose is masked: it may name its own
    package, so a classifier of packages reads such names too.
    """

    type: Literal["python_docs"] = "python_docs"

    def identity(self) -> dict[str, Any]:
        """Python's version, the digest of the topics file, and a digest over the names and sizes of the library's files."""
        root = library()
        listing = hashlib.sha256("".join(f"{name}\0{size}\n" for name, size in modules(root)).encode()).hexdigest()
        return {
            "type": self.type,
            "python": platform.python_version(),
            "topics": sha256_file(root / TOPICS),
            "library": listing,
        }

    def partitions(self) -> Sequence[Partition]:
        """The library's modules in parts of about the same size, paragraph by paragraph."""
        return self._parts(whole=False)

    def iter_documents(self) -> Iterator[Document]:
        """Whole docstrings, for tasks."""
        counts = Counts()
        for part in self._parts(whole=True):
            yield from part.read(counts)

    def _parts(self, *, whole: bool) -> list["Modules"]:
        sizes = modules(library())
        share = sum(size for _, size in sizes) / N_PARTS
        parts: list[list[str]] = [[] for _ in range(N_PARTS)]
        seen = 0
        for name, size in sizes:
            parts[min(N_PARTS - 1, int(seen / share))].append(name)
            seen += size
        return [Modules(tuple(names), whole) for names in parts]


@dataclass(frozen=True)
class Modules:
    """Reads the prose of some modules of this process's own standard library; `whole` docstrings, or their paragraphs."""

    modules: tuple[str, ...]
    whole: bool

    def read(self, counts: Counts) -> Iterator[Document]:
        """Documents in the order of the source files; paragraphs that are no prose are counted by rule."""
        root = library()
        for name in self.modules:
            module = ".".join(Path(name).with_suffix("").parts).removesuffix(".__init__")
            labels = {"module": module, "package": module.split(".")[0]}
            for place, text in _texts(root / name, name == TOPICS, counts):
                kept = [
                    p for p in map(functools.partial(_prose, counts=counts), paragraphs(inspect.cleandoc(text))) if p
                ]
                if self.whole and kept:
                    yield {"text": "\n\n".join(kept), "id": f"{module}:{place}", **labels}
                elif not self.whole:
                    yield from ({"text": p, "id": f"{module}:{place}#{i}", **labels} for i, p in enumerate(kept))


def library() -> Path:
    """The folder of the running interpreter's standard library.

    Raises:
        DataError: it has no topics file (a cut-down Python).
    """
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / TOPICS).is_file():
        raise DataError(
            f"this Python's standard library has no {TOPICS}",
            where=str(root),
            todo="use a full CPython, or a source of type text",
        )
    return root


@functools.cache
def modules(root: Path) -> tuple[tuple[str, int], ...]:
    """Relative names and sizes in bytes of the library's Python files, tests and installed packages left out, sorted."""
    found: list[tuple[str, int]] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_dir() and entry.name not in _NO_PROSE:
                    pending.append(name)
                elif entry.name.endswith(".py") and entry.is_file():
                    found.append((name, entry.stat().st_size))
    return tuple(sorted(found))


def _texts(path: Path, is_topics: bool, counts: Counts) -> Iterator[tuple[str, str]]:
    """Places (qualified name and line) and raw texts of a module's docstrings, or of the topics."""
    try:
        tree = ast.parse(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except (SyntaxError, ValueError):
        # Templates of the library carry the ending of a module without being one.
        counts.notes["not_a_module"] += 1
        return
    if is_topics:
        yield from _topics(tree)
        return
    pending: list[tuple[str, ast.AST]] = [("", tree)]
    while pending:
        place, node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield f"{place}:{getattr(node, 'lineno', 1)}", text
        inner = [
            n
            for name in ("body", "orelse", "finalbody", "handlers")
            for n in getattr(node, name, [])
            if isinstance(n, ast.AST)
        ]
        for child in reversed(inner):
            named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            pending.append((f"{place}.{child.name}".lstrip(".") if named else place, child))  # type: ignore[attr-defined]


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).items()


def _prose(paragraph: str, counts: Counts) -> str | None:
    """The paragraph on one line, or None when it is no prose; the rule that removed it is counted."""
    text = " ".join(paragraph.split())
    if ">>>" in text:
        counts.removed["interpreter_session"] += 1
    elif len(text.split(" ")) < MIN_WORDS:
        counts.removed[f"fewer_than_{MIN_WORDS}_words"] += 1
    elif sum(c.isalpha() or c == " " for c in text) < MIN_LETTERS * len(text):
        counts.removed["not_prose"] += 1
    else:
        return text
    return None
