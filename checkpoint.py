"""Checkpoints: the only `torch.save` and `torch.load` of the project.

One file holds the weights, the optimizer, the step, the config, and the scene's facts without its
pixels, so that every later tool needs a run folder and nothing else.
"""

import argparse
import json
import re
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from config import (
    READER_FLAGS,
    apply_typed_flags,
    get_config,
    run_folder,
    saved_flags,
    shading_name,
)
from model import build_model
from relighting.lights import Lights
from runtime.devices import select_device
from runtime.errors import UserError, first_line
from runtime.files import write_atomically
from structures import Cameras, Scene, TensorRecord

FORMAT = 1

KEYS = {"format", "step", "config", "scene", "model", "optimizer"}

NAME = "checkpoint_{step:08d}.pt"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded run: `model` (in eval mode), its `config`, with what a reader's flags changed in it,
    and its `own` config as it was saved; the `step` after which it was saved, `scene` (`dict` of
    split to `Scene` without pixels), and the `optimizer`'s state."""

    model: torch.nn.Module
    config: argparse.Namespace
    own: argparse.Namespace
    step: int
    scene: dict
    optimizer: dict
    path: Path


def save_checkpoint(folder, *, model, optimizer, step, config, scene, keep):
    """Write `checkpoint_<step>.pt` whole or not at all, then drop all but the `keep` newest.

    Raises UserError when it cannot be written; older checkpoints are then as they were.
    """
    folder = Path(folder)
    path = folder / NAME.format(step=step)
    content = {
        "format": FORMAT,
        "step": step,
        "config": saved_flags(config),
        "scene": {split: _plain(facts) for split, facts in scene.items()},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    write_atomically(path, lambda file: torch.save(content, file))
    written = [p for p in list_checkpoints(folder) if step_of(p) <= step]
    for old in written[keep:]:
        old.unlink(missing_ok=True)
    return path


def step_of(path):
    """The step that a checkpoint's name tells."""
    return int(path.stem.removeprefix("checkpoint_"))


def list_checkpoints(folder):
    """The checkpoints of a run folder, newest first, valid or not."""
    found = [p for p in Path(folder).glob("*.pt") if re.fullmatch(r"checkpoint_\d+", p.stem)]
    return sorted(found, key=step_of, reverse=True)


def clean_run_folder(folder, step):
    """Tidy a run folder before it goes on after `step`.

    Half-written files of a kill go; checkpoints of later steps, which were found broken, are
    renamed, so that they never stand for good ones.
    """
    for path in Path(folder).glob("*.partial"):
        path.unlink()
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            path.rename(path.with_suffix(".broken"))


def load_checkpoint(path, device="cpu"):
    """Load a checkpoint file, or a run folder's newest valid one, as a `Checkpoint`.

    device: where the model goes ("auto" as in `--device`). A broken file in a run folder is
    reported and passed over. Raises UserError where none can be used.
    """
    path = Path(path)
    if path.is_dir():
        content, path = newest_valid(path)
    else:
        content = read_checkpoint(path)
    # A flag that is younger than the checkpoint has its default.
    config = argparse.Namespace(**(vars(get_config([])) | content["config"]))
    config.device = str(device)
    model = build_model(config, select_device(config))
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise UserError(f"{path} does not fit this version's {config.model}: "
                        f"{first_line(error)}") from None
    return Checkpoint(
        model=model.eval(), config=config, own=argparse.Namespace(**vars(config)),
        step=content["step"], path=path,
        scene={split: _scene(facts) for split, facts in content["scene"].items()},
        optimizer=content["optimizer"],
    )


def open_run(argv=None, changeable=READER_FLAGS):
    """The `Checkpoint` of the run that a reader's command line names, its config with typed flags.

    Raises UserError for a typed flag, not among the `changeable`, that would make it another run.
    """
    flags = get_config(argv)
    run = load_checkpoint(run_folder(flags), flags.device)
    apply_typed_flags(run.config, flags, argv, changeable)
    if shading_name(run.config, run.own) and not run.model.is_shading():
        raise UserError(f"{run.path} was saved before surfaces are shaded, so that nothing would "
                        "read --shade_at, --bounce_directions or --march_shadows; train on, or "
                        "leave them out.")
    run.model.set_rendering(run.config)
    return run


def read_checkpoint(path):
    """The content of a checkpoint file, on the CPU; raises UserError where it is not whole."""
    try:
        # torch.load does not compare the checksums that the archive holds.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"{damaged} is damaged")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; --run wants a run folder.") from None
    except Exception as error:  # Truncated archives fail in many ways.
        raise UserError(f"{path} is no whole checkpoint ({first_line(error)}).") from None
    if not isinstance(content, dict) or not KEYS <= set(content) or content["format"] != FORMAT:
        raise UserError(f"{path} is no checkpoint of this project (format {FORMAT} is wanted).")
    return content


def newest_valid(folder):
    for path in list_checkpoints(folder):
        try:
            return read_checkpoint(path), path
        except UserError as error:
            print(f"passed over: {error}", flush=True)
    raise UserError(f"{folder} holds no valid checkpoint; train first, set --run, --log_dir or "
                    "--exp_name to another folder, or remove this one if its files are broken.")


def write_config(folder, config):
    """The resolved config as `config.json`, for people and for `--config`."""
    text = json.dumps(saved_flags(config), indent=1, sort_keys=True)
    write_atomically(Path(folder) / "config.json", lambda file: file.write(text.encode()))


def _plain(record):
    """A record as a `dict` of tensors and plain values, which `weights_only` can load."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {k: _plain(v) if isinstance(v, TensorRecord) else v for k, v in values.items()}


def _scene(values):
    lights = values.get("lights")
    return Scene(**values | {"cameras": Cameras(**values["cameras"]),
                             "lights": lights and Lights(**lights)})
