"""Contributions of convolutions: what a kernel read at each position, times the gradient of what it gave there."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from gradscope.contributions.compiled import PRODUCT_KERNEL
from gradscope.contributions.compiled_convolution import (
    DEPTHWISE_KERNEL,
    SHIFTED_KERNEL,
    convolution_kernel,
    convolution_sums,
    depthwise_rows,
    looked,
    shifted_kernel,
    shifted_squares,
)
from gradscope.contributions.contribution import Contribution, Probe
from gradscope.contributions.convolution_costs import NATIVE, PATCHES, SHIFTED_GRAM, WINOGRAD, costs
from gradscope.contributions.dense import Dense
from gradscope.contributions.figures import Figures
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.outer import Outer
from gradscope.contributions.patches import by_native, by_patches, depthwise, filtered_probe, native_gradient
from gradscope.contributions.placed_probe import placed_probe
from gradscope.contributions.precision import working
from gradscope.contributions.rows import RowOrder
from gradscope.contributions.shifted_gram import by_shifted_gram
from gradscope.contributions.shifts import Shifts
from gradscope.contributions.winograd import by_winograd, placed
from gradscope.contributions.workspace import Workspace
from gradscope.kernels import Products, ShiftedGram
from gradscope.wide import widen

#: Up to this many channels (of a group) the right factor is met by a native convolution, which reads them less often.
FEW_CHANNELS = 8


class Convolution(Contribution):
    """``hᵢ = Σ_positions gradᵢᵀ patchᵢ``, group by group.

    Args:
        inputs: ``[n, channels, *spatial]``, with the geometry's padding still to come.
        grads: gradient of the output ``[n, channels_out, *positions]``.
        shape: the parameter's, ``[channels_out, channels/groups, *kernel]``.
        geometry: how the kernel walks.
    """

    def __init__(self, inputs: Tensor, grads: Tensor, shape: torch.Size, geometry: Geometry) -> None:
        inputs = working(inputs).resolve_conj()
        # What lies beyond the last position takes no part.
        self.inputs = inputs if any(geometry.padding) else geometry.reached(inputs, tuple(grads.shape[2:]))
        self.grads = working(grads)
        self.shape = shape
        self.geometry = geometry

    @property
    def samples(self) -> int:
        return self.inputs.shape[0]

    @property
    def nbytes(self) -> int:
        return self.inputs.nbytes + self.grads.nbytes

    def padded(self) -> Convolution:
        """The same with all padding in its input."""
        zeros = self.geometry.padding
        if not any(zeros):
            return self
        whole = F.pad(self.inputs, [amount for size in reversed(zeros) for amount in (size, size)])
        return Convolution(whole, self.grads, self.shape, replace(self.geometry, padding=()))

    def outer(self) -> Outer:
        """The same with all patches unfolded."""
        groups, positions = self.geometry.groups, tuple(self.grads.shape[2:])
        own = self.padded()
        patches = own.geometry.unfold(own.inputs, 0, positions, lambda _, shape, like: like.new_empty(shape))
        grads = self.grads.flatten(2).unflatten(1, (groups, -1)).transpose(2, 3)
        return Outer(patches.unflatten(0, (-1, groups)).transpose(2, 3), grads, self.shape)

    def squared_norms(self) -> Tensor:
        return self._figures(Workspace(), None, moments=False).squares

    def figures(
        self, probe: Probe | None = None, *, moments: bool = False, workspace: Workspace | None = None
    ) -> Figures:
        return self._figures(workspace or Workspace(), probe, moments=moments)

    def _figures(self, workspace: Workspace, probe: Probe | None, *, moments: bool) -> Figures:
        return self._by(self._algorithm(workspace, moments=moments), workspace, probe, moments=moments)

    def _algorithm(self, workspace: Workspace, *, moments: bool) -> str:
        inputs, geometry = self.inputs, self.geometry
        walk = (*geometry.zeros, geometry.stride, geometry.dilation, geometry.groups)

        def estimated() -> dict[str, float]:
            own = self.padded()
            return costs(own.inputs, own.grads, own.geometry, workspace, moments=moments)

        return workspace.choice(
            ("convolution", tuple(inputs.shape), tuple(self.shape), *walk, moments, inputs.dtype, inputs.device.type),
            estimated,
            lambda name: self._by(name, workspace, None, moments=moments).squares.sum(),
        )

    def sampled(self, chosen: Tensor, probe: Probe | None, *, moments: bool, workspace: Workspace) -> Figures:
        n = chosen.numel()
        some = Convolution(self.inputs[:n], self.grads[:n], self.shape, self.geometry)
        algorithm = some._algorithm(workspace, moments=moments)
        own = (self.inputs, self.grads, self.geometry, workspace, n)
        products = convolution_kernel(*own) if algorithm == PRODUCT_KERNEL else None
        shifted = shifted_kernel(*own) if algorithm == SHIFTED_KERNEL else None
        if products is None and shifted is None:
            return super().sampled(chosen, probe, moments=moments, workspace=workspace)
        # Before the kernel, which finds the factors in cache.
        probes, second = None if probe is None else self.probe(probe), None
        if products is not None:
            sums = convolution_sums(products, self.inputs, self.shape, workspace, moments=moments, chosen=chosen)
            found, second = sums.squares, sums.second_moment
        elif shifted is not None:
            found, lost = shifted_squares(shifted, self.inputs, workspace, chosen)
            if bool(lost.any()):
                found[lost] = self.select(chosen[lost])._by(PATCHES, workspace, None, moments=False).squares
        squares = found.new_full((self.samples,), float("nan"))
        squares[chosen] = found
        return Figures(squares, probes, second, algorithm)

    def _by(self, algorithm: str, workspace: Workspace, probe: Probe | None, *, moments: bool) -> Figures:
        if algorithm == SHIFTED_GRAM and probe is not None and self._has_cheap_probes():
            found = self._by(algorithm, workspace, None, moments=moments)
            return replace(found, probes=self.probe(probe))
        if algorithm == PRODUCT_KERNEL:
            kernel = convolution_kernel(self.inputs, self.grads, self.geometry, workspace)
            if kernel is not None:
                return self._by_kernel(kernel, workspace, probe, moments=moments)
        if algorithm == SHIFTED_KERNEL:
            shifted = shifted_kernel(self.inputs, self.grads, self.geometry, workspace)
            if shifted is not None:
                return self._by_shifted_kernel(shifted, workspace, probe)
        if algorithm == DEPTHWISE_KERNEL:
            built = depthwise_rows(self.inputs, self.grads, self.geometry)
            if built is not None:
                rows = Dense(built.view(self.samples, *self.shape))
                return replace(rows.figures(probe, moments=moments, workspace=workspace), algorithm=algorithm)
        if algorithm in (PRODUCT_KERNEL, SHIFTED_KERNEL, DEPTHWISE_KERNEL):
            # Chosen for others of these shapes; these a kernel cannot read.
            algorithm = PATCHES
        if algorithm != NATIVE and any(self.geometry.padding):
            return self.padded()._by(algorithm, workspace, probe, moments=moments)
        if algorithm == SHIFTED_GRAM:
            return self._by_gram(workspace, probe)
        if algorithm == WINOGRAD:
            return self._by_winograd(workspace, probe, moments=moments)
        # Each way reads what it needs once for each direction: the gradients, or the factors, whose pixels a stride sorts.
        small = self.shape[0] <= self.geometry.groups * prod(self.grads.shape[2:])
        given = probe if small or prod(self.geometry.stride) > 1 else None
        if algorithm == PATCHES:
            found = by_patches(
                self.inputs, self.grads, self.shape, self.geometry, given, moments=moments, workspace=workspace
            )
        elif algorithm == NATIVE:
            found = by_native(self.inputs, self.grads, self.shape, self.geometry, given, moments=moments)
        else:
            raise ValueError(f"no algorithm for convolutions is called {algorithm!r}")
        return found if probe is None or found.probes is not None else replace(found, probes=self.probe(probe))

    def _by_kernel(self, kernel: Products, workspace: Workspace, probe: Probe | None, *, moments: bool) -> Figures:
        along = None if probe is None else probe.single
        sums = convolution_sums(kernel, self.inputs, self.shape, workspace, moments=moments, directions=along)
        found = Figures(sums.squares, sums.probes, sums.second_moment, PRODUCT_KERNEL)
        return found if probe is None or along is not None else replace(found, probes=self.probe(probe))

    def _by_shifted_kernel(self, kernel: ShiftedGram, workspace: Workspace, probe: Probe | None) -> Figures:
        # Before the kernel, which finds the factors in cache.
        along = None if probe is None else self.probe(probe)
        squares, lost = shifted_squares(kernel, self.inputs, workspace)
        if bool(lost.any()):
            index = lost.nonzero()[:, 0]
            squares[index] = self.select(index)._by(PATCHES, workspace, None, moments=False).squares
        return Figures(squares, along, None, SHIFTED_KERNEL)

    def _by_gram(self, workspace: Workspace, probe: Probe | None) -> Figures:
        squares, lost, probes = by_shifted_gram(self.inputs, self.grads, self.geometry, probe, workspace)
        if bool(lost.any()):
            index = lost.nonzero()[:, 0]
            squares[index] = self.select(index)._by(PATCHES, workspace, None, moments=False).squares
        return Figures(squares, None if probes is None else widen(probes), None, SHIFTED_GRAM)

    def _by_winograd(self, workspace: Workspace, probe: Probe | None, *, moments: bool) -> Figures:
        tiled = by_winograd(self.inputs, self.grads, self.geometry, workspace, moments=moments, probe=probe)
        if bool(tiled.lost.any()):
            if moments or probe is not None:
                return self._by(PATCHES, workspace, probe, moments=moments)
            index = tiled.lost.nonzero()[:, 0]
            tiled.squares[index] = self.select(index)._by(PATCHES, workspace, None, moments=False).squares
        second = None if tiled.second_moment is None else placed(tiled.second_moment, self.shape)
        return Figures(tiled.squares, None if tiled.probes is None else widen(tiled.probes), second, WINOGRAD)

    def probe(self, probe: Probe) -> Tensor:
        # Of few channels the maps of all offsets are more than the image.
        found = looked(self.inputs, self.grads, self.geometry, probe) if self.shape[1] > FEW_CHANNELS else None
        if found is not None:
            return found
        if depthwise(self.shape, self.geometry) and not self.inputs.is_complex():
            found = by_native(self.inputs, self.grads, self.shape, self.geometry, probe).probes
            if found is not None:
                return found
        if self._has_cheap_probes():
            return widen(placed_probe(self.inputs, self.grads, self.geometry, probe))
        if self.shape[1] > FEW_CHANNELS:
            own = self.padded()
            return widen(Shifts.of(own.inputs, own.grads, own.geometry).probe(probe))
        return widen(filtered_probe(self.inputs, self.grads, self.shape, self.geometry, probe))

    def _has_cheap_probes(self) -> bool:
        """Whether factors are read as they are."""
        return self.shape[1] > FEW_CHANNELS and self.geometry.groups == 1

    def one(self, i: int) -> Tensor:
        return native_gradient(self.inputs[i : i + 1], self.grads[i : i + 1], self.shape, self.geometry)

    def dense(self) -> Tensor:
        return self.outer().dense()

    def second_moment(self) -> Tensor:
        moment = self._figures(Workspace(), None, moments=True).second_moment
        return self.inputs.new_zeros(self.shape) if moment is None else moment

    def select(self, index: Tensor) -> Convolution:
        return Convolution(self.inputs[index], self.grads[index], self.shape, self.geometry)

    def borrow(self, index: Tensor, workspace: Workspace) -> Convolution:
        inputs = workspace.chosen("chosen inputs", self.inputs, index)
        return Convolution(inputs, workspace.chosen("chosen gradients", self.grads, index), self.shape, self.geometry)

    def regroup(self, sample_of_row: Tensor, samples: int) -> Contribution:
        order, whole = RowOrder.of(sample_of_row, samples), self.outer()
        inputs, grads = (order.gather(f).transpose(1, 2).flatten(2, 3) for f in (whole.inputs, whole.grads))
        return Outer(inputs, grads, self.shape)
