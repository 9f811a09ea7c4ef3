"""Train a model on a scene.

    python train.py                                    lego if downloaded, else the demo scene
    python train.py --preset demo                      minutes on two CPU cores
    python train.py --dataset_name llff --scene trex   a forward-facing capture
    python train.py --preset paper --scene lego        the official configuration
    python train.py --scene lego --continue_training   go on from the newest checkpoint

Everything lands in `log/<dataset>_<scene>_<model>/`; watch it with
`python -m tensorboard.main --logdir=log`.
"""

import json
import math
import signal
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import (
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
    write_config,
)
from config import (
    CONTINUABLE,
    UserError,
    get_config,
    resolve_scene,
    run_folder,
    run_script,
    typed_flags,
)
from datasets import load_dataset
from evaluate import evaluate, render_pictures, report, score_image
from file_utils import write_whole
from image_utils import contact_sheet, mse_to_psnr, write_image
from loss import level_errors, weighted_loss
from model import build_model, select_device
from scheduler import learning_rate, make_scheduler

# Rays of the trial that tells how long a training on a CPU will take.
TRIAL_RAYS = 256


def main(argv=None):
    config = get_config(argv)
    scene_was_given = config.scene is not None
    resolve_scene(config)
    folder = run_folder(config)
    start = continue_run(config, folder, argv) if config.continue_training else None
    config = start.config if start else config
    if not start:
        refuse_to_overwrite(folder)
        if not scene_was_given:
            print(f"No --scene given: training on {config.scene!r}.")
    device = select_device(config)
    dataset = load_dataset(config, "train", device)
    validation = load_dataset(config, "val", device) if config.eval_every else None
    model = start.model if start else build_model(config, device)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    if start:
        optimizer.load_state_dict(start.optimizer)
    first_step = start.step if start else 0
    schedule = make_scheduler(optimizer, config, first_step)
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config)
    facts = dataset.facts()

    def save(step):
        save_checkpoint(folder, model=model, optimizer=optimizer, step=step, config=config,
                        scene=facts, keep=config.keep_checkpoints)

    print(f"{config.model} on {config.dataset_name} {config.scene}: {len(dataset)} views, "
          f"{len(dataset.scene.pixels):,} pixels, {config.max_steps:,} steps of "
          f"{config.batch_size:,} rays on {device}, into {folder}")
    if device.type == "cpu":
        print_expected_time(model, dataset, config, config.max_steps - first_step)

    with RunLog(folder, first_step, config) as log, StopSignals() as stop:
        for step in range(first_step, config.max_steps):
            pixels_seed, model_seed = step_seeds(config.seed, step)
            batch = dataset.batch(config.batch_size, torch.Generator().manual_seed(pixels_seed))
            generator = torch.Generator(device).manual_seed(model_seed)
            log.add(compute_gradients(model, batch, config, step / config.max_steps, generator))
            optimizer.step()
            schedule.step()

            done = step + 1
            last = done == config.max_steps
            if done % config.log_every == 0 or last:
                log.write(done)
            if config.eval_every and (done % config.eval_every == 0 or last):
                log.write_pictures(done, model, validation)
            if done % config.save_every == 0 or last or stop.received:
                log.check_finite()
                save(done)
            if stop.received:
                print(f"Stopped by {stop.received.name} after step {done}; saved. Go on with "
                      "--continue_training.")
                return 128 + stop.received

    if config.final_eval:
        test = load_dataset(config, config.split, device)
        results = evaluate(model, test, config, config.max_steps,
                           folder / f"eval_{config.split}_{config.max_steps:08d}")
        print(report(results))
        print(f"pictures and scores: {folder / f'eval_{config.split}_{config.max_steps:08d}'}")
    return 0


def compute_gradients(model, batch, config, train_frac, generator):
    """Leave the gradient of the batch's loss in the model; returns the scalars to log.

    The batch goes through in parts whose losses add up, so memory depends on the part alone.
    """
    model.zero_grad(set_to_none=True)
    totals = {}
    for part in batch.split(config.micro_batch):
        outputs = model(part.rays, train_frac, generator=generator)
        loss, scalars = weighted_loss(config, model, outputs, part)
        loss.backward()
        scalars["errors"] = level_errors(outputs, part)
        totals = {name: totals.get(name, 0) + value for name, value in scalars.items()}
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    totals["gradient_norm"] = torch.nn.utils.get_total_norm(gradients)
    return totals


def step_seeds(seed, step):
    """Seeds of the pixels drawn in a step and of the model's own draws, from (seed, step) alone."""
    return [int(state) for state in np.random.SeedSequence((seed, step)).generate_state(2)]


def refuse_to_overwrite(folder):
    """Raise UserError where a run lies in `folder` already."""
    if (folder / "config.json").exists() or find_checkpoints(folder):
        raise UserError(f"{folder} holds a run already; go on with it by --continue_training, or "
                        "give this one another --exp_name.")


