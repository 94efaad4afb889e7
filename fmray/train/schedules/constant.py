"""The peak lr to the end."""

from typing import Literal

from fmray.train.schedules import Schedule


class Constant(Schedule):
    """No decay."""

    type: Literal["constant"] = "constant"

    def factor(self, progress: float) -> float:
        """Always 1."""
        return 1.0
