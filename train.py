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
import json
import math
import signal
import time
from contextlib import contextmanager, nullcontext
from dataclasses import replace

from config import (
    CONTINUABLE,
    UserError,
    apply_typed_flags,
    check_flags,
    check_typed_flags,
    get_config,
    has_grids,
    resolve_scene,
    run_folder,
    run_script,
    steps_before,
)

if __name__ == "__main__":
    check_flags()

import torch
from tqdm import tqdm

import distributed
from checkpoint import (
    clear_leftovers,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
    write_config,
)
from datasets import load_dataset
from evaluate import evaluate, evaluation_folder, render_pictures, report, score_image
from file_utils import sole_writer, write_whole
from image_utils import contact_sheet, make_lpips, mse_to_psnr, write_image
from loss import level_errors, weighted_loss
from memory import peak_memory, smaller_until_it_fits
from model import build_model, compile_fields, render_image, select_device
from randomness import BatchDraws, step_seeds
from scheduler import make_scheduler, scheduled_rate

# Fewest rays of the trial that tells how long a training on a CPU will take.
TRIAL_RAYS = 256

# Rays of a step that go through the model at once: what stays in a CPU's cache, what fills a GPU.
SMALL_PART, LARGE_PART = 64, 2048


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
    share = share_of_batch(config)
    with distributed.first_on_each_machine():
        dataset = load_dataset(config, "train", device)
    if start:
        dataset.check_is(start.scene)
    facts = dataset.facts()
    # The pictures of these two are read one at a time, when they are looked at.
    validation = test = None
    if config.eval_every:
        validation = load_dataset(config, "val", device, read_pixels=False)
    if config.final_eval:
        test = load_dataset(config, config.split, device, read_pixels=False)
        make_lpips(config.lpips)  # What cannot be had is better said before the training.
    # Another device may take other parts, when the run goes on there.
    saved = argparse.Namespace(**vars(config))
    config.micro_batch = config.micro_batch or part_of_batch(config, device)

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
                            scene=facts, keep=config.keep_checkpoints)

    with StopSignals() as stop, claimed_folder(folder, saved, start):
        if not start:
            save(0)  # From here on --continue_training works, whenever the run is killed.
        describe(config, model, dataset, folder)
        if device.type == "cpu" and first_step < config.max_steps:
            print_expected_time(model, dataset, validation, test, config, first_step)

        with open_log(folder, first_step, config, device) as log:
            for step in range(first_step, config.max_steps):
                pixels_seed, model_seed = step_seeds(config.seed, step)
                batch = dataset.batch(
                    config.batch_size, torch.Generator().manual_seed(pixels_seed), share)
                draws = BatchDraws(model_seed, config.batch_size, device)
                log.add(compute_gradients(model, batch, config, step / config.max_steps, draws))
                optimizer.step()
                schedule.step()

                done, last = step + 1, step + 1 == config.max_steps
                if done % config.log_every == 0 or last:
                    log.write(done)
                stopped = distributed.largest(stop.received)
                if validation and (done % config.eval_every == 0 or last) and not stopped:
                    log.write_pictures(done, model, validation)
                if done % config.save_every == 0 or last or stopped:
                    log.check_finite()
                    save(done)
                if stopped:
                    distributed.wait_for_all()
                    print(f"Stopped by {signal.Signals(stopped).name} after step {done}; saved. "
                          "Go on with --continue_training.")
                    return 128 + stopped
        stopped = distributed.largest(stop.received)
        if stopped:
            return 128 + stopped

    if test:
        print_scores(model.eval(), test, config, folder)
    return 0


def part_of_batch(config, device):
    """How many rays of a batch go through the model at once, where nothing else is said.

    Each part costs a pass over all gradients, which of hash grids are too many for small parts.
    """
    return SMALL_PART if device.type == "cpu" and not has_grids(config) else LARGE_PART


def share_of_batch(config):
    """The rays of each batch that are this rank's, as a `slice`."""
    if config.batch_size < distributed.num_ranks():
        raise UserError(f"--batch_size {config.batch_size} leaves some of "
                        f"{distributed.num_ranks()} ranks without a ray; give a larger one, or "
                        "start fewer by --nproc_per_node.")
    return distributed.my_rows(config.batch_size)


@contextmanager
def claimed_folder(folder, config, start):
    """Keep the run folder to this training, tidy and with its config; only the main rank does."""
    if not distributed.is_main():
        yield
        return
    with sole_writer(folder, "training"):
        if start:
            clear_leftovers(folder, start.step)
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


