"""Per-sample gradients of convolutions with three rows in their kernel, at half the multiplications."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from gradscope.contributions.contribution import Probe
from gradscope.contributions.convolution_costs import READ, TILE, elements, room_of_tiles
from gradscope.contributions.geometry import Geometry
from gradscope.contributions.products import pieces
from gradscope.contributions.workspace import Workspace
from gradscope.wide import wide_dtype, widen

#: Rows of the kernel from the six products of a tile, 24 times as large: Toom-Cook at 0, 1, -1, 2, -2 and infinity.
INVERSE = ((6.0, -4.0, -4.0, 1.0, 1.0, 0.0), (0.0, -4.0, 4.0, 2.0, -2.0, 0.0), (0.0, -4.0, -4.0, 4.0, 4.0, 24.0))

#: A gradient shorter than this share of what its products could have come to may have lost its digits in the sums before them.
LOST = 1e-3


@dataclass(slots=True, eq=False)
class Tiled:
    """What one pass over the samples' gradients gives, kernel column first: ``[columns, 3, channels, channels out]``.

    Attributes:
        squares: ``‖hᵢ‖²``, float64 ``[n]``.
        lost: which of them may have lost their digits.
        second_moment: ``Σᵢ hᵢ²`` elementwise, or None.
        probes: ``⟨hᵢ, Rⱼ⟩`` from the gradients, ``[n, k]``, or None.
    """

    squares: Tensor
    lost: Tensor
    second_moment: Tensor | None
    probes: Tensor | None


def by_winograd(
    inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace,
    *, moments: bool, probe: Probe | None = None,
) -> Tiled:  # fmt: skip
    """Sums over samples of gradients, six products for each tile of four rows instead of twelve.

    Along the rows the algorithm of Toom and Cook; along the columns each offset of the kernel is a shift of flattened pixels, as
    in ``Shifts``.

    Args:
        inputs: padded input ``[n, channels, rows, columns]``.
        grads: gradient of the output ``[n, channels out, *positions]``.
        geometry: how the kernel walks.
        workspace: scratch memory.
        moments: whether the elementwise second moment is wanted.
        probe: random directions, or None.

    Source:
        Lavin and Gray (2015), arXiv:1509.09308: F(3, 4).
    """
    step = _step(inputs, grads, geometry, workspace)
    found: Tiled | None = None
    for x, g in zip(inputs.split(step), grads.split(step), strict=True):
        left, right = _of_inputs(x, geometry, workspace), _of_grads(g, x.shape[3], workspace)
        built = _gradients(left, right, geometry, workspace)
        probes = None if probe is None else _probes(built, probe)
        part = _reduced(built, _scale(left, right), probes, moments=moments)
        found = part if found is None else _joined(found, part)
    if found is None:
        raise ValueError("there are no samples to add up")
    return found


def _step(inputs: Tensor, grads: Tensor, geometry: Geometry, workspace: Workspace) -> int:
    factors, products = elements(inputs, grads, geometry)
    return pieces(inputs.shape[0], workspace.room(room_of_tiles(factors, products), inputs))


def _of_inputs(x: Tensor, geometry: Geometry, workspace: Workspace) -> Tensor:
    """The input's tiles, ``[6, m, channels, T + reach]``."""
    (m, channels, rows, width), reach = x.shape, (geometry.kernel[1] - 1) * geometry.dilation[1]
    tiles = (rows - 2) // TILE
    tiled = workspace.buffer("tiles", (READ, m, channels, tiles * width + reach), x)
    tiled[..., tiles * width :] = 0
    out = tiled[..., : tiles * width].unflatten(3, (tiles, width)).unbind()
    d = [x[:, :, first : first + TILE * (tiles - 1) + 1 : TILE] for first in range(READ)]
    u, v = (workspace.buffer(slot, d[0].shape, x) for slot in ("even rows", "odd rows"))
    torch.add(d[4], d[2], alpha=-4, out=u)
    torch.add(d[3], d[1], alpha=-4, out=v)
    torch.add(u, v, out=out[1])
    torch.sub(u, v, out=out[2])
    torch.sub(d[4], d[2], out=u)
    torch.sub(d[3], d[1], out=v)
    torch.add(u, v, alpha=2, out=out[3])
    torch.sub(u, v, alpha=2, out=out[4])
    torch.sub(d[5], d[3], out=out[5]).sub_(v, alpha=4)
    torch.sub(d[0], d[2], out=v)
    torch.add(u, v, alpha=4, out=out[0])
    return tiled


