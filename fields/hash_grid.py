"""Multiresolution hash encoding (Müller et al., SIGGRAPH 2022, section 3; Zip-NeRF, section 3).

Points are in the unit cube. A level of resolution n has n cells along each side and features at
their corners; a point's are interpolated between the 8 corners of its cell. Levels whose corners
fit into the table are dense; of the others, corners share entries by a hash.
"""

import functools
import importlib
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

# Of the hash: the exclusive or of coordinates times these (Müller et al., eq. 4).
PRIMES = (1, 2654435761, 805459861)


class Levels(NamedTuple):
    """resolutions: cells along a side; first, sizes: where each level's entries begin, and how many
    there are. Each is a tuple with one number a level, coarse to fine."""

    resolutions: tuple
    first: tuple
    sizes: tuple

    @property
    def num_entries(self):
        return self.first[-1] + self.sizes[-1]


def make_levels(coarsest, finest, log2_size):
    """`Levels` that double from `coarsest` to at most `finest`, of at most 2^log2_size entries."""
    resolutions, first, sizes = [coarsest], [0], []
    while 2 * resolutions[-1] <= finest:
        resolutions.append(2 * resolutions[-1])
    for resolution in resolutions:
        sizes.append(min((resolution + 1) ** 3, 2**log2_size))
        first.append(first[-1] + sizes[-1])
    return Levels(tuple(resolutions), tuple(first[:-1]), tuple(sizes))


def encode(points, weights, table, levels):
    """Features `[M, L * F]` of M groups of J points: weighted, and averaged over each group.

    points: `[M, J, 3]`, kept inside [0, 1]; weights: `[M, J, L]`, of a point on each level, without
    gradient; table: `[levels.num_entries, F]`. Differentiable in the table and the points.
    On a CPU the fast kernels do it where numba is installed, elsewhere `encode_torch`.
    """
    if points.device.type == "cpu" and table.dtype == torch.float32 and has_numba():
        return NumbaEncode.apply(points, weights, table, levels)
    return encode_torch(points, weights, table, levels)


def encode_torch(points, weights, table, levels):
    """`encode` in PyTorch's own operations: any device, any precision."""
    features, weights = [], weights.detach()
    for level, resolution in enumerate(levels.resolutions):
        scaled = points.nan_to_num(nan=0.0).clamp(0, 1) * resolution
        corner = scaled.detach().floor().clamp(max=resolution - 1)
        fraction = scaled - corner
        corner = corner.long()
        total = 0
        for offset in range(8):
            bits = [offset >> axis & 1 for axis in range(3)]
            index = table_index(
                [corner[..., axis] + bits[axis] for axis in range(3)], level, levels)
            share = 1
            for axis, bit in enumerate(bits):
                share = share * (fraction[..., axis] if bit else 1 - fraction[..., axis])
            total = total + (share * weights[..., level])[..., None] * table[index]
        features.append(total.mean(dim=1))
    return torch.cat(features, dim=-1)


def table_index(corner, level, levels):
    """The table's entry of integer coordinates x, y, z at a level."""
    side, size = levels.resolutions[level] + 1, levels.sizes[level]
    x, y, z = corner
    if size == side**3:
        return levels.first[level] + x + side * (y + side * z)
    mixed = x * PRIMES[0] ^ y * PRIMES[1] ^ z * PRIMES[2]
    return levels.first[level] + (mixed & (size - 1))


@functools.cache
def has_numba():
    """Whether the kernels' compiler is installed and works here."""
    try:
        importlib.import_module("fields.kernels_numba")
    except ImportError as error:
        print(f"Hash grids are several times as slow as they could be: {error}; pip install -r "
              "requirements.txt.", flush=True)
        return False
    return True


class NumbaEncode(torch.autograd.Function):
    """`encode` by the kernels of kernels_numba.py."""

    @staticmethod
    def forward(ctx, points, weights, table, levels):
        from fields import kernels_numba

        ctx.save_for_backward(points, weights, table)
        ctx.levels = levels
        return kernels_numba.forward(points, weights, table, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        from fields import kernels_numba

        points, weights, table = ctx.saved_tensors
        of_points = of_table = None
        if ctx.needs_input_grad[0]:
            of_points = kernels_numba.points_gradient(gradient, points, weights, table, ctx.levels)
        if ctx.needs_input_grad[2]:
            of_table = kernels_numba.table_gradient(gradient, points, weights, table, ctx.levels)
        return of_points, None, of_table, None
