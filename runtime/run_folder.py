"""Paths of the scene and the run folder of a config."""

import os
from pathlib import Path
from typing import Any


def scene_of(config: Any) -> str:
    """The scene's name, or the absolute path of its folder.

    Only what holds a path separator is a path (`./fox`, not `fox`), so a folder of the working
    directory never shadows the scene of that name. The default is lego if it was downloaded, else
    the procedural demo scene.
    """
    if config.scene is None:
        lego = Path(config.data_dir) / "nerf_synthetic" / "lego"
        return "lego" if config.dataset_name == "blender" and lego.is_dir() else "demo"
    is_path = "/" in config.scene or os.sep in config.scene or config.scene in (".", "..")
    return os.path.abspath(config.scene) if is_path else config.scene


def run_folder(config: Any) -> Path:
    """The run folder: `--run`, or <log_dir>/<exp_name>, or <log_dir>/<dataset>_<scene>_<model>."""
    if config.run:
        return Path(config.run)
    scene = Path(scene_of(config)).name
    name = config.exp_name or f"{config.dataset_name}_{scene}_{config.model}"
    return Path(config.log_dir) / name


def as_name(value: float) -> str:
    """A number as part of a file name. Equal numbers, and no others, have equal names."""
    return repr(value).removesuffix(".0")
