"""Reading and checking a scene's files; whatever is wrong becomes a UserError."""

import json
import math

import numpy as np

import pose_utils
from ray_utils import corner_rays
from runtime.errors import UserError, first_line


def read_json(path):
    """A JSON object from a file of the scene."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; check --scene and --dataset_name.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({first_line(error)}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}; a JSON object is wanted.")
    return value


def checked_poses(poses, path, names):
    """Poses as float64 `[N, 3, 4]`; raises UserError naming the first that is no rigid motion."""
    try:
        poses = np.asarray(poses, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        poses = np.empty(0)
    if poses.ndim != 3 or poses.shape[1] not in (3, 4) or poses.shape[2] != 4:
        raise UserError(f"{path} does not hold one 4x4 camera-to-world matrix per frame.")
    for name, pose in zip(names, poses, strict=True):
        fault = pose_utils.pose_fault(pose[:3])
        if fault:
            raise UserError(f"the pose of {name} in {path} {fault}; correct or remove this frame.")
    return poses[:, :3]


def checked_range(near, far, lindisp):
    """near and far, numbers or one per camera, as float64.

    Raises UserError unless 0 <= near < far; for samples linear in disparity, 0 < near.
    """
    near, far = np.asarray(near, dtype=np.float64), np.asarray(far, dtype=np.float64)
    if lindisp and (near <= 0).any():
        raise UserError("--lindisp divides by near, which is 0 here; set --near or --no-lindisp.")
    if not ((near >= 0) & (near < far) & np.isfinite(far)).all():
        raise UserError(f"near {near.max():g} and far {far.min():g} do not make a range; set "
                        "--near and --far.")
    return near, far


def checked_array(values, shape, path, key):
    """A list of finite `shape`d numbers from a file, lossmult above 0, as float64 `[N, *shape]`."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        array = np.empty(0)
    if array.shape[1:] != shape or len(array) != len(values) or not np.isfinite(array).all():
        raise UserError(f"{path} has entries of {key} that are no finite numbers of shape {shape}.")
    if key == "lossmult" and (array <= 0).any():
        raise UserError(f"{path} has a lossmult that is not above 0.")
    return array


def check_forward_facing(cameras, files):
    """Raise UserError for a camera with rays that do not go towards -z: NDC has none for them."""
    steepest = corner_rays(cameras).viewdirs[..., 2].amax(dim=-1)
    worst = int(steepest.argmax())
    if steepest[worst] >= 0:
        angle = math.degrees(math.acos(-float(steepest[worst])))
        raise UserError(
            f"{files[worst].name} sees {angle:.0f} degrees away from the mean direction of the "
            "cameras, and NDC ends at 90; use --spherify for an inward-facing capture, or --no-ndc."
        )


def near_far(config, near=None, far=None):
    """The range of t: `--near` and `--far` where given, else the scene's; numbers, one per camera.

    Raises UserError as `checked_range` does.
    """
    near = near if config.near is None else config.near
    far = far if config.far is None else config.far
    return checked_range(near, far, config.lindisp)
