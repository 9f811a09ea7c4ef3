"""Samples of hash grids on a CPU: into the grid's cube, with the weights of its levels, by numba.

It computes what `HashField.cube_samples_torch` computes; tests compare the two.
"""

import math

import numpy as np
import torch

from runtime.compiled import compiled, run_on_threads

# Samples whose weights are computed level by level.
BLOCK = 512

ZERO, ONE, TWO, FOUR, SIX = (np.float32(x) for x in (0, 1, 2, 4, 6))
THIRD, TINY = np.float32(1 / 3), np.float32(np.finfo(np.float32).tiny)


def cube_samples(means, stds, contraction, low, side):
    """Points `[M, J, 3]` in the unit cube, stds `[M, J]` there and which samples are inside, `[M]`.

    means: `[M, J, 3]`; stds: `[M, J]`; low, side: corner and side of the cube.
    """
    points, scaled = torch.empty_like(means), torch.empty_like(stds)
    inside = torch.empty(len(means), dtype=torch.bool)
    run_on_threads(_cube_samples, len(means), means.contiguous().numpy(), stds.contiguous().numpy(),
                   contraction, low.numpy(), np.float32(1 / side), points.numpy(), scaled.numpy(),
                   inside.numpy())
    return points, scaled, inside


def level_weights(stds, resolutions):
    """`hash.downweights` of all levels, `[..., L]`; stds: `[...]` in units of the cube.

    resolutions: `[L]`, each twice the one before. With m = e^-y - 1 of a level, y of the next
    coarser one is 4 y, and its m is (1 + m)^4 - 1.
    """
    in_cells = stds.clamp(min=float(TINY)) * resolutions[-1]
    m = torch.expm1(-1 / (2 * math.pi) / in_cells**2)
    weights = m.new_empty(*m.shape, len(resolutions))
    run_on_threads(_level_weights, m.numel(), m.flatten().numpy(), weights.flatten(0, -2).numpy())
    return weights


@compiled()
def _contract(x, y, z, std):
    """`coord.contract_isotropic` of a Gaussian."""
    squared = x * x + y * y + z * z
    if squared <= ONE:
        return x, y, z, std
    norm = np.float32(math.sqrt(squared))
    scale = (TWO * norm - ONE) / squared
    ratio = scale / norm
    return scale * x, scale * y, scale * z, std * np.float32((ratio * ratio) ** THIRD)


@compiled()
def _cube_samples(first, last, means, stds, contraction, low, scale, points, scaled, inside):
    members = stds.shape[1]
    end = np.float32(members)
    for m in range(first, last):
        sum_x, sum_y, sum_z = ZERO, ZERO, ZERO
        for j in range(members):
            x, y, z, std = means[m, j, 0], means[m, j, 1], means[m, j, 2], stds[m, j]
            if contraction:
                x, y, z, std = _contract(x, y, z, std)
            x, y, z = (x - low[0]) * scale, (y - low[1]) * scale, (z - low[2]) * scale
            points[m, j, 0], points[m, j, 1], points[m, j, 2] = x, y, z
            scaled[m, j] = std * scale
            sum_x, sum_y, sum_z = sum_x + x, sum_y + y, sum_z + z
        inside[m] = ZERO <= sum_x <= end and ZERO <= sum_y <= end and ZERO <= sum_z <= end


@compiled()
def _level_weights(first, last, m, weights):
    for block in range(first, last, BLOCK):
        for level in range(weights.shape[1] - 1, -1, -1):
            for index in range(block, min(block + BLOCK, last)):
                value = m[index]
                weights[index, level] = math.sqrt(-value)
                m[index] = value * (FOUR + value * (SIX + value * (FOUR + value)))
