"""Several processes that train one model: their windows merged into the window of all samples."""

from gradscope.ranks.averaging import PARTS_ONLY
from gradscope.ranks.company import Company
from gradscope.ranks.ranks import distributed

__all__ = ["PARTS_ONLY", "Company", "distributed"]
