"""A dataset that the library `datasets` saved with `save_to_disk`, read without that library."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fmray.core.config import did_you_mean
from fmray.core.errors import DataError
from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._arrow import arrow_errors, need_columns, open_random, refuse_extensions, row_documents
from fmray.data.sources._fields import Fields
from fmray.data.sources._files import Bad, FileSource, grouped
from fmray.data.sources._store import File, locate, open_file, unreadable

STATE, SPLITS = "state.json", "dataset_dict.json"


class HfDataset(FileSource):
    """The folder of a saved Hugging Face dataset, or of a saved `DatasetDict`, one split of which is read.

    Attributes:
        split: which split of a `DatasetDict`.
        text: the column of texts, or of lists of them, which are put together with newlines; a dotted name goes into records.
        id: the column of ids; by default the row's number in its file.
        columns: further columns to keep as metadata.
    """

    type: Literal["hf_dataset"] = "hf_dataset"
    suffixes: ClassVar[tuple[str, ...]] = (".arrow",)

    split: str | None = None
    text: str = "text"
    id: str | None = None
    columns: tuple[str, ...] = ()

    def files(self) -> list[File]:
        """The Arrow files that the dataset's own state names, in its order.

        Raises:
            DataError: the folder is no saved dataset, the split is missing or not given, or the state names files elsewhere.
        """
        root = locate(self.path)
        splits = _json(f"{root}/{SPLITS}")
        if splits is not None:
            root = f"{root}/{self._chosen(splits, root)}"
        elif self.split is not None:
            raise DataError("is one saved dataset, without splits", where=root, todo="leave out source.split")
        state = _json(f"{root}/{STATE}")
        try:
            names = [entry["filename"] for entry in state["_data_files"]] if state is not None else None
        except (KeyError, TypeError):
            names = None
        if not names:
            raise DataError(f"is no saved dataset (no {STATE} that names its files)", where=root, todo="save it with save_to_disk")
        for name in names:
            if not isinstance(name, str) or "/" in name or "\\" in name or name.startswith("."):
                raise DataError(f"names a file outside its folder ({name!r})", where=f"{root}/{STATE}")
        return [File(f"{root}/{name}", name) for name in names]

    def _chosen(self, found: Any, root: str) -> str:
        names = found.get("splits") if isinstance(found, dict) else None
        if not isinstance(names, list) or any(not isinstance(n, str) or "/" in n or n.startswith(".") for n in names):
            raise DataError("does not name its splits", where=f"{root}/{SPLITS}")
        if self.split is None:
            raise DataError(f"has the splits {', '.join(names)}", where=root, todo="choose one in source.split")
        if self.split not in names:
            raise DataError(f"has no split '{self.split}'{did_you_mean(self.split, names)}; it has: {', '.join(names)}", where=root)
        return self.split

    def partitions(self) -> Sequence[Partition]:
        """One part a file: the library splits large datasets into files of at most 500 MB."""
        reader = ArrowStream(Fields((self.text,), self.id), self.columns, self.limit)
        return grouped([(file, 1) for file in self.files()], reader, self.on_error)


def _json(place: str) -> Any:
    """The content of a small JSON file; None when there is no such file."""
    try:
        with open_file(File(place, "")) as stream:
            return json.loads(stream.read())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(place, error) from None
    except ValueError as error:
        raise DataError(f"is not JSON ({error})", where=place) from None


@dataclass(frozen=True)
class ArrowStream:
    """Reads the rows of a file in Arrow's streaming format."""

    fields: Fields
    columns: tuple[str, ...]
    limit: int

    def documents(self, piece: File, counts: Counts, bad: Bad) -> Iterator[Document]:
        """One document a row; at a damaged batch the file ends."""
        import pyarrow as pa

        first = 0
        with open_random(piece) as raw:
            with arrow_errors(piece.place, "the schema"):
                message = pa.ipc.read_message(raw)
                refuse_extensions(message.metadata.to_pybytes(), piece.place)
                raw.seek(0)
                stream = pa.ipc.open_stream(raw)
                wanted = need_columns(stream.schema, self.fields.names(self.columns), piece.place)
            while True:
                with arrow_errors(piece.place, f"the batch behind row {first}"):
                    try:
                        batch = stream.read_next_batch().select(wanted)
                    except StopIteration:
                        return
                    batch.validate(full=True)  # Offsets that point outside their buffers would be followed.
                yield from row_documents(batch, first, self.fields, piece, self.limit, bad)
                first += batch.num_rows
