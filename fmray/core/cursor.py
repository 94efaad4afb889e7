"""Where training stands in the data."""

from pydantic import BaseModel, ConfigDict, Field


class Cursor(BaseModel):
    """The next position to read in the global order.

    `row` counts positions (not row ids) consumed of `epoch`'s permutation, so it means the same on any number of workers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int = Field(0, ge=0)
    row: int = Field(0, ge=0)
