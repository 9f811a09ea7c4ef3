"""Train a model on a scene.

    python train.py                                    lego if downloaded, else the demo scene
    python train.py --model zipnerf --scene lego       hash grids: minutes on two CPU cores
    python train.py --dataset_name llff --scene trex   a forward-facing capture
    python train.py --preset paper --scene lego        the released configuration
    python train.py --scene lego --continue_training   resume from the newest checkpoint

Without --preset, `gpu` is taken on an accelerator and `laptop` on a CPU. Everything lands in
`log/<dataset>_<scene>_<model>/`; watch it with `python -m tensorboard.main --logdir=log`.
"""

from config import (
    Config,
    check_all_read,
    early_config,
    get_config,
    override,
    run_script,
    with_preset,
)

if __name__ == "__main__":
    early_config("train")

import math
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from cameras.alignment import TrainingCameras, align_cameras
from cameras.refinement import CameraRefinement
from checkpoint import (
    clean_run_folder,
    list_checkpoints,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
    write_config,
)
from datasets import NeRFDataset, load_dataset
from evaluate import evaluate, evaluation_folder, format_table, make_lpips, score_image
from image_utils import contact_sheet, mse_to_psnr, write_image
from loss import level_errors, weighted_loss
from model import build_model, compile_fields
from planning.sizes import plan_sizes
from planning.steps import longer_plan, plan_steps
from planning.summary import print_summary, print_time_estimate
from planning.timing import measure_times
from rendering import render_view
from runtime import distributed
from runtime.devices import select_device
from runtime.errors import UserError
from runtime.files import sole_writer
from runtime.flags import RESUMABLE
from runtime.memory import smaller_until_it_fits
from runtime.randomness import BatchRandom, step_seeds
from runtime.run_folder import run_folder
from runtime.run_log import open_log
from runtime.signals import StopSignals
from scheduler import make_optimizer, make_scheduler, scheduled_rate

# Default rays per micro-batch: what a CPU's cache holds of an MLP's layers, and what fills a GPU.
MICRO_BATCH_MLP_CPU, MICRO_BATCH = 64, 2048

# The fraction of a batch's pixels that show a known point, and the fraction of training at whose
# end the weight of their distances has fallen to 0.
POINTS_FRACTION, POINTS_UNTIL = 1 / 8, 1 / 2


def main(argv=None):
    """Train by a command line (`sys.argv` if None), or resume; the run folder holds the results."""
    config = get_config(argv, "train")
    device = select_device(config)
    if not config.continue_training:
        config = with_default_preset(config, device)
    with distributed.joined_ranks(device):
        return train(config, device)


def with_default_preset(config, device):
    """The config with the preset that fits the device, if neither it nor a file gives one."""
    if config.preset is not None or config.config:
        return config
    return with_preset(config, "laptop" if device.type == "cpu" else "gpu")


def train(config, device):
    """Train from the first step or from where a run stopped; returns the exit status.

    All ranks run this; each processes its slice of every batch, and rank 0 writes.
    """
    folder = run_folder(config)
    resumed = resume(config, folder) if config.continue_training else None
    if resumed:
        config = resumed.config
    else:
        check_all_read(config)
        refuse_to_overwrite(folder)
    rows = rank_slice(config)
    training, times = plan_training(config, device, folder, resumed)

    with StopSignals() as stop, locked_run_folder(folder, training.config, resumed):
        if not resumed:
            training.save(0)  # From here on --continue_training works.
        print_time_estimate(training, times)
        print_summary(training)
        with open_log(folder, training.first_step, training.config.max_steps, device) as log:
            step = run_steps(training, rows, log, stop)
        stopped = distributed.max_over_ranks(stop.received)
    if stopped:
        distributed.wait_for_all()
        print(f"Stopped by {signal.Signals(stopped).name} after step {step}; saved. Resume with "
              "--continue_training.")
        return 128 + stopped
    if training.data.test:
        print_scores(training)
    return 0