def continue_run(flags, folder, argv):
    """The run in `folder`, its config updated by the typed flags that a continuation may change.

    Raises UserError for a typed flag that would make it another run.
    """
    start = load_checkpoint(folder, select_device(flags))
    config, typed = start.config, typed_flags(argv)
    for name in sorted(typed - CONTINUABLE):
        old, new = getattr(config, name), getattr(flags, name)
        if old != new:
            raise UserError(f"--{name} {new} was given, but the run in {folder} was started with "
                            f"{old}; a continued run keeps it. Use another --exp_name for a new "
                            "run.")
    if "max_steps" in typed and flags.max_steps != config.max_steps:
        if flags.max_steps < start.step:
            raise UserError(f"--max_steps {flags.max_steps} was given, but the run in {folder} "
                            f"stands at step {start.step}.")
        print(f"--max_steps {config.max_steps} becomes {flags.max_steps}: the learning rate "
              "follows the new length from here on.")
    for name in typed & CONTINUABLE:
        setattr(config, name, getattr(flags, name))
    config.device = flags.device
    print(f"Continuing {start.path} after step {start.step}.")
    return start


def print_expected_time(model, dataset, config, num_steps):
    """Time a few rays through a step and say how long all steps will take."""
    rays = min(TRIAL_RAYS, config.batch_size)
    batch = dataset.batch(rays, torch.Generator().manual_seed(0))
    for _ in range(2):  # The first pass also pays for memory and code that later ones reuse.
        begin = time.perf_counter()
        compute_gradients(model, batch, config, 0.0, torch.Generator().manual_seed(0))
        seconds = (time.perf_counter() - begin) / rays
    model.zero_grad(set_to_none=True)
    hours = seconds * config.batch_size * num_steps / 3600
    text = f"{hours:.1f} hours" if hours > 1 else f"{60 * hours:.0f} minutes"
    print(f"Expected time on this CPU: about {text} ({1 / seconds:,.0f} rays/s). "
          "`--preset demo` trains a small network in minutes.", flush=True)


class StopSignals:
    """While entered, Ctrl-C and SIGTERM are noted in `received`, for the loop to save and end."""

    def __enter__(self):
        self.received = None
        self.previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.received = signal.Signals(number)
        # A second Ctrl-C does not wait for the step to end.
        signal.signal(number, self.previous[number])

    def __exit__(self, *error):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


class RunLog:
    """Scalars and pictures of a run: TensorBoard, `metrics.jsonl`, the progress bar.

    Scalars stay on the device until they are written, so that no step waits for it.
    """

    def __init__(self, folder, first_step, config):
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.config = folder, config
        self.pending, self.checked = [], first_step
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
        scalars["learning_rate"] = current_rate(self.config, step)
        rays = len(self.pending) * self.config.batch_size
        scalars["rays_per_second"] = rays / (now - self.last_write)
        scalars["memory_gb"] = peak_memory() / 1e9
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
        self._write_scalars(step, {f"validation/{k}": scores[k] for k in ("psnr", "ssim")})
        sheet = contact_sheet([list(pictures.values())])
        self.tensorboard.add_image("validation", sheet, step, dataformats="HWC")
        (self.folder / "validation").mkdir(exist_ok=True)
        write_image(self.folder / "validation" / f"{step:08d}.png", sheet)
        # Rendering is not training: the clock stood still.
        self.begin += time.perf_counter() - begin
        self.last_write += time.perf_counter() - begin

    def _write_scalars(self, step, scalars):
        for name, value in scalars.items():
            self.tensorboard.add_scalar(name, value, step)
        seconds = time.perf_counter() - self.begin
        line = {"step": step, "seconds": round(seconds, 2)} | scalars
        self.metrics.write(json.dumps(line) + "\n")
        self.metrics.flush()


def current_rate(config, step):
    """The learning rate of a step, of a config's schedule."""
    return learning_rate(step, config.lr_init, config.lr_final, config.max_steps,
                         config.lr_delay_steps, config.lr_delay_mult)


def drop_later_lines(path, step):
    """Keep the lines of `metrics.jsonl` up to a step: a continued run writes the others again.

    Returns the seconds of training that the kept lines tell.
    """
    if not path.exists():
        return 0.0
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # A kill can leave the last line half written.
            continue
        if line["step"] <= step:
            kept.append(line)
    lines = "".join(json.dumps(line) + "\n" for line in kept)
    write_whole(path, lambda file: file.write(lines.encode()))
    return max((line["seconds"] for line in kept), default=0.0)


def peak_memory():
    """Bytes: the most that CUDA has allocated, else the most that the process has held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows has no such counter in the standard library.
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    run_script(main)
