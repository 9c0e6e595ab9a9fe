"""Per-sample weight gradients built in registers and reduced there: compiled, optional, on x86-64 CPUs.

torch has no operator that squares a product before it reaches memory, none for half of a symmetric product, and none that finds a
length and a projection at one look; these are written in C. Without them (no compiler at installation, another processor,
``GRADSCOPE_KERNELS=0``) torch's operators give the same figures, up to rounding.
"""

from gradscope.kernels.depthwise import depthwise_gradients
from gradscope.kernels.elementwise import ratio_sums, variance_and_signal
from gradscope.kernels.gram import Gram
from gradscope.kernels.graph import walk
from gradscope.kernels.loaded import ABSENT, INSTRUCTIONS, VARIABLE, available, serves, serves_lines, width_of
from gradscope.kernels.normalized import normalized_sums
from gradscope.kernels.products import Products, Walk
from gradscope.kernels.readings import readings, rows_read
from gradscope.kernels.shifted import ShiftedGram

__all__ = [
    "ABSENT", "INSTRUCTIONS", "VARIABLE", "Gram", "Products", "ShiftedGram", "Walk", "available", "depthwise_gradients",
    "normalized_sums", "ratio_sums", "readings", "rows_read", "serves", "serves_lines", "variance_and_signal", "walk", "width_of",
]  # fmt: skip