def _of_grads(g: Tensor, width: int, workspace: Workspace) -> Tensor:
    """The output gradient's tiles as wide as the input's, ``[6, m, channels out, T]``."""
    m, channels, rows, columns = g.shape
    tiles = rows // TILE
    tiled = workspace.buffer("tiles back", (READ, m, channels, tiles, width), g)
    tiled[..., columns:] = 0
    out = tiled[..., :columns].unbind()
    e = [g[:, :, first::TILE] for first in range(TILE)]
    u, v = (workspace.buffer(slot, e[0].shape, g) for slot in ("even rows", "odd rows"))
    out[0].copy_(e[0])
    out[5].copy_(e[3])
    for place, point in ((1, 1), (3, 2)):
        torch.add(e[0], e[2], alpha=point**2, out=u)
        torch.add(e[1], e[3], alpha=point**2, out=v)
        torch.add(u, v, alpha=point, out=out[place])
        torch.sub(u, v, alpha=point, out=out[place + 1])
    return tiled.flatten(3)


def _gradients(left: Tensor, right: Tensor, geometry: Geometry, workspace: Workspace) -> Tensor:
    """``[columns, 3, m, channels, channels out]``."""
    (_, m, channels, _), (out, positions) = left.shape, right.shape[2:]
    columns = geometry.kernel[1]
    products = workspace.buffer("products", (columns, READ, m, channels, out), left)
    built = workspace.buffer("product", (columns, 3, m, channels, out), left)
    flat, back = left.flatten(0, 1), right.flatten(0, 1).mT
    inverse = left.new_tensor(INVERSE).div_(24)
    for place in range(columns):
        shift = place * geometry.dilation[1]
        torch.bmm(flat[:, :, shift : shift + positions], back, out=products[place].flatten(0, 1))
        torch.mm(inverse, products[place].view(READ, -1), out=built[place].view(3, -1))
    return built


def _scale(left: Tensor, right: Tensor) -> Tensor:
    """What each sample's products can come to at most, float64 ``[m]``."""
    first, second = (widen(torch.linalg.vector_norm(side.flatten(2), dim=2)) for side in (left, right))
    bound = left.new_tensor(INVERSE, dtype=wide_dtype(left)).abs().amax(0).div_(24)
    return bound.matmul(first.mul_(second))


def _probes(built: Tensor, probe: Probe) -> Tensor:
    columns, rows, _, channels = built.shape[:4]
    rights = probe.right.reshape(-1, channels, rows, columns).permute(0, 3, 2, 1).unsqueeze(3).unbind()
    return torch.stack(
        [(built.matmul(left) * right).sum((0, 1, 3)) for left, right in zip(probe.lefts, rights, strict=True)], dim=1
    )


def _reduced(built: Tensor, scale: Tensor, probes: Tensor | None, *, moments: bool) -> Tiled:
    squares = widen(torch.linalg.vector_norm(built, dim=4)).square_().sum((0, 1, 3))
    second = built.square_().sum(2) if moments else None
    return Tiled(squares, ~(squares > scale.mul_(LOST).square_()) & (scale > 0), second, probes)


def _joined(found: Tiled, part: Tiled) -> Tiled:
    if found.second_moment is not None and part.second_moment is not None:
        found.second_moment.add_(part.second_moment)
    squares, lost = torch.cat([found.squares, part.squares]), torch.cat([found.lost, part.lost])
    probes = None
    if found.probes is not None and part.probes is not None:
        probes = torch.cat([found.probes, part.probes])
    return Tiled(squares, lost, found.second_moment, probes)


def placed(tiled: Tensor, shape: torch.Size) -> Tensor:
    """A sum in the order of the parameter, ``[channels out, channels, 3, columns]``."""
    columns, rows, channels, out = tiled.shape
    size = prod((columns, rows))
    return (
        tiled.reshape(size * channels, out)
        .mT.contiguous()
        .view(out, columns, rows, channels)
        .permute(0, 3, 2, 1)
        .reshape(shape)
    )
