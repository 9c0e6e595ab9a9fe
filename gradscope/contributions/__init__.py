"""The algebra of per-sample gradients that are described, not built."""

from gradscope.contributions.contribution import Contribution, Probe
from gradscope.contributions.convolution import Convolution
from gradscope.contributions.dense import Dense, settle_vectors
from gradscope.contributions.outer import Outer
from gradscope.contributions.outer_bias import OuterBias
from gradscope.contributions.row import Row, RowBias, RowSketch, SketchMemory, settle, tables
from gradscope.contributions.scatter import Scatter
from gradscope.contributions.uses import sum_of_uses

__all__ = [
    "Contribution",
    "Convolution",
    "Dense",
    "Outer",
    "OuterBias",
    "Probe",
    "Row",
    "RowBias",
    "RowSketch",
    "Scatter",
    "SketchMemory",
    "settle",
    "settle_vectors",
    "sum_of_uses",
    "tables",
]
