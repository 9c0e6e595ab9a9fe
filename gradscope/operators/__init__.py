"""Operators of the autograd graph that consume a parameter directly, and how they show each sample's share: an open set.

A parameter that no layer owns (a class token, a table of positions, attention's projections) meets the samples in some operator.
That operator's node holds the other operand, and its output's gradient still has all samples apart.
"""

from gradscope.operators.operator import Operator
from gradscope.operators.table import find_operator

__all__ = ["Operator", "find_operator"]
