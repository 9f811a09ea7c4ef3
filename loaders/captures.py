"""What COLMAP and nerfstudio captures share."""

from abc import abstractmethod
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

import pose_utils
from loaders.base import Loader
from loaders.bounds import cameras_range, content_box, seen_range
from loaders.checks import near_far
from loaders.lenses import make_cameras
from runtime.errors import UserError


class Views(NamedTuple):
    """What is known of N photographs, sorted by name, in the coordinates of their files.

    names; files: as used at `--factor`; camtoworlds: `[N, 3, 4]`, OpenGL axes; lenses: N `Lens`;
    sizes: (width, height) of the pictures to be made of the files; points: `[M, 3]` on surfaces,
    M may be 0; mask_files: N files or None each, empty if no view has a mask; reprojection_error:
    the points' mean, in pixels of the full size, None where the files do not tell.
    """

    names: list
    files: list
    camtoworlds: np.ndarray
    lenses: list
    sizes: list
    points: np.ndarray
    mask_files: list
    reprojection_error: float | None = None


def view_cameras(views, camtoworlds):
    """The `Cameras` of views whose poses were moved to `camtoworlds`, with t from 0 to 1."""
    lenses = views.lenses
    distortion = torch.tensor([lens.distortion for lens in lenses], dtype=torch.float32)
    fisheye = torch.tensor([lens.fisheye for lens in lenses])
    return make_cameras(
        camtoworlds,
        [lens.pixtocam(*size) for lens, size in zip(lenses, views.sizes, strict=True)],
        views.sizes, near=0.0, far=1.0,
        distortion=distortion if distortion.any() or fisheye.any() else None,
        fisheye=fisheye if fisheye.any() else None,
    )


class Capture(Loader):
    """Own photographs, with the cameras that structure from motion found for them.

    A subclass defines `read_views() -> Views` and `split_index(split)`.
    """

    @abstractmethod
    def read_views(self):
        """The `Views` of all splits."""

    @abstractmethod
    def split_index(self, split):
        """The indices of a split's views."""

    def load(self, split):
        views, index = self.views, self.split_index(split)
        cameras, transform, box = self.aligned
        return self.make_scene(
            files=[views.files[i] for i in index],
            names=[views.names[i] for i in index], cameras=cameras[torch.as_tensor(index)],
            mask_files=[views.mask_files[i] for i in index] if views.mask_files else (),
            box=box,
            world_to_scene=torch.as_tensor(transform, dtype=torch.float32),
        )

    @cached_property
    def views(self):
        """What `read_views` tells, read once."""
        return self.read_views()

    def points(self):
        _, transform, _ = self.aligned
        return pose_utils.transform_points(self.views.points, transform)

    @property
    def reprojection_error(self):
        return self.views.reprojection_error

    @cached_property
    def aligned(self):
        """All views' aligned `Cameras`, the similarity that aligned them, and the scene's box."""
        views = self.views
        if np.ptp(views.camtoworlds[:, :, 3], axis=0).max() == 0:
            raise UserError(f"{self.root} has {len(views.names)} camera(s) in one place, which "
                            "tells no scale; views from several places are wanted.")
        camtoworlds, transform = pose_utils.align_pca(views.camtoworlds)
        points = pose_utils.transform_points(views.points, transform)
        cameras = view_cameras(views, camtoworlds)
        near, far = seen_range(cameras, points) or cameras_range(camtoworlds)
        near, far = near_far(self.config, near, far)
        return replace(cameras, near=near, far=far), transform, content_box(camtoworlds, points)
