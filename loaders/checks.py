"""Read and validate values of a scene's files; every defect becomes a UserError."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import pose_utils
from loaders.folders import log_once
from ray_utils import corner_rays
from runtime import reading
from runtime.errors import UserError, first_line
from runtime.numbers import LARGEST, SMALLEST, check_number, check_numbers
from runtime.reading import short, text
from structures import Cameras


def read_json(path: Path) -> dict:
    """A JSON object from a file of the scene."""
    return reading.read_json(path, "check --scene and --dataset_name")


def check_string(value, path: Path, key: str) -> str:
    """A string from a JSON file. Raises UserError for anything else, and for what names no file."""
    try:
        return text(value)
    except ValueError as error:
        raise UserError(f"{path} has the {key} {short(value)}; {error}.") from None


def view_angle(values: dict, key: str, source) -> float:
    """An angle of view in radians, between 0 and pi. Raises UserError naming `source`."""
    return check_number(values.get(key), source, key, low=1e-6, high=math.pi - 1e-6,
                        unit="radians")


def read_ply_points(path: Path) -> np.ndarray:
    """The vertices `[M, 3]` of a PLY file in float64, without those that are not finite or huge.

    Raises UserError if the file is damaged.
    """
    import trimesh

    reading.check_file(path)
    try:
        vertices = np.asarray(trimesh.load(path, file_type="ply", process=False).vertices)
        points = vertices.astype(np.float64).reshape(-1, 3)
    except Exception as error:  # trimesh raises many kinds for damaged files.
        raise UserError(f"{path} cannot be read as PLY points ({first_line(error)}); replace it, "
                        "or remove the key ply_file_path.") from None
    return points[(np.abs(points) < LARGEST).all(axis=-1)]


def check_poses(poses, path: Path, names: Sequence[str]) -> np.ndarray:
    """Poses as float64 `[N, 3, 4]`, whose rotations are exact.

    Rounded or uniformly scaled rotations are replaced by the nearest ones, with a notice. Raises
    UserError naming the first pose that is not rigid otherwise.
    """
    try:
        poses = np.asarray(poses, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        poses = np.empty(0)
    if poses.ndim != 3 or poses.shape[1] not in (3, 4) or poses.shape[2] != 4:
        raise UserError(f"{path} does not hold one 4x4 camera-to-world matrix per frame.")
    rigid, largest = poses[:, :3].copy(), 0.0
    for i, (name, pose) in enumerate(zip(names, poses, strict=True)):
        if len(pose) == 4 and pose[3].tolist() != [0, 0, 0, 1]:
            raise UserError(f"the pose of {name} in {path} has the last row {pose[3].tolist()}; "
                            "0 0 0 1 is expected, so transpose the matrices.")
        rigid[i], error, fault = pose_utils.rigid_pose(pose[:3])
        if fault:
            raise UserError(f"the pose of {name} in {path} {fault}; correct or remove this frame.")
        largest = max(largest, error)
    if largest > pose_utils.ROUNDING:
        log_once(f"{path}: rotations differ from orthonormal ones by up to {largest:.2g} (rounded "
                 "or scaled); the nearest rotations are used.")
    return rigid


def check_range(near, far, lindisp: bool) -> tuple[np.ndarray, np.ndarray]:
    """near and far as float64; each is a number, or one per camera.

    Raises UserError unless 0 <= near < far (0 < near if samples are linear in disparity).
    """
    near, far = np.asarray(near, dtype=np.float64), np.asarray(far, dtype=np.float64)
    if lindisp and (near <= 0).any():
        raise UserError("--lindisp divides by near, which is 0 here; set --near or --no-lindisp.")
    if not ((near >= 0) & (near < far) & (far <= LARGEST)).all():
        raise UserError(f"near {near.max():g} and far {far.min():g} are not a range; set --near "
                        "and --far.")
    return near, far


def check_array(values: Sequence, shape: tuple[int, ...], path: Path, key: str) -> np.ndarray:
    """A list of numbers of one `shape` as float64 `[N, *shape]`; lossmult is above 0."""
    low = SMALLEST if key == "lossmult" else -LARGEST
    return check_numbers(values, (len(values), *shape), path, key, low=low)


def check_masks(masks, root: Path, has_files: bool) -> None:
    """Raise UserError for masks of a scene in `root` without a valid pixel.

    has_files: whether image files hold the masks; otherwise they are alpha.
    """
    if masks.any():
        return
    if has_files:
        raise UserError(f"the masks in {root} leave out every pixel; white pixels are those that "
                        "count, so invert the masks, or remove them.")
    raise UserError(f"every pixel in {root} is transparent, so --alpha mask leaves out all; use "
                    "--alpha composite.")


def check_forward_facing(cameras: Cameras, files: Sequence[Path]) -> None:
    """Raise UserError if a camera has a ray with z >= 0, which NDC cannot represent."""
    steepest = corner_rays(cameras).viewdirs[..., 2].amax(dim=-1)
    worst = int(steepest.argmax())
    if steepest[worst] >= 0:
        angle = math.degrees(math.acos(-float(steepest[worst])))
        raise UserError(
            f"{files[worst].name} looks {angle:.0f} degrees away from the mean direction of the "
            "cameras, and NDC ends at 90; use --spherify for an inward-facing capture, or --no-ndc."
        )


def near_far(config, near=None, far=None, scale=1.0) -> tuple[np.ndarray, np.ndarray]:
    """The range of t: `--near` and `--far` if given, else the scene's (numbers, or one per camera).

    scale: of the scene, by which `--units file` multiplies the flags. The only place where these
    flags override a scene. Raises UserError as `check_range` does.
    """
    unit = scale if config.units == "file" else 1.0
    near = near if config.near is None else config.near * unit
    far = far if config.far is None else config.far * unit
    return check_range(near, far, config.lindisp)
