"""fmray: foundation models on Ray, from raw corpus to a served, audited model."""

from fmray.core.errors import FmrayError
from fmray.core.experiment import Experiment
from fmray.core.experiment import load_experiment as load

__version__ = "0.1.0"
__all__ = ["Experiment", "FmrayError", "load"]
