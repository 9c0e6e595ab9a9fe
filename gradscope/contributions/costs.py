"""What an algorithm's steps cost, measured: the table behind the choice."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rates:
    """Nanoseconds on one kind of device. Only their ratios matter.

    Attributes:
        multiply: one multiply-add inside a product of matrices.
        shift: adding one element of a shifted block to another.
        unfold: copying one element of a patch.
        reduce: reading one element of a product and adding up its square.
        call: one call of torch.
        native: one call of the native backward of a convolution, beside its multiply-adds.
        native_multiply: one multiply-add inside it.
    """

    multiply: float
    shift: float
    unfold: float
    reduce: float
    call: float
    native: float
    native_multiply: float


#: Measured in float32 on one core of an EPYC (Zen 4) with MKL and oneDNN. The values for CUDA are estimates from data sheets:
#: there a call weighs as much as millions of multiply-adds.
_RATES = {
    "cpu": Rates(0.021, 0.2, 0.09, 0.1, 4e3, 5e4, 0.0235),
    "cuda": Rates(1e-4, 4e-3, 4e-3, 2e-3, 8e3, 4e4, 1e-4),
}


def rates(tensor: Tensor) -> Rates:
    """The table's row for the tensor's device; devices that nobody measured are taken for CUDA's."""
    return _RATES.get(tensor.device.type, _RATES["cuda"])
