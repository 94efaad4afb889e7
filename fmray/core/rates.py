"""Measured amounts times declared rates; what is not declared is not guessed."""

import math


def product(*factors: float | None) -> float | None:
    """The product, or None when a factor is not known."""
    known = [factor for factor in factors if factor is not None]
    return math.prod(known) if len(known) == len(factors) else None


def energy_kwh(device_hours: float | None, power_w: float | None, pue: float | None) -> float | None:
    """Energy of devices of a mean power, times the site's power usage effectiveness; None when one of them is not known."""
    return product(device_hours, power_w, pue, 1e-3)
