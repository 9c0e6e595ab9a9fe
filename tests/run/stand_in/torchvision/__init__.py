"""What the foreign scripts use of torchvision, on digits that scikit-learn brings along: nothing is downloaded."""

from torchvision import datasets, transforms, utils

__all__ = ["datasets", "transforms", "utils"]
