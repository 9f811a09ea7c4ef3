"""Train a model on a scene.

    python train.py                                    lego if downloaded, else the demo scene
    python train.py --preset demozip                   minutes on two CPU cores: hash grids
    python train.py --preset demo                      the same for a small mip-NeRF
    python train.py --dataset_name llff --scene trex   a forward-facing capture
    python train.py --preset paper --scene lego        the official configuration
    python train.py --scene lego --continue_training   go on from the newest checkpoint

Everything lands in `log/<dataset>_<scene>_<model>/`; watch it with
`python -m tensorboard.main --logdir=log`.
"""

import argparse
import signal
import time
from contextlib import contextmanager
from dataclasses import replace

from config import (
    CONTINUABLE,
    apply_typed_flags,
    check_flags,
    check_typed_flags,
    get_config,
    has_grids,
    resolve_scene,
    run_folder,
    steps_before,
)
from runtime.errors import UserError, run_script

if __name__ == "__main__":
    check_flags()

import torch

from checkpoint import (
    clean_run_folder,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    write_config,
)
from datasets import load_dataset
from evaluate import evaluate, evaluation_folder, format_table, score_image
from image_utils import contact_sheet, make_lpips, write_image
from loss import level_errors, weighted_loss
from model import build_model, compile_fields
from rendering import render_image, render_view
from runtime import distributed
from runtime.devices import select_device
from runtime.files import sole_writer
from runtime.memory import smaller_until_it_fits
from runtime.randomness import BatchRandom, step_seeds
from runtime.run_log import open_log
from runtime.signals import StopSignals
from scheduler import make_scheduler, scheduled_rate

# Fewest rays of the trial that tells how long a training on a CPU will take.
TIMING_RAYS = 256

# Rays of a step that go through the model at once: what stays in a CPU's cache, what fills a GPU.
MICRO_BATCH_MLP_CPU, MICRO_BATCH = 64, 2048


def main(argv=None):
    config = get_config(argv)
    device = select_device(config)
    with distributed.joined_ranks(device):
        return train(config, device, argv)


def train(config, device, argv=None):
    """Train, from the first step or from where a run stopped; returns the exit status.

    Each rank does the same, with its share of the rays; the main one writes.
    """
    if config.scene is None and not config.continue_training:
        print(f"No --scene given: training on {resolve_scene(config)!r}.")
    folder = run_folder(config)
    start = continue_run(config, folder, argv) if config.continue_training else None
    config = start.config if start else config
    if not start:
        check_typed_flags(config, argv)
        refuse_to_overwrite(folder)
    rows = rank_slice(config)
    with distributed.first_on_each_machine():
        dataset = load_dataset(config, "train", device)
    if start:
        dataset.check_same_scene(start.scene)
    scenes = dataset.scenes()
    # The pictures of these two are read one at a time, when they are looked at.
    validation = test = None
    if config.eval_every:
        validation = load_dataset(config, "val", device, read_pixels=False)
    if config.final_eval:
        test = load_dataset(config, config.split, device, read_pixels=False)
        make_lpips(config.lpips)  # What cannot be had is better said before the training.
    # Another device may take other parts, when the run goes on there.
    saved = argparse.Namespace(**vars(config))
    config.micro_batch = config.micro_batch or default_micro_batch(config, device)

    model = start.model if start else build_model(config, device, dataset.scene.box)
    distributed.copy_from_main(model.state_dict().values())
    if config.compile:
        compile_fields(model, device)
    model.train()
    optimizer = make_optimizer(model, config)
    if start:
        optimizer.load_state_dict(start.optimizer)
    first_step = start.step if start else 0
    schedule = make_scheduler(optimizer, config, first_step)

    def save(step):
        if distributed.is_main():
            save_checkpoint(folder, model=model, optimizer=optimizer, step=step, config=saved,
                            scene=scenes, keep=config.keep_checkpoints)

    with StopSignals() as stop, locked_run_folder(folder, saved, start):
        if not start:
            save(0)  # From here on --continue_training works, whenever the run is killed.
        print_summary(config, model, dataset, folder)
        if device.type == "cpu" and first_step < config.max_steps:
            print_time_estimate(model, dataset, validation, test, config, first_step)

        with open_log(folder, first_step, config.max_steps, device) as log:
            for step in range(first_step, config.max_steps):
                pixels_seed, model_seed = step_seeds(config.seed, step)
                batch = dataset.batch(
                    config.batch_size, torch.Generator().manual_seed(pixels_seed), rows)
                rng = BatchRandom(model_seed, config.batch_size, device)
                model.set_train_frac(step / config.max_steps)
                log.step(compute_gradients(model, batch, config, step / config.max_steps, rng))
                optimizer.step()
                schedule.step()

                done, last = step + 1, step + 1 == config.max_steps
                if done % config.log_every == 0 or last:
                    log.write_means(done, config.batch_size, scheduled_rate(config, done))
                stopped = distributed.max_over_ranks(stop.received)
                if validation and (done % config.eval_every == 0 or last) and not stopped:
                    with log.paused():
                        validate(log, done, model, validation)
                if done % config.save_every == 0 or last or stopped:
                    log.check_finite()
                    save(done)
                if stopped:
                    distributed.wait_for_all()
                    print(f"Stopped by {signal.Signals(stopped).name} after step {done}; saved. "
                          "Go on with --continue_training.")
                    return 128 + stopped
        stopped = distributed.max_over_ranks(stop.received)
        if stopped:
            return 128 + stopped

    if test:
        print_scores(model.eval(), test, config, folder)
    return 0


