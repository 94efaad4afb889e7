"""What the operator declares of the devices that a training runs on; nothing here is looked up or guessed."""

from pydantic import Field

from fmray.core.config import Config
from fmray.core.rates import energy_kwh, product


class Device(Config):
    """One worker's device. What is not declared leaves the figures that need it unknown.

    Attributes:
        memory_gb: its memory, GiB.
        peak_tflops: the most it computes in the run's precision, in 10^12 FLOP/s: the maker's figure without sparsity, or a measured one.
        mfu: the share of that peak that training is expected to reach.
        usd_per_hour: its price.
        power_w: its mean power under this load.
        pue: power usage effectiveness of the site: all power over that of the devices; 1 counts the devices alone.
    """

    memory_gb: float | None = Field(None, gt=0)
    peak_tflops: float | None = Field(None, gt=0)
    mfu: float | None = Field(None, gt=0, le=1)
    usd_per_hour: float | None = Field(None, ge=0)
    power_w: float | None = Field(None, gt=0)
    pue: float = Field(1.0, ge=1)

    def hours(self, flops: float) -> float | None:
        """Device hours that so many FLOPs take; None when peak or share are not declared."""
        if self.peak_tflops is None or self.mfu is None:
            return None
        return flops / (self.peak_tflops * 1e12 * self.mfu) / 3600

    def usd(self, flops: float) -> float | None:
        """What so many FLOPs cost; None when the hours or the price are not known."""
        return product(self.hours(flops), self.usd_per_hour)

    def spent(self, worker_hours: float) -> dict[str, float | None]:
        """Energy and price of workers held for so many hours in all; None each where its rate is not declared."""
        return {"energy_kwh": energy_kwh(worker_hours, self.power_w, self.pue), "cost_usd": product(worker_hours, self.usd_per_hour)}
