"""Summary of a training before its first step: expected time, model, data."""

from cameras.alignment import num_refined_rays
from config import steps_before
from runtime import distributed
from runtime.run_log import format_duration


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
