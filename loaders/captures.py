"""Base class of COLMAP and nerfstudio captures: alignment, ray range and bounding box."""

from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import pose_utils
from loaders.base import SPLITS, Loader
from loaders.bounds import bounding_box, range_from_cameras, visible_range
from loaders.checks import near_far
from loaders.folders import image_channels
from loaders.lenses import Lens, lens_cameras
from runtime.errors import UserError
from structures import Cameras, Scene


class Views(NamedTuple):
    """N photographs and their cameras, sorted by name, in the coordinates of the files.

    names: of the photographs; files: their image files at `--factor`.
    camtoworlds: `[N, 3, 4]`, OpenGL axes; lenses: N `Lens`.
    sizes: (width, height) to which each image file is resized.
    points: `[M, 3]` on surfaces; M may be 0.
    mask_files: a file or None for each view; empty if no view has a mask.
    reprojection_error: mean over the points, in pixels of the full size; None if unknown.
    """

    names: list[str]
    files: list[Path]
    camtoworlds: np.ndarray
    lenses: list[Lens]
    sizes: list[tuple[int, int]]
    points: np.ndarray
    mask_files: list[str | None]
    reprojection_error: float | None = None


def view_cameras(views: Views, camtoworlds: np.ndarray) -> Cameras:
    """The `Cameras` of views whose poses were moved to `camtoworlds`; t runs from 0 to 1."""
    return lens_cameras(camtoworlds, views.lenses, views.sizes, near=0.0, far=1.0)


class Capture(Loader):
    """The user's own photographs with cameras from structure from motion.

    A subclass defines `read_views() -> Views` and `split_index(split)`.
    """

    @abstractmethod
    def read_views(self) -> Views:
        """The `Views` of all splits."""

    @abstractmethod
    def split_index(self, split: str) -> list[int]:
        """The indices of a split's views."""

    def load(self, split: str) -> Scene:
        views, index = self.views, self.split_index(split)
        cameras, transform, box = self.aligned
        return self.make_scene(
            files=[views.files[i] for i in index],
            names=[views.names[i] for i in index], cameras=cameras[torch.as_tensor(index)],
            mask_files=[views.mask_files[i] for i in index] if views.mask_files else (),
            box=box,
            world_to_scene=torch.as_tensor(transform),
        )

    def splits(self) -> tuple[str, ...]:
        return SPLITS if self.config.llffhold else ("train",)

    @cached_property
    def num_channels(self) -> int:
        """4 if an image has an alpha channel, else 3."""
        return image_channels(self.views.files, self.root, self.config.alpha)

    @cached_property
    def views(self) -> Views:
        """The result of `read_views`, read once."""
        return self.read_views()

    def points(self) -> np.ndarray:
        _, transform, _ = self.aligned
        return pose_utils.transform_points(self.views.points, transform)

    @property
    def reprojection_error(self) -> float | None:
        return self.views.reprojection_error

    @cached_property
    def aligned(self) -> tuple[Cameras, np.ndarray, Tensor]:
        """All views' aligned `Cameras`, the similarity `[4, 4]` that aligned them, and the box."""
        views = self.views
        if np.ptp(views.camtoworlds[:, :, 3], axis=0).max() == 0:
            raise UserError(f"{self.root} has {len(views.names)} camera(s) at one position, so "
                            "the scale is undetermined; views from several positions are expected.")
        camtoworlds, transform = pose_utils.align_pca(views.camtoworlds)
        points = pose_utils.transform_points(views.points, transform)
        cameras = view_cameras(views, camtoworlds)
        visible = visible_range(cameras, points) or range_from_cameras(camtoworlds)
        visible = tuple(float(t) for t in visible)
        near, far = near_far(self.config, *visible, scale=pose_utils.scale_of(transform))
        cameras = replace(cameras, near=near, far=far, visible_range=visible)
        return cameras, transform, bounding_box(camtoworlds, points)