def run_steps(training, rows, log, stop):
    """The training steps, until the last one or a signal; returns the number of steps done."""
    config = training.config
    schedule = make_scheduler(training.optimizer, config, training.first_step)
    micro_batch = training.micro_batch
    for step in range(training.first_step, config.max_steps):
        scalars, micro_batch = train_step(training, schedule, step, rows, micro_batch)
        log.step(scalars)

        done, is_last = step + 1, step + 1 == config.max_steps
        if done % config.log_every == 0 or is_last:
            log.write_means(done, config.batch_size, scheduled_rate(config, done), mse_to_psnr)
        stopped = distributed.max_over_ranks(stop.received)
        if training.data.validation and (done % config.eval_every == 0 or is_last) and not stopped:
            validate(log, done, training)
        if done % config.save_every == 0 or is_last or stopped:
            log.check_finite()
            training.save(done)
        if stopped:
            return done
    return config.max_steps


def train_step(training, schedule, step, rows, micro_batch):
    """Sample the batch of a step, accumulate its gradient, and update weights and learning rate.

    Returns the scalars to log and the micro-batch size, as `compute_gradients` does.
    """
    config, model = training.config, training.model
    pixels_seed, model_seed = step_seeds(config.seed, step)
    train_frac = step / config.max_steps
    batch = training_batch(training.data.train, config, train_frac, pixels_seed, rows)
    rng = BatchRandom(model_seed, config.batch_size, training.device)
    model.set_train_frac(train_frac)
    scalars, micro_batch = compute_gradients(
        model, batch, config, train_frac, micro_batch, rng, training.refinement,
        training.data.train.cameras)
    if config.robust:
        scalars["low_errors"] = model.outliers.follow(scalars.pop("cells"), config.max_steps)
    training.optimizer.step()
    schedule.step()
    return scalars, micro_batch


def training_batch(dataset, config, train_frac, seed, rows):
    """A rank's rows of a step's random batch; at first some of its pixels show known points."""
    fade = max(0.0, 1 - train_frac / POINTS_UNTIL)
    num_points = math.ceil(POINTS_FRACTION * config.batch_size) if config.depth_points else 0
    batch = dataset.batch(config.batch_size, torch.Generator().manual_seed(seed), rows,
                          num_points if fade else 0)
    if batch.distance_weight is None:
        return batch
    return replace(batch, distance_weight=fade * batch.distance_weight)


