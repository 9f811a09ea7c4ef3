"""Files that list frames with poses: Blender's `transforms_*.json`, and what nerfstudio shares."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loaders.checks import checked_poses
from loaders.lenses import make_cameras, pixtocam
from runtime.errors import UserError


class BlenderViews(NamedTuple):
    """names, files; camtoworlds: `[N, 3, 4]`; pixtocams: `[N, 3, 3]`; sizes: (width, height)."""

    names: list
    files: list
    camtoworlds: np.ndarray
    pixtocams: list
    sizes: list

    def cameras(self, near, far):
        """The views' `Cameras` with a range of t."""
        return make_cameras(self.camtoworlds, self.pixtocams, self.sizes, near=near, far=far)


def blender_views(meta, path, factor, file_of, size_of):
    """The `BlenderViews` of a `transforms_*.json`, at `--factor`.

    file_of: a function of the file's folder and a frame's name that gives the image file; size_of:
    a function of that file that gives its width and height. Raises UserError for a factor that
    leaves no pixel, and as `read_frames` and `checked_poses` do.
    """
    names, matrices = read_frames(meta, path)
    files = [file_of(path.parent, name) for name in names]
    camtoworlds = checked_poses(matrices, path, names)
    angle = checked_angle(meta, path)
    sizes, pixtocams = [], []
    for file in files:
        width, height = size_of(file)
        if min(width, height) < factor:
            raise UserError(f"{file} is {width}x{height}; --factor {factor} leaves no pixel.")
        small = width // factor, height // factor
        focal = 0.5 * small[0] / math.tan(0.5 * angle)
        # Where the factor leaves a remainder, the two sides shrink by different amounts.
        focal_y = focal * (width / small[0]) * (small[1] / height)
        sizes.append(small)
        pixtocams.append(pixtocam(focal, focal_y, *small))
    return BlenderViews(names, files, camtoworlds, pixtocams, sizes)


def read_frames(meta, path):
    """The image names and camera-to-world matrices of a file's frames, as they are there."""
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path} lists no frames; a split needs at least one.")
    try:
        return ([Path(frame["file_path"]).as_posix() for frame in frames],
                [frame["transform_matrix"] for frame in frames])
    except (TypeError, KeyError) as error:
        raise UserError(
            f"{path} has a frame without {error}; file_path and transform_matrix are wanted."
        ) from None


def checked_angle(meta, path):
    """The horizontal field of view of a Blender file, in radians."""
    value = meta.get("camera_angle_x")
    if type(value) in (int, float) and 0 < value < math.pi:
        return float(value)
    raise UserError(f"{path} has camera_angle_x = {value!r}; radians between 0 and pi are wanted.")
