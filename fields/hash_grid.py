"""Multiresolution hash encoding (Müller et al., SIGGRAPH 2022, section 3; Zip-NeRF, section 3).

Points lie in the unit cube. A level of resolution n has n^3 cells with features at their centres; a
point's features are interpolated between the 8 nearest centres. Levels that fit the table are
dense; finer ones are hashed. Lattice and hash are those of Zip-NeRF's code, so its grids can be
loaded.
"""

import functools
import importlib
import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

logger = logging.getLogger(__name__)

# Factors of the hash, an exclusive or of scaled coordinates (Müller et al., eq. 4; the factors are
# those of Zip-NeRF's code).
PRIMES = (1, 19349663, 83492791)


class Levels(NamedTuple):
    """The levels of a grid, coarse to fine; each field is a tuple with one number per level.

    resolutions: cells per side; offsets, num_entries: offset and number of entries of each level in
    the table. A dense level has one entry per cell, the last axis varying fastest.
    """

    resolutions: tuple
    offsets: tuple
    num_entries: tuple

    @property
    def table_size(self) -> int:
        """Number of entries of all levels."""
        return self.offsets[-1] + self.num_entries[-1]

    def is_dense(self, level: int) -> bool:
        """Whether each cell of a level has an entry of its own."""
        return self.num_entries[level] == self.resolutions[level] ** 3


def make_levels(coarsest: int, finest: int, log2_table_size: int) -> Levels:
    """`Levels` that double from `coarsest` to at most `finest` cells per side.

    Each has at most 2^log2_table_size entries.
    """
    resolutions, offsets, num_entries = [coarsest], [0], []
    while 2 * resolutions[-1] <= finest:
        resolutions.append(2 * resolutions[-1])
    for resolution in resolutions:
        num_entries.append(min(resolution**3, 2**log2_table_size))
        offsets.append(offsets[-1] + num_entries[-1])
    return Levels(tuple(resolutions), tuple(offsets[:-1]), tuple(num_entries))


def encode(points: Tensor, weights: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """Trilinear features `[M, L * F]`, weighted per level and averaged over J multisamples.

    points: `[M, J, 3]`, clamped to [0, 1] (NaN to 0); weights: `[M, J, L]` of each point on each
    level, without gradient; table: `[levels.table_size, F]`. Differentiable in the table and the
    points. Dispatches to numba on a CPU, to Triton on CUDA, else to `encode_torch`.
    """
    kernels = kernels_for(points, table)
    if kernels is None:
        return encode_torch(points, weights, table, levels)
    return KernelEncode.apply(points, weights, table, levels, kernels)


def encode_torch(points: Tensor, weights: Tensor, table: Tensor, levels: Levels) -> Tensor:
    """`encode` in PyTorch operations, for any device and precision."""
    features, weights = [], weights.detach()
    for level, resolution in enumerate(levels.resolutions):
        position = points.nan_to_num(nan=0.0).clamp(0, 1) * resolution - 0.5
        cell = position.detach().floor()
        fraction, cell = position - cell, cell.long()
        total: Any = 0
        for offset in range(8):
            bits = [offset >> axis & 1 for axis in range(3)]
            corner = [cell[..., axis] + bit for axis, bit in enumerate(bits)]
            corner_weight: Any = 1
            for axis, bit in enumerate(bits):
                part = fraction[..., axis] if bit else 1 - fraction[..., axis]
                if levels.is_dense(level):  # There is nothing beyond the outermost centres.
                    part = part.where((corner[axis] >= 0) & (corner[axis] < resolution), 0)
                corner_weight = corner_weight * part
            index = table_index(corner, level, levels)
            total = total + (corner_weight * weights[..., level])[..., None] * table[index]
        features.append(total.mean(dim=1))
    return torch.cat(features, dim=-1)


def table_index(corner, level: int, levels: Levels):
    """Table index of an integer grid corner (x, y, z) at a level; a dense level clamps it."""
    resolution, num_entries = levels.resolutions[level], levels.num_entries[level]
    if levels.is_dense(level):
        x, y, z = (axis.clamp(0, resolution - 1) for axis in corner)
        return levels.offsets[level] + (x * resolution + y) * resolution + z
    x, y, z = (axis * prime for axis, prime in zip(corner, PRIMES, strict=True))
    return levels.offsets[level] + ((x ^ y ^ z) & (num_entries - 1))


def kernels_for(points: Tensor, table: Tensor):
    """The module whose kernels encode points of this device and precision; None if none does."""
    if points.dtype != torch.float32:
        return None
    if points.device.type == "cpu" and table.dtype == torch.float32 and has_numba():
        return importlib.import_module("fields.kernels_numba")
    if points.device.type == "cuda" and table.dtype != torch.float64 and has_triton():
        return importlib.import_module("fields.kernels_triton")
    return None


@functools.cache
def has_numba() -> bool:
    """Whether numba is installed and compiles the kernels."""
    return _can_import("fields.kernels_numba", "pip install -r requirements.txt")


@functools.cache
def has_triton() -> bool:
    """Whether Triton, which PyTorch brings for CUDA on Linux, is installed."""
    return _can_import("fields.kernels_triton", "pip install triton")


def _can_import(module, command):
    """Whether a module of kernels can be imported; if not, logs the command that helps."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        logger.info("Hash grids run several times slower without %s: %s; %s.",
                    module.split("_")[-1], error, command)
        return False
    return True


class KernelEncode(torch.autograd.Function):
    """`encode` by the kernels of a module, kernels_numba.py or kernels_triton.py."""

    @staticmethod
    def forward(ctx, points, weights, table, levels, kernels):
        ctx.save_for_backward(points, weights, table)
        ctx.levels, ctx.kernels = levels, kernels
        return kernels.forward(points, weights, table, levels)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        points, weights, table = ctx.saved_tensors
        inputs = gradient, points, weights, table, ctx.levels
        needs_points, _, needs_table, _, _ = ctx.needs_input_grad
        return (ctx.kernels.points_gradient(*inputs) if needs_points else None, None,
                ctx.kernels.table_gradient(*inputs) if needs_table else None, None, None)
