"""How the tests of sources make a source, read it, and look at what it could not read."""

from pathlib import Path
from typing import Any

import pytest

from fmray.core.config import Config, load_config
from fmray.core.errors import FmrayError
from fmray.data.sources import Counts, Document, Source

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
"""Real data beside the project."""
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the data beside the project are absent ({SHARED})")


class Holder(Config):
    """A config with a source in it."""

    source: Source


def source(**fields: Any) -> Source:
    """A source from plain values, as an experiment file gives them."""
    return load_config(Holder, {"source": fields}).source


def read(made: Source) -> tuple[list[Document], Counts]:
    """All documents of all partitions, and what was counted."""
    counts = Counts()
    return [document for part in made.partitions() for document in part.read(counts)], counts


def texts(made: Source) -> list[str]:
    """The texts of all documents."""
    return [document["text"] for document in read(made)[0]]


def one_line(error: "pytest.ExceptionInfo[FmrayError]") -> str:
    """The error's line, which is one."""
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_refused(made: Source, *parts: str) -> str:
    """The one line with which reading stops under `fail`; it holds all the parts."""
    with pytest.raises(FmrayError) as error:
        read(made)
    line = one_line(error)
    for part in parts:
        assert part in line, line
    return line


def skipped(made: Source, *parts: str) -> list[Document]:
    """What is read under `skip` beside one unreadable input, whose line in the counts holds all the parts."""
    documents, counts = read(made.model_copy(update={"on_error": "skip"}))
    assert counts.n_bad == 1, counts.bad
    (line,) = counts.bad
    for part in parts:
        assert part in line, line
    return documents
