"""The slow oracle: per-sample gradients from autograd alone, one sample at a time.

It shares no code with the rules and knows no layer type. For sample ``i`` the gradient of the whole batch's loss is
propagated once more, and at the model's outputs only row ``i`` is let through.
"""

from __future__ import annotations

from gradscope.reference.batch import sample_count, take
from gradscope.reference.oracle import per_sample_gradients
from gradscope.reference.passes import LossFn

__all__ = ["LossFn", "per_sample_gradients", "sample_count", "take"]
