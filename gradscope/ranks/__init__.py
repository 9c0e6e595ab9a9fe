"""Several processes that train one model: their windows merged into the window of all samples."""

from gradscope.ranks.numbers import Head
from gradscope.ranks.ranks import LEVELS, Ranks, distributed

__all__ = ["LEVELS", "Head", "Ranks", "distributed"]
