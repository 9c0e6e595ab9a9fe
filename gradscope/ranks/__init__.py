"""Several processes that train one model: their windows merged into the window of all samples."""

from gradscope.ranks.averaging import PARTS_ONLY, check_whole
from gradscope.ranks.company import Company
from gradscope.ranks.ranks import distributed

__all__ = ["PARTS_ONLY", "Company", "check_whole", "distributed"]
