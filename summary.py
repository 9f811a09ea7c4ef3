"""Summary of a training before its first step: expected time, model, data."""

import copy
from typing import NamedTuple

import torch

from cameras.alignment import num_refined_rays
from config import steps_before
from rendering import render_image
from runtime import distributed
from runtime.devices import time_calls
from runtime.randomness import BatchRandom
from runtime.run_log import format_duration
from scheduler import make_optimizer

# Fewest rays of the trial that estimates how long the training will take.
TIMING_RAYS = 256


def print_time_estimate(training, times):
    """Print the preset and how long training and its images will take; times: `measure_times`."""
    config, data = training.config, training.data
    num_steps = config.max_steps - training.first_step
    if not num_steps:
        return
    num_pixels = int(data.test.scene.offsets[-1]) if data.test else 0
    if data.validation:
        num_pixels += int(data.validation.scene.offsets[1]) * (num_steps // config.eval_every)
    seconds_of_training = times.per_step * num_steps
    seconds_of_images = times.per_rendered_ray * num_pixels
    if data.test and training.refinement:
        per_ray = times.per_step / config.batch_size
        seconds_of_images += per_ray * num_refined_rays(data.test, config)
    print(f"{describe_preset(training)}about {format_duration(seconds_of_training)} of training "
          f"({config.batch_size / times.per_step:,.0f} rays/s) and "
          f"{format_duration(seconds_of_images)} for images and scores.", flush=True)


def describe_preset(training):
    """The preset, and why it was chosen if none was given to a new run."""
    config = training.config
    if config.preset is None:
        return "Expected: "
    chosen = "preset" in config.typed or training.first_step > 0
    reason = "" if chosen else f" (the default on {training.device.type})"
    return f"--preset {config.preset}{reason}: "


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


def print_summary(training):
    """Print the model, the dataset, the number of steps and the run folder."""
    config, model, dataset = training.config, training.model, training.data.train
    precision = str(model.compute_dtype).removeprefix("torch.")
    print(f"{config.model} ({precision}) on {config.dataset_name} {config.scene}: {len(dataset)} "
          f"views, {len(dataset.scene.pixels):,} pixels, {config.max_steps:,} steps of "
          f"{config.batch_size:,} rays on {device_name(training.device)}, into {training.folder}",
          flush=True)
    if len(model.stages) > 1:
        steps = [f"{steps_before(start, config.max_steps):,}" for start, _ in model.stages]
        print(f"Stages begin after steps {', '.join(steps)}; the last one learns colours from "
              "scratch.", flush=True)


def device_name(device):
    """The device, or the number of ranks and their kind of device."""
    count = distributed.num_ranks()
    return str(device) if count == 1 else f"{count} ranks ({device.type})"
