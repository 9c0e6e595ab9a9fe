"""Small problems that try every kind of layer, and what is true of them."""

from zoo.layers import LAYERS
from zoo.measured import measure, train_window
from zoo.models import MODELS
from zoo.problem import Problem
from zoo.recurrent import RECURRENT_MODELS
from zoo.truth import Figures, contributions, figures

PROBLEMS = (*LAYERS, *MODELS, *RECURRENT_MODELS)
#: Those of which every parameter is described sample by sample.
EXACT = tuple(problem for problem in PROBLEMS if not problem.estimated)

__all__ = [
    "EXACT",
    "LAYERS",
    "MODELS",
    "PROBLEMS",
    "Figures",
    "Problem",
    "contributions",
    "figures",
    "measure",
    "train_window",
]