def compute_gradients(model, batch, config, train_frac, draws=None):
    """Leave the gradient of the batch's loss in the model; returns the scalars to log.

    The batch goes through in parts whose losses add up, so memory depends on the part alone; it is
    halved for good where that does not suffice. Ranks give their shares of the batch; the gradient
    and the scalars are those of all of it. draws: `BatchDraws`; PyTorch's own numbers if None.
    """
    weight = distributed.sum_over_ranks(batch.loss_weights().sum())
    # All pixels of a batch may be masked; its loss is then 0.
    batch = replace(batch, lossmult_sum=weight.clamp(min=1e-9))

    def add_up(micro_batch):
        model.zero_grad(set_to_none=True)
        totals = {}
        for part in batch.split(micro_batch):
            outputs = model(part.rays, train_frac, draws and draws.of(part.rows))
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
    if find_checkpoints(folder):
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


def describe(config, model, dataset, folder):
    """Say what is trained, on what, where, and for how long."""
    precision = str(model.compute_dtype).removeprefix("torch.")
    print(f"{config.model} ({precision}) on {config.dataset_name} {config.scene}: {len(dataset)} "
          f"views, {len(dataset.scene.pixels):,} pixels, {config.max_steps:,} steps of "
          f"{config.batch_size:,} rays on {described_device(dataset.device)}, into {folder}",
          flush=True)
    if len(model.stages) > 1:
        steps = [f"{steps_before(begin, config.max_steps):,}" for begin, _ in model.stages]
        print(f"Its stages begin after steps {', '.join(steps)}; colours begin anew with the last.",
              flush=True)


def described_device(device):
    """The device in words, or how many of its kind work together."""
    count = distributed.num_ranks()
    return str(device) if count == 1 else f"{count} ranks ({device.type})"


def print_expected_time(model, dataset, validation, test, config, first_step):
    """Time a few rays and say how long the training and its pictures will take."""
    num_steps = config.max_steps - first_step
    count = max(TRIAL_RAYS, config.micro_batch) * distributed.num_ranks()
    count = min(count, config.batch_size)
    batch = dataset.batch(
        count, torch.Generator().manual_seed(0), distributed.my_rows(count))
    per_trained = sum(
        share * seconds_per_ray(count, lambda begin=begin: compute_gradients(
            model, batch, config, begin, BatchDraws(0, count)))
        for begin, share in model.stages)
    model.zero_grad(set_to_none=True)
    model.eval()
    per_rendered = seconds_per_ray(count, lambda: render_image(model, batch.rays, config.chunk))
    model.train()
    pictures = int(test.scene.offsets[-1]) if test else 0
    if validation:
        pictures += int(validation.scene.offsets[1]) * (num_steps // config.eval_every)
    training, drawing = per_trained * config.batch_size * num_steps, per_rendered * pictures
    print(f"Expected on this CPU: about {duration(training)} of training ({1 / per_trained:,.0f} "
          f"rays/s) and {duration(drawing)} for pictures and scores. `--preset demozip` is "
          "made for CPUs; --factor makes pictures smaller.", flush=True)


def seconds_per_ray(count, call):
    """The time of the second of two calls: the first also pays for memory that later ones reuse."""
    call()
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) / count


def duration(seconds):
    """A time in words."""
    return f"{seconds / 3600:.1f} hours" if seconds > 3600 else f"{seconds / 60:.1f} minutes"


def print_scores(model, test, config, folder):
    """Score the trained model, and say how well it did and where its pictures lie."""
    results = evaluation_folder(folder, test, config.max_steps)
    scores = evaluate(model, test, config, config.max_steps, results)
    print(report(scores))
    print(f"PSNR {scores['psnr']:.2f} dB; a blank picture has {scores['blank_psnr']:.2f} dB.")
    what = "Scores and pictures, all at a glance in sheet.png" if config.save_images else "Scores"
    print(f"{what}: {results}")


class StopSignals:
    """While entered, Ctrl-C and SIGTERM are noted in `received`, for the loop to save and end."""

    def __enter__(self):
        self.received = 0
        self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.received = signal.Signals(number)
        # A second Ctrl-C does not wait for the step to end. SIGTERM may well come twice, from a
        # system that stops a whole job, and from torchrun.
        if number == signal.SIGINT:
            signal.signal(number, self.previous[number])

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def open_log(folder, first_step, config, device):
    """The main rank's `RunLog`, and for the others one that leaves everything out."""
    return RunLog(folder, first_step, config, device) if distributed.is_main() else NoLog()


class NoLog(nullcontext):
    """Takes what `RunLog` takes, and does nothing."""

    def __enter__(self):
        return self

    def add(self, *_):
        pass

    write = write_pictures = check_finite = add


