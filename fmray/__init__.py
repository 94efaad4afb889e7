"""fmray: foundation models on Ray, from raw corpus to a served, audited model."""

# Importing a stage's module registers it: this list is the list of built-in stages.
from fmray import audit, evaluate, gate
from fmray.core.errors import FmrayError
from fmray.core.experiment import Experiment
from fmray.core.experiment import load_experiment as load
from fmray.data import prepare
from fmray.evaluate import comparison
from fmray.model import import_
from fmray.serve import deploy
from fmray.train import finetune, pretrain, search

__version__ = "0.1.0"
__all__ = ["Experiment", "FmrayError", "load"]
STAGE_MODULES = (import_, prepare, pretrain, evaluate, comparison, audit, gate, finetune, search, deploy)
