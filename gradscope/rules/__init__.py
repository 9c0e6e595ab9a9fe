"""Layer types and how their contributions are described: an open set."""

from gradscope.rules.rule import Rule
from gradscope.rules.table import find_rule, register_rule

__all__ = ["Rule", "find_rule", "register_rule"]
