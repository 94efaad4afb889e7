"""An objective that goes wrong on one row of the data or on one node, and can be held up: a plugin, for tests in this process as well."""

import contextlib
import os
import time
from pathlib import Path
from typing import Literal

from fmray.core.errors import ArtifactError
from fmray.objectives import Batch, Forward, LossParts
from fmray.objectives.causal_lm import CausalLM


class Faulty(CausalLM):
    """Causal language modelling with a fault.

    Attributes:
        row: the id of the row that it shows on; it says nothing where that row is not in the batch.
        hang_once: a file that is made by whoever hangs first; None does not hang.
        nan: whether the loss is no number.
        damaged: whether the row cannot be used, as a file that breaks while it is read.
        die_on: a file with the id of a node whose workers die on any row, once it is there.
        slow_while: a file with the seconds that every step lasts longer, as long as it is there.
    """

    type: Literal["faulty"] = "faulty"  # type: ignore[assignment]
    row: int = 37
    hang_once: str | None = None
    nan: bool = False
    damaged: bool = False
    die_on: str | None = None
    slow_while: str | None = None

    def loss(self, model: Forward, batch: Batch) -> LossParts:
        """See `CausalLM`, unless the fault shows."""
        if self.die_on is not None and Path(self.die_on).exists() and Path(self.die_on).read_text() == _node_id():
            os._exit(1)
        if self.slow_while is not None:
            with contextlib.suppress(OSError):
                time.sleep(float(Path(self.slow_while).read_text()))
        parts = super().loss(model, batch)
        if self.row not in batch["row_ids_B"].tolist():
            return parts
        if self.damaged:
            raise ArtifactError("the row is damaged", where="part-00000.parquet")
        if self.hang_once is not None:
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.hang_once, os.O_CREAT | os.O_EXCL))
                time.sleep(600)
        return LossParts(parts.sum * float("nan"), parts.count) if self.nan else parts


def _node_id() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())
