"""Checkpoints: the only `torch.save` of the project, and the `torch.load` of runs.

One file holds the weights, the optimizer, the step, the config, and the scene of every split
without its pixels, so that every later tool needs only the run folder.
"""

import json
import logging
import re
import zipfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from cameras.refinement import CameraRefinement
from config import Config, loaded_config, override, saved_flags, shading_name
from model import build_model
from models.base import RayModel
from relighting.lights import Lights
from runtime.devices import select_device
from runtime.errors import UserError, first_line
from runtime.files import write_atomically
from runtime.flags import RENDERABLE
from runtime.reading import check_file
from runtime.run_folder import run_folder
from structures import Cameras, Scene, Shading, TensorRecord

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Format 1 had other hash grids, another order of the icosahedron's directions, and two flags in
# place of --bg_range.
FORMAT = 2
KINDS = {"format": int, "step": int, "config": dict, "scene": dict, "model": dict,
         "optimizer": dict}
FILENAME = "checkpoint_{step:08d}.pt"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded run.

    model: in eval mode; config: as saved, with the flags that a command line changed; saved_config:
    as saved; step: steps done; scene: a `dict` of split to `Scene` without pixels, with the refined
    training cameras if there are any; optimizer: its state dict; path: of the file.
    With --refine_cameras also refinement: of the training cameras; original_cameras: those of the
    scene's files.
    """

    model: RayModel
    config: Config
    saved_config: Config
    step: int
    scene: dict[str, Scene]
    optimizer: dict[str, Any]
    path: Path
    refinement: CameraRefinement | None = None
    original_cameras: Cameras | None = None

    @property
    def original_scene(self) -> dict[str, Scene]:
        """The scenes of all splits with the training cameras of the scene's files."""
        if self.original_cameras is None:
            return self.scene
        train = replace(self.scene["train"], cameras=self.original_cameras)
        return self.scene | {"train": train}

    def with_config(self, config: Config) -> "Checkpoint":
        """The same run under another config."""
        return replace(self, config=config)

    @property
    def shading(self) -> Shading:
        """The shading of images under the run's config (NeRV)."""
        return Shading.from_config(self.config)


