"""The random numbers of a training step, determined by (seed, step).

They are sampled for the whole batch, and each micro-batch takes the rows of its rays. So a ray gets
the same numbers whatever the number of ranks and the size of the micro-batches.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def step_seeds(seed: int, step: int) -> list[int]:
    """The two seeds of a training step: of its pixels, and of the model's random numbers."""
    return [int(state) for state in np.random.SeedSequence((seed, step)).generate_state(2)]


class BatchRandom:
    """The random numbers of a model for the rays of one batch.

    seed: of the generator; batch_size: number of rays of the whole batch, over all ranks; device:
    where numbers are sampled.
    """

    def __init__(self, seed: int, batch_size: int, device: torch.device | str = "cpu"):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.batch_size = batch_size
        # One tensor per call of a forward pass, in the order of the calls.
        self.sampled: list[Tensor] = []

    def for_rows(self, rows: Tensor) -> Callable[..., Tensor]:
        """A function `sample(distribution, shape, like)` for the rays at `rows [n]` of the batch.

        distribution: `torch.rand` or `torch.randn`; shape: `[n, ...]`; like: a tensor of the
        desired dtype and device. The k-th call for any rows returns those rows of the k-th tensor.
        """
        count = 0

        def sample(distribution: Callable[..., Tensor], shape: tuple[int, ...],
                   like: Tensor) -> Tensor:
            nonlocal count
            if count == len(self.sampled):
                self.sampled.append(distribution(
                    (self.batch_size, *shape[1:]), generator=self.generator, dtype=like.dtype,
                    device=like.device))
            count += 1
            return self.sampled[count - 1][rows]

        return sample