def compute_gradients(model, batch, config, train_frac, micro_batch, rng=None, refinement=None,
                      cameras=None):
    """Accumulate the gradient of the batch's loss over micro-batches.

    Returns the scalars to log and the micro-batch size, which on out-of-memory is halved for the
    rest of the run. Gradients and scalars are summed over ranks. rng: `BatchRandom`; PyTorch's own
    random numbers if None. refinement: `CameraRefinement` of the training `cameras`, whose rays
    replace those of the batch; None to use the latter.
    """
    modules = torch.nn.ModuleList([model] if refinement is None else [model, refinement])
    weight = distributed.sum_over_ranks(batch.loss_weights().sum())
    # All pixels of a batch may be masked; its loss is then 0.
    batch = replace(batch, lossmult_sum=weight.clamp(min=1e-9))

    def accumulate(size):
        modules.zero_grad(set_to_none=True)
        totals = {}
        for part in batch.split(size):
            part = refinement.cast(cameras, part) if refinement else part
            outputs = model(part.rays, train_frac, rng and rng.for_rows(part.batch_index))
            loss, scalars = weighted_loss(config, model, outputs, part)
            if refinement:
                fraction = part.loss_weights().sum() / part.total_weight()
                variance = fraction * refinement.variance_loss(cameras)
                loss, scalars["loss/cameras"] = loss + variance, variance.detach()
            loss.backward()
            scalars["errors"] = level_errors(model, outputs, part)
            totals = {name: totals.get(name, 0) + value for name, value in scalars.items()}
        return totals

    totals, micro_batch = smaller_until_it_fits(micro_batch, accumulate)
    totals = {name: distributed.sum_over_ranks(value) for name, value in totals.items()}
    distributed.sum_gradients(modules.parameters())
    gradients = [p.grad for p in modules.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    # Jointly, the large gradient of one network would stop the others from learning.
    for part in model.clipped_parts() if config.grad_max_norm > 0 else ():
        torch.nn.utils.clip_grad_norm_(part.parameters(), config.grad_max_norm)
    return totals | {"gradient_norm": norm}, micro_batch


def validate(log, step, training):
    """Render one validation view beside its ground truth on rank 0, each time the next one."""
    if not distributed.is_main():
        return
    with log.paused():
        config, model, dataset = training.config, training.model, training.data.validation
        if training.refinement is not None:
            dataset = dataset.with_cameras(
                align_cameras(dataset.cameras, training.training_cameras()))
        index = (step // config.eval_every - 1) % len(dataset)
        images = render_view(model.eval(), dataset, index, config.chunk,
                             normals_from=config.normals_from)
        model.train()
        scores = score_image(images, dataset, index)
        sheet = contact_sheet([list(images.values())])
        log.image(step, "validation", sheet)
        (log.folder / "validation").mkdir(exist_ok=True)
        write_image(log.folder / "validation" / f"{step:08d}.png", sheet)
    log.write_scalars(step, {f"validation/{name}": scores[name] for name in ("psnr", "ssim")})


# Before the first step.


class Data(NamedTuple):
    """The datasets of a training; validation and test images are read one at a time."""

    train: NeRFDataset
    validation: NeRFDataset | None
    test: NeRFDataset | None


class Training(NamedTuple):
    """State of a training. micro_batch: rays per forward pass; first_step: steps already done."""

    config: Config
    device: torch.device
    folder: Path
    data: Data
    scenes: dict
    model: torch.nn.Module
    refinement: CameraRefinement | None
    optimizer: torch.optim.Optimizer
    micro_batch: int
    first_step: int

    @torch.no_grad()
    def training_cameras(self):
        """The original and refined `TrainingCameras`; None without --refine_cameras."""
        cameras = self.data.train.cameras
        return self.refinement and TrainingCameras(cameras, self.refinement(cameras))

    def save(self, step):
        """Write a checkpoint (rank 0 only)."""
        if distributed.is_main():
            save_checkpoint(self.folder, model=self.model, optimizer=self.optimizer, step=step,
                            config=self.config, scene=self.scenes,
                            keep=self.config.keep_checkpoints, refinement=self.refinement)


def resume(command_line, folder):
    """Load the run in `folder` and apply the typed flags.

    Raises UserError for a flag that a resumed run must not change, and for a `--max_steps` that
    would return it to an earlier stage.
    """
    run = load_checkpoint(folder, command_line.device)
    config, old_steps = override(run.config, command_line, RESUMABLE), run.config.max_steps
    config = config.replace(**longer_plan(run.config, command_line))
    if config.max_steps < old_steps:
        raise UserError(f"--max_steps {config.max_steps} was given, but the run in {folder} was "
                        f"started with {old_steps}; only a larger number can be given.")
    stage = run.model.stage_at(run.step / old_steps)
    if run.model.stage_at(run.step / config.max_steps) < stage:
        max_steps = int(run.step / run.model.stages[stage][0])
        raise UserError(f"--max_steps {config.max_steps} would return the run in {folder} to an "
                        "earlier stage, because stages are fractions of all steps; give at most "
                        f"{max_steps}.")
    if config.max_steps > old_steps:
        print(f"--max_steps is now {config.max_steps} instead of {old_steps}; the learning rate "
              "follows the longer schedule from here on.")
    print(f"Resuming {run.path} after step {run.step}.")
    return run.with_config(config)


def refuse_to_overwrite(folder):
    """Raise UserError if `folder` holds a run."""
    if list_checkpoints(folder):
        raise UserError(f"{folder} already holds a run; resume it with --continue_training, or "
                        "choose another --exp_name.")


@contextmanager
def locked_run_folder(folder, config, resumed):
    """Lock the run folder and write config.json (rank 0 only).

    A resumed run is cleaned first. Raises UserError if another run is there.
    """
    if not distributed.is_main():
        yield
        return
    with sole_writer(folder, "training"):
        if resumed:
            clean_run_folder(folder, resumed.step, config.keep_checkpoints)
        else:
            refuse_to_overwrite(folder)
        write_config(folder, config)
        yield


def plan_training(config, device, folder, resumed=None):
    """The `Training` of a config, and its measured `Times`.

    Sizes and steps of a new run that its flags leave open are planned. A resumed run (a
    `Checkpoint`) keeps its own; raises UserError if the scene is not the one it was trained on.
    """
    data = open_datasets(config, device)
    if resumed:
        data.train.check_same_scene(resumed.original_scene)
    else:
        config = plan_sizes(with_one_background(config, data.train), data.train)
    training = prepare(config, device, folder, data, resumed)
    times = measure_times(training, compute_gradients)
    if not resumed:
        training = training._replace(config=plan_steps(config, times.per_step))
    return training, times


def open_datasets(config, device):
    """The `Data` of a config's scene. Raises UserError before training for what scoring lacks."""
    with distributed.first_on_each_machine():
        train_set = load_dataset(config, "train", device)
    validation = test = None
    if config.eval_every:
        validation = load_dataset(config, "val", device, read_pixels=False)
    if config.final_eval:
        test = load_dataset(config, config.split, device, read_pixels=False)
        make_lpips(config.lpips, config.lpips_weights)
    return Data(train_set, validation, test)


def with_one_background(config, dataset):
    """The config with one background if transparent pixels were composited onto it.

    Raises UserError if a typed --bg_range draws it at random.
    """
    low, high = config.bg_range
    if low == high or not dataset.is_transparent:
        return config
    if "bg_range" in config.typed:
        raise UserError(f"the images in {dataset.loader.root} have transparent pixels, for which "
                        f"--bg_range {low:g} {high:g} draws no background; give the same number "
                        "twice, such as --bg_range 1 1, or --alpha mask.")
    background = dataset.scene.background
    print(f"The images have transparent pixels: the background is {background:g}, not drawn from "
          f"{low:g} to {high:g}.")
    return config.replace(bg_range=(background, background))


def prepare(config, device, folder, data, resumed):
    """The `Training` of a new model, or of a resumed run (a `Checkpoint`)."""
    model = resumed.model if resumed else build_model(
        config, device, data.train.scene.box, num_images=data.train.num_photographs)
    distributed.copy_from_main(model.state_dict().values())
    refinement = make_refinement(config, data.train, resumed)
    if config.compile:
        compile_fields(model, device)
    model.train()
    optimizer = make_optimizer(model, config, refinement)
    if resumed:
        restore_optimizer(optimizer, resumed)
    return Training(
        config, device, folder, data, data.train.scenes(), model, refinement, optimizer,
        micro_batch=config.micro_batch or default_micro_batch(config, device),
        first_step=resumed.step if resumed else 0)


def make_refinement(config, dataset, resumed):
    """The `CameraRefinement` of a dataset's cameras, new or resumed; None if they are fixed."""
    if not config.refine_cameras:
        return None
    if resumed:
        return resumed.refinement.to(dataset.device)
    refinement = CameraRefinement.for_cameras(dataset.cameras[: dataset.num_photographs])
    distributed.copy_from_main(refinement.state_dict().values())
    return refinement


def default_micro_batch(config, device):
    """Default number of rays per micro-batch.

    Every micro-batch touches all gradients, which makes small ones slow for hash grids.
    """
    is_mlp = config.geometry != "zipnerf"
    return MICRO_BATCH_MLP_CPU if device.type == "cpu" and is_mlp else MICRO_BATCH


def rank_slice(config):
    """The rows of each batch that this rank processes, as a `slice`."""
    if config.batch_size < distributed.num_ranks():
        raise UserError(f"--batch_size {config.batch_size} leaves some of "
                        f"{distributed.num_ranks()} ranks without a ray; raise it, or start fewer "
                        "ranks with --nproc_per_node.")
    return distributed.rank_rows(config.batch_size)


def print_scores(training):
    """Score the trained model; print the scores and their folder."""
    config, test = training.config, training.data.test
    results = evaluation_folder(training.folder, test, config.max_steps)
    scores = evaluate(training.model.eval(), test, config, config.max_steps, results,
                      training.training_cameras())
    print(format_table(scores))
    if test.split != config.split:
        print(f"The scene has no {config.split} views; these are scores of its {test.split} views.")
    print(f"PSNR {scores['psnr']:.2f} dB; background-only baseline {scores['blank_psnr']:.2f} dB.")
    contents = "Scores and images (overview: sheet.png)" if config.save_images else "Scores"
    print(f"{contents}: {results}")


if __name__ == "__main__":
    run_script(main)
