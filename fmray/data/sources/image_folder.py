"""Folders of pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fmray.data.sources import Counts, Document, Partition
from fmray.data.sources._blocks import too_large
from fmray.data.sources._files import Bad, FileSource, grouped
from fmray.data.sources._images import SUFFIXES, Channels, decode_image
from fmray.data.sources._store import File
from fmray.data.sources._streams import Stream


class ImageFolder(FileSource):
    """PNG and JPEG pictures below a folder (or of a glob). The sub-folder that a picture lies in is its label.

    A document has `image` (uint8, height x width x channels), `id` (the relative name), and where there are sub-folders `label` (the
    number of its sub-folder in the order of names) and `label_name`.

    Attributes:
        channels: 1 for grey, 3 for colour; by default grey pictures have 1 and others 3.
    """

    type: Literal["image_folder"] = "image_folder"
    modality: ClassVar[Literal["text", "image"]] = "image"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    channels: Channels | None = None

    def partitions(self) -> Sequence[Partition]:
        """Pictures in parts by their sizes, neighbours together."""
        files = self.files()
        folders = sorted({folder for file in files if (folder := _folder(file))})
        reader = Pictures({folder: n for n, folder in enumerate(folders)}, self.channels, self.limit)
        return grouped([(file, file.size) for file in files], reader, self.on_error)


def _folder(file: File) -> str:
    return file.name.split("/")[0] if "/" in file.name else ""


@dataclass(frozen=True)
class Pictures:
    """Reads pictures, one a file."""

    labels: Mapping[str, int]
    channels: Channels | None
    limit: int

    def documents(self, piece: File, counts: Counts, bad: Bad) -> Iterator[Document]:
        """The one document of a picture's file."""
        with Stream(piece) as stream:
            raw = stream.read(self.limit + 1)
        if len(raw) > self.limit:
            raise too_large(piece.place, 0, self.limit)
        document: Document = {"image": decode_image(raw, piece.place, self.channels), "id": piece.name}
        if folder := _folder(piece):
            document |= {"label": self.labels[folder], "label_name": folder}
        yield document
