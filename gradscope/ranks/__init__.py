"""Several processes that train one model: their windows merged into the window of all samples."""

from gradscope.ranks.averaging import PARTS_ONLY
from gradscope.ranks.numbers import Head, directions
from gradscope.ranks.ranks import LEVELS, Ranks, distributed

__all__ = ["LEVELS", "PARTS_ONLY", "Head", "Ranks", "directions", "distributed"]