def validate(log, step, model, dataset):
    """Render one validation view beside its ground truth on rank 0; the views take turns."""
    if not distributed.is_main():
        return
    config = dataset.config
    index = (step // config.eval_every - 1) % len(dataset)
    images = render_view(model.eval(), dataset, index, config.chunk)
    model.train()
    scores = score_image(images, dataset, index)
    sheet = contact_sheet([list(images.values())])
    (log.folder / "validation").mkdir(exist_ok=True)
    write_image(log.folder / "validation" / f"{step:08d}.png", sheet)
    log.image(step, "validation", sheet)
    log.write_scalars(step, {f"validation/{name}": scores[name] for name in ("psnr", "ssim")})


def default_micro_batch(config, device):
    """How many rays of a batch go through the model at once, where nothing else is said.

    Each part costs a pass over all gradients, which of hash grids are too many for small parts.
    """
    return MICRO_BATCH_MLP_CPU if device.type == "cpu" and not has_grids(config) else MICRO_BATCH


def rank_slice(config):
    """The rays of each batch that are this rank's, as a `slice`."""
    if config.batch_size < distributed.num_ranks():
        raise UserError(f"--batch_size {config.batch_size} leaves some of "
                        f"{distributed.num_ranks()} ranks without a ray; give a larger one, or "
                        "start fewer by --nproc_per_node.")
    return distributed.rank_rows(config.batch_size)


@contextmanager
def locked_run_folder(folder, config, start):
    """Keep the run folder to this training, tidy and with its config; only the main rank does."""
    if not distributed.is_main():
        yield
        return
    with sole_writer(folder, "training"):
        if start:
            clean_run_folder(folder, start.step)
        else:
            refuse_to_overwrite(folder)
        write_config(folder, config)
        yield


def make_optimizer(model, config):
    """Adam, whose rate the schedule sets; grids may have a multiple of it."""
    grids = [p for name, p in model.named_parameters() if name.endswith("table")]
    others = [p for name, p in model.named_parameters() if not name.endswith("table")]
    groups = [{"params": others, "lr": 1.0}, {"params": grids, "lr": config.grid_lr_mult}]
    return torch.optim.Adam([group for group in groups if group["params"]],
                            betas=(0.9, config.adam_beta2), eps=config.adam_eps, fused=True)


def compute_gradients(model, batch, config, train_frac, rng=None):
    """Leave the gradient of the batch's loss in the model; returns the scalars to log.

    The batch goes through in parts whose losses add up, so memory depends on the part alone; it is
    halved for good where that does not suffice. Ranks give their shares of the batch; the gradient
    and the scalars are those of all of it. rng: `BatchRandom`; PyTorch's own numbers if None.
    """
    weight = distributed.sum_over_ranks(batch.loss_weights().sum())
    # All pixels of a batch may be masked; its loss is then 0.
    batch = replace(batch, lossmult_sum=weight.clamp(min=1e-9))

    def add_up(micro_batch):
        model.zero_grad(set_to_none=True)
        totals = {}
        for part in batch.split(micro_batch):
            outputs = model(part.rays, train_frac, rng and rng.for_rows(part.batch_index))
            loss, scalars = weighted_loss(config, model, outputs, part)
            loss.backward()
            scalars["errors"] = level_errors(model, outputs, part)
            totals = {name: totals.get(name, 0) + value for name, value in scalars.items()}
        return totals

    totals, config.micro_batch = smaller_until_it_fits(config.micro_batch, add_up)
    totals = {name: distributed.sum_over_ranks(value) for name, value in totals.items()}
    distributed.sum_gradients(model.parameters())
    trained = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
    if config.grad_max_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(trained, config.grad_max_norm, norm)
    return totals | {"gradient_norm": norm}


def refuse_to_overwrite(folder):
    """Raise UserError where a run lies in `folder` already."""
    if list_checkpoints(folder):
        raise UserError(f"{folder} holds a run already; go on with it by --continue_training, or "
                        "give this one another --exp_name.")


def continue_run(flags, folder, argv):
    """The run in `folder`, its config updated by the typed flags that a continuation may change.

    Raises UserError for a typed flag that would make it another run, or take it back.
    """
    start = load_checkpoint(folder, flags.device)
    config, old_length = start.config, start.config.max_steps
    apply_typed_flags(config, flags, argv, CONTINUABLE)
    if config.max_steps < old_length:
        raise UserError(f"--max_steps {config.max_steps} was given, but the run in {folder} was "
                        f"started with {old_length}; only a larger number can be given.")
    stage = start.model.stage_at(start.step / old_length)
    if start.model.stage_at(start.step / config.max_steps) < stage:
        most = int(start.step / start.model.stages[stage][0])
        raise UserError(f"--max_steps {config.max_steps} would take the run in {folder} back to an "
                        "earlier stage, as stages begin after shares of all steps; give at most "
                        f"{most}.")
    if config.max_steps > old_length:
        print(f"--max_steps {old_length} becomes {config.max_steps}: the learning rate follows "
              "the new length from here on.")
    print(f"Continuing {start.path} after step {start.step}.")
    return start


def print_summary(config, model, dataset, folder):
    """Say what is trained, on what, where, and for how long."""
    precision = str(model.compute_dtype).removeprefix("torch.")
    print(f"{config.model} ({precision}) on {config.dataset_name} {config.scene}: {len(dataset)} "
          f"views, {len(dataset.scene.pixels):,} pixels, {config.max_steps:,} steps of "
          f"{config.batch_size:,} rays on {device_name(dataset.device)}, into {folder}",
          flush=True)
    if len(model.stages) > 1:
        steps = [f"{steps_before(begin, config.max_steps):,}" for begin, _ in model.stages]
        print(f"Its stages begin after steps {', '.join(steps)}; colours begin anew with the last.",
              flush=True)


def device_name(device):
    """The device in words, or how many of its kind work together."""
    count = distributed.num_ranks()
    return str(device) if count == 1 else f"{count} ranks ({device.type})"


def print_time_estimate(model, dataset, validation, test, config, first_step):
    """Time a few rays and say how long the training and its pictures will take."""
    num_steps = config.max_steps - first_step
    count = max(TIMING_RAYS, config.micro_batch) * distributed.num_ranks()
    count = min(count, config.batch_size)
    batch = dataset.batch(
        count, torch.Generator().manual_seed(0), distributed.rank_rows(count))
    per_trained = sum(
        share * time_per_ray(count, lambda begin=begin: compute_gradients(
            model, batch, config, begin, BatchRandom(0, count)))
        for begin, share in model.stages)
    model.zero_grad(set_to_none=True)
    model.eval()
    per_rendered = time_per_ray(count, lambda: render_image(model, batch.rays, config.chunk))
    model.train()
    pictures = int(test.scene.offsets[-1]) if test else 0
    if validation:
        pictures += int(validation.scene.offsets[1]) * (num_steps // config.eval_every)
    training, drawing = per_trained * config.batch_size * num_steps, per_rendered * pictures
    print(f"Expected on this CPU: about {format_duration(training)} of training "
          f"({1 / per_trained:,.0f} rays/s) and {format_duration(drawing)} for images and scores. "
          "`--preset demozip` is made for CPUs; --factor makes images smaller.", flush=True)


def time_per_ray(count, call):
    """The time of the second of two calls: the first also pays for memory that later ones reuse."""
    call()
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) / count


def format_duration(seconds):
    """A time in words."""
    return f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.1f} minutes"


def print_scores(model, test, config, folder):
    """Score the trained model, and say how well it did and where its pictures lie."""
    results = evaluation_folder(folder, test, config.max_steps)
    scores = evaluate(model, test, config, config.max_steps, results)
    print(format_table(scores))
    print(f"PSNR {scores['psnr']:.2f} dB; the background-only baseline has "
          f"{scores['blank_psnr']:.2f} dB.")
    what = "Scores and pictures, all at a glance in sheet.png" if config.save_images else "Scores"
    print(f"{what}: {results}")


if __name__ == "__main__":
    run_script(main)