def save_checkpoint(folder: Path | str, *, model: RayModel,
                    optimizer: torch.optim.Optimizer, step: int, config: Config,
                    scene: dict[str, Scene], keep: int,
                    refinement: CameraRefinement | None = None) -> Path:
    """Atomically write `checkpoint_<step>.pt`, then delete all but the `keep` newest.

    scene: of every split, without pixels and with its original cameras. Raises UserError if the
    file cannot be written; older checkpoints are then unchanged.
    """
    path = Path(folder) / FILENAME.format(step=step)
    content = {
        "format": FORMAT,
        "step": step,
        "config": saved_flags(config),
        "scene": {split: to_dict(record) for split, record in scene.items()},
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    if refinement is not None:
        content["refinement"] = refinement.state_dict()
    write_atomically(path, lambda file: torch.save(content, file))
    drop_old_checkpoints(folder, step, keep)
    return path


def drop_old_checkpoints(folder: Path | str, step: int, keep: int) -> None:
    """Delete the checkpoints before `step` but for the `keep` newest up to it."""
    checkpoints = [p for p in list_checkpoints(folder) if step_of(p) <= step]
    for old in checkpoints[keep:]:
        old.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """The step in a checkpoint's file name."""
    return int(path.stem.removeprefix("checkpoint_"))


def list_checkpoints(folder: Path | str) -> list[Path]:
    """The checkpoints of a run folder, newest first, valid or not."""
    found = [p for p in Path(folder).glob("*.pt") if re.fullmatch(r"checkpoint_\d+", p.stem)]
    return sorted(found, key=step_of, reverse=True)


def clean_run_folder(folder: Path | str, step: int, keep: int) -> None:
    """Finish what a killed process left: delete partial files, and all but `keep` checkpoints.

    Corrupt checkpoints of later steps are renamed to `.broken`.
    """
    for path in Path(folder).glob("*.partial"):
        path.unlink()
    for path in list_checkpoints(folder):
        if step_of(path) > step:
            path.rename(path.with_suffix(".broken"))
    # A process killed between writing its last checkpoint and this would leave one more for good.
    drop_old_checkpoints(folder, step, keep)


def load_checkpoint(path: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Load a checkpoint file, or a run folder's newest valid one.

    device: where the model goes ("auto" as in `--device`). Corrupt checkpoints in a run folder are
    reported and skipped. Raises UserError if none can be used.
    """
    path = Path(path)
    if path.is_dir():
        content, path = newest_valid(path)
    else:
        content = read_checkpoint(path)
    config = config_of(content, path).replace(device=str(device))
    if not 0 <= content["step"] <= config.max_steps:
        raise UserError(f"{path} has the step {content['step']} of {config.max_steps}; copy it "
                        "again, or train again.")
    scene = {split: fitting(path, f"{split} scene", partial(scene_from_dict, values))
             for split, values in content["scene"].items()}
    num_images = None
    if "train" in scene:
        num_images = len(scene["train"].names) // len(config.scales)
    model = build_model(config, select_device(config), num_images=num_images)
    fitting(path, f"model of --model {config.model}",
            partial(restore_weights, model, content["model"]))
    run = Checkpoint(
        model=model.eval(), config=config, saved_config=config, step=content["step"], path=path,
        scene=scene, optimizer=content["optimizer"])
    if "refinement" not in content:
        return run
    return fitting(path, "cameras", lambda: with_refinement(run, content["refinement"]))


def fitting(path: Path, part: str, read: Callable[[], Result]) -> Result:
    """The result of `read()`, a part of the checkpoint at `path`; raises UserError if it fails."""
    try:
        return read()
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError,
            ValueError) as error:
        raise UserError(f"{path} holds no {part} that fits this version ({first_line(error)}); "
                        "copy it again, or train again.") from None


def restore_weights(model: torch.nn.Module, saved: dict[str, Tensor]) -> None:
    """Load saved weights.

    Raises TypeError, ValueError or RuntimeError if they are not those of this model, or not finite.
    """
    for name, own in model.state_dict().items():
        if name in saved and saved[name].dtype != own.dtype:
            raise TypeError(f"{name} is {saved[name].dtype}")
        if name in saved and own.is_floating_point() and not bool(saved[name].isfinite().all()):
            raise ValueError(f"{name} is not finite")
    model.load_state_dict(saved)


def restore_optimizer(optimizer: torch.optim.Optimizer, run: Checkpoint) -> None:
    """Load a run's optimizer state, but not its rates and options, which the config determines.

    Raises UserError if the state is not that of these parameters: the fused optimizer would read
    beyond the end of a tensor that is too small.
    """
    fitting(run.path, "optimizer", partial(_restore_optimizer, optimizer, run))


def _restore_optimizer(optimizer, run):
    saved = run.optimizer
    if run.step and not saved["state"]:
        raise ValueError("it has no state")
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in own]:
        raise ValueError("other groups of parameters")
    for state in saved["state"].values():
        if not all(value.is_floating_point() for value in state.values()):
            raise TypeError("its state holds other numbers")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own})
    for parameter, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if state[name].shape != parameter.shape or not 0 <= float(state["step"]) <= run.step:
                raise ValueError(f"{name} or step of another parameter")


@torch.no_grad()
def with_refinement(run: Checkpoint, state: dict[str, Tensor]) -> Checkpoint:
    """A run with the training cameras that a saved `CameraRefinement` refines, on the CPU."""
    refinement = CameraRefinement(len(state["latent"]))
    refinement.load_state_dict(state)
    train = run.scene["train"]
    scene = run.scene | {"train": replace(train, cameras=refinement(train.cameras))}
    return replace(run, scene=scene, refinement=refinement, original_cameras=train.cameras)


def open_run(command_line: Config, also: Collection[str] = ()) -> Checkpoint:
    """Load the run of a command line and apply its typed flags.

    also: names of flags that may differ from the run's, besides those of rendering. Raises
    UserError for any other flag that differs, and for shading flags of a run that does not shade
    surfaces yet.
    """
    run = load_checkpoint(run_folder(command_line), command_line.device)
    if "train" not in run.scene:
        raise UserError(f"{run.path} holds no training cameras; copy it again, or train again.")
    config = override(run.saved_config, command_line, RENDERABLE, also)
    if shading_name(config, run.saved_config) and not run.model.is_shading():
        raise UserError(f"{run.path} was saved before surfaces are shaded, so --shade_at, "
                        "--bounce_directions and --march_shadows have no effect; train further, or "
                        "leave them out.")
    return run.with_config(config)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU; raises UserError if it is damaged."""
    if not path.exists():
        raise UserError(f"{path} does not exist; --run expects a run folder.")
    check_file(path)
    try:
        # torch.load does not compare the checksums in the archive, and it would unpack what is
        # compressed, which PyTorch never writes, to any size.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            packed = any(info.compress_type for info in archive.infolist())
        if damaged or packed:
            raise ValueError(f"{damaged or 'its archive'} is {'damaged' if damaged else 'packed'}")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Truncated archives fail in many ways.
        raise UserError(f"{path} is not a complete checkpoint ({first_line(error)}).") from None
    if not isinstance(content, dict) or not KINDS.keys() <= content.keys():
        raise UserError(f"{path} is not a checkpoint of this project.")
    for key, kind in KINDS.items():
        if not isinstance(content[key], kind) or isinstance(content[key], bool):
            raise UserError(f"{path} has a {type(content[key]).__name__} as its {key}; "
                            f"{kind.__name__} is expected, so copy it again, or train again.")
    if {"state", "param_groups"} - content["optimizer"].keys():
        raise UserError(f"{path} has no complete optimizer; copy it again, or train again.")
    return content


def config_of(content: dict[str, Any], path: Path) -> Config:
    """The config of a checkpoint's content. Raises UserError if its model renders otherwise now."""
    saved = content["config"]
    if content["format"] == 1:
        saved = fitting(path, "config", partial(flags_of_format_1, saved, path))
    elif content["format"] != FORMAT:
        raise UserError(f"{path} has format {content['format']}; this version reads {FORMAT}. "
                        "Update the project.")
    return loaded_config(saved, str(path))


def flags_of_format_1(saved: dict[str, Any], path: Path) -> dict[str, Any]:
    """The flags of a checkpoint of format 1 under their present names.

    Raises UserError if its model renders otherwise in this version.
    """
    config = loaded_config(saved)
    background = float(saved["white_bkgd"])
    if config.geometry == "zipnerf":
        fault = "hash grids with features at the corners of cells"
    elif config.basis == "icosahedron":
        fault = "another order of the directions of --basis icosahedron"
    elif saved["random_bkgd"]:
        fault = f"--random_bkgd, whose images have the background {background:g}"
    else:
        return saved | {"bg_range": (background, background)}
    raise UserError(f"{path} was saved by an older version, with {fault}. Train it again, or use "
                    "the version that trained it.")


def newest_valid(folder: Path) -> tuple[dict[str, Any], Path]:
    """The content and path of a run folder's newest valid checkpoint."""
    for path in list_checkpoints(folder):
        try:
            return read_checkpoint(path), path
        except UserError as error:
            logger.warning("Skipped: %s", error)
    raise UserError(f"{folder} holds no valid checkpoint; train first, set --run, --log_dir or "
                    "--exp_name to another folder, or delete this one if its files are corrupt.")


def write_config(folder: Path | str, config: Config) -> None:
    """Write the resolved config as `config.json`, for people and for `--config`."""
    text = json.dumps(saved_flags(config), indent=1, sort_keys=True)
    write_atomically(Path(folder) / "config.json", lambda file: file.write(text.encode()))


def to_dict(record: TensorRecord) -> dict[str, Any]:
    """A record as a `dict` of tensors and plain values, which `weights_only` can load."""
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    return {name: to_dict(value) if isinstance(value, TensorRecord) else value
            for name, value in values.items()}


def check_fields(record: TensorRecord | None) -> None:
    """Raise TypeError or ValueError for a field of another type, or that is not finite."""
    for f in fields(record) if record is not None else ():
        value = getattr(record, f.name)
        if not isinstance(value, cast(Any, f.type)):
            raise TypeError(f"{f.name} is a {type(value).__name__}")
        dtype = torch.float64 if f.name == "world_to_scene" else torch.float32
        if isinstance(value, Tensor) and value.is_floating_point() and not (
                value.dtype == dtype and bool(value.isfinite().all())):
            raise ValueError(f"{f.name} is not finite, or not of {dtype}")


def scene_from_dict(values: dict[str, Any]) -> Scene:
    """The `Scene` of a saved `dict`. Raises TypeError or ValueError if its values do not fit."""
    lights = values.get("lights")
    # Older checkpoints hold the transformation in 32 bits.
    scene = Scene(**values | {"cameras": Cameras(**values["cameras"]),
                              "lights": lights and Lights(**lights),
                              "world_to_scene": values["world_to_scene"].double()})
    for record in (scene, scene.cameras, scene.lights):
        check_fields(record)
    ends = scene.cameras.sizes.prod(dim=-1).cumsum(0)
    if scene.box.shape != (2, 3) or scene.world_to_scene.shape != (4, 4):
        raise ValueError("a box or a transformation of another shape")
    if scene.cameras.sizes.is_floating_point() or scene.offsets[1:].tolist() != ends.tolist():
        raise ValueError("sizes of images that do not add up")
    near, far = map(torch.as_tensor, (scene.cameras.near, scene.cameras.far))
    if not ((near >= 0) & (near < far)).all():
        raise ValueError("near and far that are not a range")
    return scene
