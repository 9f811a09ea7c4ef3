"""JSON files that list frames with poses: Blender's `transforms_*.json` and nerfstudio's."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loaders.checks import check_poses, check_string, view_angle
from loaders.lenses import make_cameras, pixtocam
from runtime.errors import UserError
from structures import Cameras


class BlenderViews(NamedTuple):
    """N frames of a `transforms_*.json`.

    names, files: of the images; camtoworlds: `[N, 3, 4]`; pixtocams: N arrays `[3, 3]`;
    sizes: (width, height) at `--factor`.
    """

    names: list[str]
    files: list[Path]
    camtoworlds: np.ndarray
    pixtocams: list[np.ndarray]
    sizes: list[tuple[int, int]]

    def cameras(self, near, far) -> Cameras:
        """The views' `Cameras` with the range near to far of t."""
        return make_cameras(self.camtoworlds, self.pixtocams, self.sizes, near=near, far=far)


def blender_views(meta: dict, path: Path, factor: int,
                  file_of: Callable[[Path, str], Path],
                  size_of: Callable[[Path], tuple[int, int]]) -> BlenderViews:
    """The views that the `transforms_*.json` at `path` lists, reduced by `factor`.

    meta: content of that file.
    file_of: maps the file's folder and the name of a frame to an image file.
    size_of: maps an image file to its width and height.
    Raises UserError if `meta` is invalid or an image has no pixel left at this factor.
    """
    names, matrices = read_frames(meta, path)
    files = [file_of(path.parent, name) for name in names]
    camtoworlds = check_poses(matrices, path, names)
    angle = view_angle(meta, "camera_angle_x", path)
    sizes, pixtocams = [], []
    for file in files:
        width, height = size_of(file)
        if min(width, height) < factor:
            raise UserError(f"{file} is {width}x{height}; --factor {factor} leaves no pixel.")
        small = width // factor, height // factor
        focal = 0.5 * small[0] / math.tan(0.5 * angle)
        # If the factor leaves a remainder, width and height shrink by different ratios.
        focal_y = focal * (width / small[0]) * (small[1] / height)
        sizes.append(small)
        pixtocams.append(pixtocam(focal, focal_y, *small))
    return BlenderViews(names, files, camtoworlds, pixtocams, sizes)


def read_frames(meta: dict, path: Path) -> tuple[list[str], list]:
    """The image names and (unchecked) camera-to-world matrices of a file's frames.

    Raises UserError if there is no frame, or one lacks an entry.
    """
    frames = meta.get("frames")
    if not isinstance(frames, list) or not frames:
        raise UserError(f"{path} lists no frames; a split needs at least one.")
    for frame in frames:
        missing = {"file_path", "transform_matrix"} - set(frame if isinstance(frame, dict) else ())
        if missing:
            raise UserError(f"{path} has a frame without {', '.join(sorted(missing))}; file_path "
                            "and transform_matrix are expected.")
    names = [check_string(frame["file_path"], path, "file_path") for frame in frames]
    return ([Path(name).as_posix() for name in names],
            [frame["transform_matrix"] for frame in frames])
