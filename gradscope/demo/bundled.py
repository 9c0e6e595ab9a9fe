"""Data sets that scikit-learn ships inside its package."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from gradscope.errors import MissingDependencyError


def bundled(name: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of scikit-learn's data set ``name``, one row per sample, as float64 and as they are stored.

    Raises:
        MissingDependencyError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"demo --task {name}: its samples come with scikit-learn, which is not installed here. Install "
            "it with `pip install scikit-learn`, or run the task that needs nothing more: `gradscope demo --task text`."
        ) from error
    found = getattr(datasets, f"load_{name}")()
    return torch.from_numpy(found.data), torch.from_numpy(found.target)


def split(inputs: Tensor, targets: Tensor, *, held_out: float = 0.2) -> tuple[TensorDataset, Tensor, Tensor]:
    """Training samples, and the inputs and targets that are held out, drawn by torch's global random state."""
    order = torch.randperm(len(inputs))
    cut = round(len(inputs) * held_out)
    return TensorDataset(inputs[order[cut:]], targets[order[cut:]]), inputs[order[:cut]], targets[order[:cut]]
