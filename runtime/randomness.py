"""The random numbers of a training step, from (seed, step) alone.

However a batch is split into parts and shared out among processes, its rays get the same numbers:
each order of numbers is drawn for the whole batch, and a part takes those of its rays.
"""

import numpy as np
import torch


def step_seeds(seed, step):
    """Seeds of the pixels drawn in a step and of the model's own draws."""
    return [int(state) for state in np.random.SeedSequence((seed, step)).generate_state(2)]


class BatchRandom:
    """The numbers that a model draws for the rays of a whole batch.

    seed: from which they follow; batch_size: rays of the batch; device: where they are drawn.
    """

    def __init__(self, seed, batch_size, device="cpu"):
        self.generator = torch.Generator(device).manual_seed(seed)
        self.batch_size, self.drawn = batch_size, []

    def for_rows(self, rows):
        """A function `sample(distribution, shape, like)` for the rays at `rows [n]` of the batch.

        distribution: `torch.rand` or `torch.randn`; shape: `[n, ...]`; like: a tensor of the wanted
        dtype. Parts that ask in the same order get their share of the same numbers.
        """
        count = 0

        def sample(distribution, shape, like):
            nonlocal count
            if count == len(self.drawn):
                self.drawn.append(distribution(
                    (self.batch_size, *shape[1:]), generator=self.generator, dtype=like.dtype,
                    device=like.device))
            count += 1
            return self.drawn[count - 1][rows]

        return sample
