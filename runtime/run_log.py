"""Scalars and images of a run: TensorBoard, `metrics.jsonl`, the progress bar."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from runtime import distributed
from runtime.errors import UserError
from runtime.files import write_atomically
from runtime.memory import peak_memory
from runtime.reading import read_bytes

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def open_log(folder: Path, first_step: int, last_step: int,
             device: torch.device) -> "RunLog | NullLog":
    """The `RunLog` of rank 0; on other ranks one that discards everything."""
    if distributed.is_main():
        return RunLog(folder, first_step, last_step, device)
    return NullLog()


class NullLog(nullcontext):
    """The log of all ranks but 0: discards everything."""

    def __enter__(self) -> "NullLog":
        return self

    def step(self, *_: Any, **__: Any) -> None:
        pass

    write_means = write_scalars = image = check_finite = step

    def paused(self) -> AbstractContextManager:
        return nullcontext()


class RunLog:
    """Scalars and images of a run: TensorBoard, `metrics.jsonl`, the progress bar.

    Scalars stay on the device until they are written, so that no step waits for it.
    """

    def __init__(self, folder: Path, first_step: int, last_step: int, device: torch.device):
        self.folder, self.last_step, self.device = folder, last_step, device
        self.pending: list[dict[str, Tensor]] = []
        self.written_step = first_step
        seconds_before = truncate_metrics(folder / "metrics.jsonl", first_step)
        self.last_write = time.perf_counter()
        self.start = self.last_write - seconds_before
        self.bar = tqdm(total=last_step, initial=first_step, disable=None, unit="step")
        self.metrics = open(folder / "metrics.jsonl", "a")
        self.purge_step = first_step + 1

    @cached_property
    def tensorboard(self) -> "SummaryWriter":
        """The writer of events, whose import takes seconds: made for the first scalar or image."""
        with self.paused():
            from torch.utils.tensorboard import SummaryWriter

            return SummaryWriter(self.folder, purge_step=self.purge_step)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
        self.metrics.close()
        if "tensorboard" in vars(self):
            self.tensorboard.close()

    def step(self, scalars: dict[str, Tensor]) -> None:
        """Collect the scalars of a step."""
        self.pending.append(scalars)
        self.bar.update()

    def check_finite(self) -> None:
        """Raise UserError if a loss or gradient since the last write is not finite."""
        for offset, scalars in enumerate(self.pending):
            loss, norm = scalars["loss/total"], scalars["gradient_norm"]
            if not (math.isfinite(float(loss)) and math.isfinite(float(norm))):
                step = self.written_step + offset + 1
                raise UserError(
                    f"the loss or its gradient is not finite at step {step} (loss {loss:g}, "
                    f"gradient norm {norm:g}). The last checkpoint in {self.folder} is intact; try "
                    "a smaller --lr_init, a longer --lr_delay_steps, or --precision fp32.")

    def write_means(self, step: int, batch_size: int, learning_rate: float,
                    to_psnr: Callable[[Tensor], Tensor]) -> None:
        """Write the means of the scalars since the last write, the learning rate and the speed.

        to_psnr: from the mean squared errors `[levels]` ("errors") to PSNR in dB.
        """
        self.check_finite()
        if not self.pending:
            return
        now, count = time.perf_counter(), len(self.pending)
        means = {name: torch.stack([scalars[name] for scalars in self.pending]).mean(0)
                 for name in self.pending[0]}
        psnrs = to_psnr(means.pop("errors")).tolist()
        scalars = {name: float(value) for name, value in means.items()}
        scalars |= {f"psnr/level_{i}": value for i, value in enumerate(psnrs)}
        scalars["learning_rate"] = learning_rate
        scalars["rays_per_second"] = count * batch_size / (now - self.last_write)
        scalars["memory_gb"] = peak_memory(self.device) / 1e9
        seconds_left = (self.last_step - step) * (now - self.last_write) / count
        self._show(step, psnrs[-1], scalars["rays_per_second"], seconds_left)
        self.pending, self.written_step, self.last_write = [], step, now
        self.write_scalars(step, scalars)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write named numbers to TensorBoard and, as a line, to `metrics.jsonl`."""
        for name, value in scalars.items():
            self.tensorboard.add_scalar(name, value, step)
        seconds = time.perf_counter() - self.start
        line = {"step": step, "seconds": round(seconds, 2), **scalars}
        self.metrics.write(json.dumps(line) + "\n")
        self.metrics.flush()

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Write an image `[h, w, 3]`, float in [0, 1] or uint8, to TensorBoard."""
        self.tensorboard.add_image(name, image, step, dataformats="HWC")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock of training for the block, such as rendering a validation image."""
        begin = time.perf_counter()
        yield
        seconds = time.perf_counter() - begin
        self.start += seconds
        self.last_write += seconds

    def _show(self, step: int, psnr: float, rays_per_second: float, seconds_left: float) -> None:
        text = f"psnr {psnr:.2f} dB, {rays_per_second:,.0f} rays/s"
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            print(f"step {step}/{self.last_step}: {text}, {seconds_left / 60:.1f} min left",
                  flush=True)


def truncate_metrics(path: Path, step: int) -> float:
    """Drop the lines of `metrics.jsonl` after a step; returns the seconds of the kept training."""
    if not path.exists():
        return 0.0
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    lines = "".join(json.dumps(line) + "\n" for line in kept)
    write_atomically(path, lambda file: file.write(lines.encode()))
    return max((line["seconds"] for line in kept), default=0.0)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` as `dict`s; lines that a killed process left half written are
    skipped."""
    lines = []
    for text in read_bytes(path).decode(errors="replace").splitlines():
        try:
            line = json.loads(text)
            if line["step"] >= 0 and line["seconds"] >= 0:
                lines.append(line)
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return lines


def format_duration(seconds):
    """A duration in seconds, minutes or hours, as text."""
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"