class RunLog:
    """Scalars and pictures of a run: TensorBoard, `metrics.jsonl`, the progress bar.

    Scalars stay on the device until they are written, so that no step waits for it.
    """

    def __init__(self, folder, first_step, config, device):
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.config, self.device = folder, config, device
        self.pending = []
        before = drop_later_lines(folder / "metrics.jsonl", first_step)
        self.last_write = time.perf_counter()
        self.begin = self.last_write - before
        self.last_step = first_step
        self.bar = tqdm(total=config.max_steps, initial=first_step, disable=None, unit="step")
        self.metrics = open(folder / "metrics.jsonl", "a")
        self.tensorboard = SummaryWriter(folder, purge_step=first_step + 1)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()
        self.metrics.close()
        self.tensorboard.close()

    def add(self, scalars):
        """Take a step's scalars."""
        self.pending.append(scalars)
        self.bar.update()

    def check_finite(self):
        """Raise UserError if a loss or gradient since the last call is not finite."""
        for offset, scalars in enumerate(self.pending):
            values = (scalars["loss/total"], scalars["gradient_norm"])
            if not all(math.isfinite(float(value)) for value in values):
                step = self.last_step + offset + 1
                raise UserError(
                    f"the loss or its gradient is not finite at step {step} (loss {values[0]:g}, "
                    f"gradient norm {values[1]:g}). The last checkpoint in {self.folder} is good; "
                    "try a smaller --lr_init, a longer --lr_delay_steps, or --precision fp32."
                )

    def write(self, step):
        """Write the means of the scalars since the last call."""
        self.check_finite()
        if not self.pending:
            return
        now = time.perf_counter()
        names = self.pending[0].keys()
        means = {name: torch.stack([s[name] for s in self.pending]).mean(0) for name in names}
        levels = mse_to_psnr(means.pop("errors")).tolist()
        scalars = {name: float(value) for name, value in means.items()}
        scalars |= {f"psnr/level_{i}": value for i, value in enumerate(levels)}
        scalars["learning_rate"] = scheduled_rate(self.config, step)
        rays = len(self.pending) * self.config.batch_size
        scalars["rays_per_second"] = rays / (now - self.last_write)
        scalars["memory_gb"] = peak_memory(self.device) / 1e9
        self._write_scalars(step, scalars)
        text = f"psnr {levels[-1]:.2f} dB, {scalars['rays_per_second']:,.0f} rays/s"
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            left = (self.config.max_steps - step) * (now - self.last_write) / len(self.pending)
            print(f"step {step}/{self.config.max_steps}: {text}, {left / 60:.1f} min left",
                  flush=True)
        self.pending, self.last_step, self.last_write = [], step, now

    def write_pictures(self, step, model, dataset):
        """Render one validation view beside its truth; the views take turns."""
        begin = time.perf_counter()
        index = (step // self.config.eval_every - 1) % len(dataset)
        model.eval()
        pictures = render_pictures(model, dataset, index, self.config.chunk)
        model.train()
        scores = score_image(pictures, dataset, index)
        sheet = contact_sheet([list(pictures.values())])
        self.tensorboard.add_image("validation", sheet, step, dataformats="HWC")
        (self.folder / "validation").mkdir(exist_ok=True)
        write_image(self.folder / "validation" / f"{step:08d}.png", sheet)
        # Rendering is not training: its clock stood still.
        rendering = time.perf_counter() - begin
        self.begin += rendering
        self.last_write += rendering
        self._write_scalars(step, {f"validation/{k}": scores[k] for k in ("psnr", "ssim")})

    def _write_scalars(self, step, scalars):
        for name, value in scalars.items():
            self.tensorboard.add_scalar(name, value, step)
        seconds = time.perf_counter() - self.begin
        line = {"step": step, "seconds": round(seconds, 2)} | scalars
        self.metrics.write(json.dumps(line) + "\n")
        self.metrics.flush()


def drop_later_lines(path, step):
    """Keep the lines of `metrics.jsonl` up to a step: a continued run writes the others again.

    Returns the seconds of training that the kept lines tell.
    """
    if not path.exists():
        return 0.0
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    lines = "".join(json.dumps(line) + "\n" for line in kept)
    write_whole(path, lambda file: file.write(lines.encode()))
    return max((line["seconds"] for line in kept), default=0.0)


def read_metrics(path):
    """The lines of a `metrics.jsonl`, each a `dict`, but those that a kill left half written."""
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
            if line["step"] >= 0 and line["seconds"] >= 0:
                lines.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    return lines


if __name__ == "__main__":
    run_script(main)
