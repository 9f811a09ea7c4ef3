"""Synthetic scenes in Blender's format."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

import image_utils
import pose_utils
from loaders.base import SPLITS, Loader
from loaders.bounds import cube
from loaders.checks import near_far
from loaders.folders import frame_file
from loaders.lenses import lens_cameras
from loaders.transforms import blender_views, fit_to_range, has_images, read_transforms
from structures import Scene


class Blender(Loader):
    """NeRF's synthetic scenes: `transforms_{train,val,test}.json` and images, mostly RGBA."""

    folders = ("nerf_synthetic",)
    marker = "transforms_train.json"
    RANGE = (2.0, 6.0)

    def load(self, split: str) -> Scene:
        views = self._views(split)
        near, far = near_far(self.config)
        camtoworlds = pose_utils.transform_poses(views.camtoworlds, self.to_scene)
        return self.make_scene(
            files=views.files, names=views.names, world_to_scene=torch.from_numpy(self.to_scene),
            cameras=lens_cameras(camtoworlds, views.lenses, views.sizes, near, far),
            box=cube(float(far - near) / 2),
        )

    @cached_property
    def to_scene(self) -> np.ndarray:
        """The similarity `[4, 4]` that fits the training cameras to the format's range."""
        config = self.config
        if config.units == "file" or (config.near, config.far) != self.RANGE:
            return np.eye(4)
        split = next(s for s in ("train", *SPLITS) if self._path_of(s).exists())
        return fit_to_range(self._views(split).camtoworlds, self._path_of(split))

    def splits(self) -> tuple[str, ...]:
        return tuple(s for s in SPLITS if has_images(self._path_of(s), frame_file))

    def _views(self, split):
        path = self._path_of(split)
        return blender_views(read_transforms(path), path, self.config.factor, frame_file,
                             image_utils.image_size)

    def write_demo(self, folder: Path) -> None:
        from procedural.scene import write_blender

        write_blender(folder)

    def _path_of(self, split):
        """The JSON file of a split."""
        return self.root / f"transforms_{split}.json"
