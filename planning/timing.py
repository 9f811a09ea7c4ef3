"""Seconds of a training step and of a rendered ray, measured before the first step."""

import copy
from typing import NamedTuple

import torch

from rendering import render_image
from runtime import distributed
from runtime.devices import time_calls
from runtime.randomness import BatchRandom
from scheduler import make_optimizer

# Fewest rays of the trial that estimates how long the training will take.
TIMING_RAYS = 256


class Times(NamedTuple):
    """Seconds of a training step, averaged over the stages of training, and of a rendered ray."""

    per_step: float
    per_rendered_ray: float


def measure_times(training, compute_gradients):
    """The `Times` of a training, the slowest rank's, by trials that change nothing.

    compute_gradients: that of train.py. A trial takes as many rays as fit at once; the time of the
    optimizer's step is included.
    """
    config, device, model = training.config, training.device, training.model
    count = max(TIMING_RAYS, training.micro_batch) * distributed.num_ranks()
    count = min(count, config.batch_size)
    batch = training.data.train.batch(
        count, torch.Generator().manual_seed(0), distributed.rank_rows(count))

    def train_at(start):
        compute_gradients(model, batch, config, start, training.micro_batch,
                          BatchRandom(0, count, device), training.refinement,
                          training.data.train.cameras)

    per_step = config.batch_size / count * sum(
        length * time_calls(device, lambda start=start: train_at(start))
        for start, length in model.stages)
    per_step += time_optimizer(training)
    model.zero_grad(set_to_none=True)
    model.eval()
    model.set_train_frac(model.stages[-1][0])  # The scores are those of the last stage.
    per_rendered = time_calls(
        device, lambda: render_image(model, batch.rays, config.chunk)) / count
    model.set_train_frac(training.first_step / config.max_steps)
    model.train()
    return Times(*map(distributed.max_over_ranks, (per_step, per_rendered)))


def time_optimizer(training):
    """Seconds of a step of a copy of the optimizer, with the gradients that the model has now."""
    model, refinement = copy.deepcopy((training.model, training.refinement))
    for copied, original in zip(model.parameters(), training.model.parameters(), strict=True):
        copied.grad = original.grad
    optimizer = make_optimizer(model, training.config, refinement)
    return time_calls(training.device, optimizer.step)
