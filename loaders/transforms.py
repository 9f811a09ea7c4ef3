"""JSON files that list frames with poses: Blender's `transforms_*.json` and nerfstudio's."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

import pose_utils
from loaders.checks import check_poses, check_string, read_json
from loaders.folders import check_different, log_left_out, log_once
from loaders.lenses import Lens, check_shape, transforms_lens
from runtime.errors import UserError

# Keys of cameras, and others that may be missing: null counts as missing.
LENS_KEYS = set(
    "camera_angle_x camera_angle_y fl_x fl_y cx cy w h distortion_params k1 k2 k3 k4 k5 k6 p1 p2 "
    "s1 s2 s3 s4 b1 b2 camera_model is_fisheye".split())
OPTIONAL_KEYS = {"ply_file_path", "train_filenames", "val_filenames", "test_filenames"}

# Keys that are read, or that mean nothing for a radiance field; all others are named in the log.
KNOWN_KEYS = LENS_KEYS | OPTIONAL_KEYS | set(
    "frames file_path transform_matrix mask_path rotation sharpness colmap_im_id "
    "latlong equirectangular orthographic ftheta_p0 ftheta_p1 ftheta_p2 ftheta_p3 ftheta_p4 "
    "rolling_shutter light_loc light_weights light_intensity environment "
    "environment_turn".split())

# Blender scenes: cameras at this distance from what they look at have the range --near 2 --far 6;
# at a distance beyond these limits the scene is scaled.
BLENDER_DISTANCE, BLENDER_LIMITS = 4.0, (3.0, 5.0)


class BlenderViews(NamedTuple):
    """N frames of a `transforms_*.json`.

    names, files: of the images; camtoworlds: `[N, 3, 4]`; lenses: N `Lens`; sizes: (width, height)
    at `--factor`.
    """

    names: list[str]
    files: list[Path]
    camtoworlds: np.ndarray
    lenses: list[Lens]
    sizes: list[tuple[int, int]]


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
    check_different(files, names, path)
    camtoworlds = check_poses(matrices, path, names)
    lenses, sizes = [], []
    for frame, file in zip(meta["frames"], files, strict=True):
        width, height = size_of(file)
        if min(width, height) < factor:
            raise UserError(f"{file} is {width}x{height}; --factor {factor} leaves no pixel.")
        values = {"w": width, "h": height} | lens_entries(meta, frame)
        lens = transforms_lens(values, file, 1, str(path))
        check_shape(file, (width, height), lens, path)
        lenses.append(lens)
        sizes.append((width // factor, height // factor))
    return BlenderViews(names, files, camtoworlds, lenses, sizes)


def lens_entries(meta: dict, frame: dict) -> dict:
    """The entries of a frame, and of its file where the frame has none.

    A frame's angle of view replaces the file's focal length.
    """
    if {"camera_angle_x", "camera_angle_y"} & set(frame):
        meta = {key: value for key, value in meta.items() if key not in ("fl_x", "fl_y")}
    return meta | frame


def fit_to_range(camtoworlds: np.ndarray, path: Path) -> np.ndarray:
    """The similarity `[4, 4]` to a scene for which the range 2 to 6 of Blender's format is right.

    The identity, unless inward-facing cameras stand much nearer or farther than in the released
    scenes; then they are moved to their distance from the origin, with a notice. Near and far from
    the cameras' own spread would be wrong for cameras that do not look inward: they are kept.
    """
    focus = pose_utils.focus_point(camtoworlds)
    to_focus = focus - camtoworlds[:, :, 3]
    distance = float(np.median(np.linalg.norm(to_focus, axis=-1)))
    ahead = -(to_focus * camtoworlds[:, :, 2]).sum(-1) > 0.5 * np.linalg.norm(to_focus, axis=-1)
    low, high = BLENDER_LIMITS
    if low <= distance <= high or not np.isfinite(distance) or ahead.mean() < 0.9:
        return np.eye(4)
    scale = BLENDER_DISTANCE / distance
    log_once(f"{path}: the cameras stand {distance:.3g} units from what they look at, where the "
             f"range 2 to 6 of this format would miss it; the scene is scaled by {scale:.3g}. With "
             "--near and --far it is not.")
    transform = np.diag([scale, scale, scale, 1.0])
    transform[:3, 3] = -scale * focus
    return transform


# Files.


def read_transforms(path: Path) -> dict:
    """The content of a JSON file of frames: paths with slashes, each frame once, without nulls.

    Logs duplicates and keys that are not used. Raises UserError for two poses of one image.
    """
    meta = _without_nulls(read_json(path))
    if not isinstance(meta.get("frames"), list):
        return meta
    read_frames(meta, path)
    meta["frames"] = [_without_nulls(frame) for frame in meta["frames"]]
    for frame in meta["frames"]:
        frame["file_path"] = file_name(frame["file_path"], path, "file_path")
    meta["frames"] = _without_duplicates(meta["frames"], path)
    unused = set(meta).union(*meta["frames"]) - KNOWN_KEYS
    if unused:
        log_once(f"{path}: keys that are not used: {', '.join(sorted(unused))}")
    return meta


def _without_nulls(entries):
    """Entries without the null ones of keys that may be missing.

    A null `mask_path` stays: it says that there is no mask.
    """
    return {key: value for key, value in entries.items()
            if value is not None or key not in LENS_KEYS | OPTIONAL_KEYS}


def _without_duplicates(frames, path):
    """The frames of different images."""
    first = {}
    for frame in frames:
        name = frame["file_path"]
        if first.setdefault(name, frame)["transform_matrix"] != frame["transform_matrix"]:
            raise UserError(f"{path} has two frames of {name} with different poses; remove one.")
    names = [frame["file_path"] for frame in frames]
    log_left_out(path, "repeated frame(s)",
                 [name for name in first if names.count(name) > 1] if len(first) < len(names)
                 else [])
    return list(first.values())


def file_name(value, path: Path, key: str) -> str:
    """A file's name in a JSON file, with slashes. Raises UserError for what names no file.

    Programs on Windows write backslashes.
    """
    value = value.replace("\\", "/") if isinstance(value, str) else value
    return PurePosixPath(check_string(value, path, key)).as_posix()


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
    return ([file_name(frame["file_path"], path, "file_path") for frame in frames],
            [frame["transform_matrix"] for frame in frames])


def has_images(path: Path, file_of: Callable[[Path, str], Path]) -> bool:
    """Whether a JSON file of frames exists, and an image of a frame; logs if only the file does.

    Some programs write a file for test views that were never rendered.
    """
    if not path.exists():
        return False
    names, _ = read_frames(read_transforms(path), path)
    if any(file_of(path.parent, name).exists() for name in names):
        return True
    log_once(f"{path} names {len(names)} images, none of which exists; it is not used.")
    return False
