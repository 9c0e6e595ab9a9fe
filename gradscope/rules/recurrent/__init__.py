"""Recurrent layers: the gradients of their gates at every time step, from which all contributions are outer products."""

from gradscope.rules.recurrent.form import Form, find_form
from gradscope.rules.recurrent.lengths import Lengths
from gradscope.rules.recurrent.recurrence import Recurrence

__all__ = ["Form", "Lengths", "Recurrence", "find_form"]
