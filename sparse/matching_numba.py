"""CPU kernel of `features.match_views`, compiled by numba when it is first called.

It compares descriptors only of the few pairs near an epipolar plane, and computes what
`features.best_matches` computes in PyTorch; tests compare the two.
"""

import numpy as np
import torch
from torch import Tensor

from runtime.compiled import compiled

NONE = np.float32(-1)


def best_matches(normals: Tensor, directions: Tensor, a: Tensor, b: Tensor,
                 limit: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each feature of a and of b, its best match; see `features.best_matches`."""
    best = np.full(len(a), NONE), np.full(len(a), NONE)
    index = np.zeros(len(a), np.int64), np.zeros(len(b), np.int64)
    planes, rays = (x.T.contiguous().numpy() for x in (normals, directions))
    _best_matches(planes, rays, a.numpy(), b.numpy(), np.float32(limit), *best, *index,
                  np.full(len(b), NONE), np.empty(len(b), np.float32))
    return tuple(torch.from_numpy(values) for values in (*best, *index))


@compiled(fastmath={"reassoc", "contract"})
def _best_matches(planes, rays, a, b, limit, best, second, index, index_of_b, best_of_b, off):
    for i in range(len(a)):
        x, y, z = planes[0, i], planes[1, i], planes[2, i]
        for j in range(len(b)):
            off[j] = abs(x * rays[0, j] + y * rays[1, j] + z * rays[2, j])
        for j in range(len(b)):
            if off[j] <= limit:
                similarity = np.float32(0)
                for k in range(a.shape[1]):
                    similarity += a[i, k] * b[j, k]
                if similarity > best[i]:
                    second[i] = best[i]
                    best[i], index[i] = similarity, j
                elif similarity > second[i]:
                    second[i] = similarity
                if similarity > best_of_b[j]:
                    best_of_b[j], index_of_b[j] = similarity, i
