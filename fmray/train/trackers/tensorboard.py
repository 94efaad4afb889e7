"""TensorBoard event files in the artifact's own folder: `tensorboard --logdir runs` finds those of all runs."""

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from fmray.train.trackers import Point, Sink, TrackedRun, Tracker

EVENTS = "events.out.tfevents.*"


class Tensorboard(Tracker):
    """Event files below `work/tensorboard` of the artifact, one an attempt; written with tensorboardX, which brings no TensorBoard along."""

    type: Literal["tensorboard"] = "tensorboard"
    needs: ClassVar[tuple[str, str]] = ("tensorboardX", "fmray")

    def open(self, run: TrackedRun) -> Sink:
        """See `Tracker`."""
        return _Events(run)


class _Events(Sink):
    def __init__(self, run: TrackedRun) -> None:
        from tensorboardX import SummaryWriter

        folder = run.folder / "tensorboard"
        self.last_step = max((event.step for event in events(folder) if event.HasField("summary")), default=0)
        fresh = not any(folder.glob(EVENTS))
        self._writer: Any = SummaryWriter(str(folder), flush_secs=5)
        if fresh:
            self._writer.add_text("config", f"```json\n{json.dumps(run.config, indent=2, default=str)}\n```", 0)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            for name, value in point.figures.items():
                self._writer.add_scalar(name, value, point.step, walltime=point.time)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def events(folder: Path) -> Iterator[Any]:
    """The events of all files, as tensorboardX' protocol buffers. A torn one, the last of a killed attempt, ends its file.

    A record is its length (8 bytes), a checksum of that (4), the event, and its checksum (4): TFRecord, of which the checksums are not looked at.
    """
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob(EVENTS)):
        data, at = path.read_bytes(), 0
        while at + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            if at + 16 + length > len(data):
                break
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
