"""Contributions of convolutions: outer products of input patches and output gradients, unfolded a chunk at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor

from gradscope.contributions.contribution import Contribution, Probe
from gradscope.contributions.convolution_norms import by_shifted_gram, cheapest, native_gradient
from gradscope.contributions.dense import widen
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.outer import Outer
from gradscope.contributions.outer_norms import outer_squared_norms
from gradscope.contributions.precision import squared_norm, working
from gradscope.contributions.rows import RowOrder

#: Elements of unfolded patches that exist at once.
CHUNK = 1 << 22


class Convolution(Contribution):
    """``hᵢ = Σ_positions gradᵢᵀ patchᵢ``, group by group.

    Args:
        inputs: padded input ``[n, channels, *spatial]``.
        grads: gradient of the output ``[n, channels_out, *positions]``.
        shape: the parameter's, ``[channels_out, channels/groups, *kernel]``.
        geometry: how the kernel walks.
        convolve: the native convolution without padding, ``(input, kernel, stride, dilation) -> output``.
    """

    def __init__(
        self, inputs: Tensor, grads: Tensor, shape: torch.Size, geometry: Geometry, convolve: Callable[..., Tensor]
    ) -> None:
        # What lies beyond the last position takes no part.
        self.inputs, self.grads = geometry.reached(working(inputs), tuple(grads.shape[2:])), working(grads)
        self.shape = shape
        self.geometry = geometry
        self.convolve = convolve

    @property
    def samples(self) -> int:
        return self.inputs.shape[0]

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.grads.nbytes

    def factors(self) -> Iterator[Outer]:
        """Outer products of a few samples at a time."""
        positions = tuple(self.grads.shape[2:])
        each = self.inputs.shape[1] * prod(self.geometry.kernel) * prod(positions)
        chunk = max(1, CHUNK // max(1, each))
        groups = self.geometry.groups
        for start in range(0, self.samples, chunk):
            part = slice(start, start + chunk)
            grads = self.grads[part].flatten(2).unflatten(1, (groups, -1)).transpose(2, 3)
            yield Outer(self.geometry.patches(self.inputs[part], positions), grads, self.shape)

    def squared_norms(self) -> Tensor:
        algorithm = cheapest(self.inputs, self.grads, self.geometry)
        if algorithm == "shifted Gram":
            squares, lost = by_shifted_gram(self.inputs, self.grads, self.geometry)
            if bool(lost.any()):
                index = lost.nonzero()[:, 0]
                squares[index] = self.select(index).by_samples()
            return squares
        if algorithm == "native":
            return self.by_samples()
        return torch.cat([outer_squared_norms(outer.inputs, outer.grads) for outer in self.factors()])

    def squares_and_probes(self, probe: Probe) -> tuple[Tensor, Tensor]:
        algorithm = cheapest(self.inputs, self.grads, self.geometry)
        if algorithm == "shifted Gram":
            return self.squared_norms(), self.probe(probe)
        if algorithm == "patches":
            pairs = [outer.squares_and_probes(probe) for outer in self.factors()]
            return torch.cat([norms for norms, _ in pairs]), torch.cat([probes for _, probes in pairs])
        # Each sample's gradient exists for a moment: its probes cost less than convolutions with random filters.
        squares, probes = [], []
        for i in range(self.samples):
            one = self.one(i)
            squares.append(squared_norm(one))
            probes.append(probe.of(one))
        return torch.stack(squares), widen(torch.stack(probes))

    def by_samples(self) -> Tensor:
        """Each sample's gradient by the native backward, squared and dropped."""
        return torch.stack([squared_norm(self.one(i)) for i in range(self.samples)])

    def one(self, i: int) -> Tensor:
        return native_gradient(self.inputs[i : i + 1], self.grads[i : i + 1], self.shape, self.geometry)

    def probe(self, probe: Probe) -> Tensor:
        """Right factor by one convolution with a single random filter, so that nothing is unfolded."""
        groups, k = self.geometry.groups, probe.right.shape[0]
        kernels = probe.right.reshape(k, *self.shape[1:]).repeat(groups, *[1] * (len(self.shape) - 1))
        right = self.convolve(
            self.inputs, kernels, stride=self.geometry.stride, dilation=self.geometry.dilation, groups=groups
        )
        if groups == 1:
            filters = probe.left.reshape(k, -1, *[1] * len(self.geometry.kernel))
            left = self.convolve(self.grads, filters).flatten(2).unsqueeze(1)
        else:
            grads = self.grads.flatten(2).unflatten(1, (groups, -1))
            left = torch.einsum("ngpt,kgp->ngkt", grads, probe.left.unflatten(1, (groups, -1)))
        return widen((left * right.flatten(2).unflatten(1, (groups, k))).sum((1, 3)))

    def dense(self) -> Tensor:
        return torch.cat([outer.dense() for outer in self.factors()])

    def select(self, index: Tensor) -> Convolution:
        return Convolution(self.inputs[index], self.grads[index], self.shape, self.geometry, self.convolve)

    def regroup(self, sample_of_row: Tensor, samples: int) -> Contribution:
        order = RowOrder(sample_of_row, samples)
        parts = list(self.factors())
        inputs = order.gather(torch.cat([part.inputs for part in parts])).transpose(1, 2).flatten(2, 3)
        grads = order.gather(torch.cat([part.grads for part in parts])).transpose(1, 2).flatten(2, 3)
        return Outer(inputs, grads, self.shape)
