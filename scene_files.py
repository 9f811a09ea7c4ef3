"""What the formats of scenes share: where scenes lie, reading and checking their files, cameras.

Everything that a user's files can do wrong ends here in a UserError that names the file.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch

import image_utils
import pose_utils
from config import UserError, first_line
from file_utils import writable_folder
from ray_utils import Cameras, Scene, corner_rays

DEMO = "demo"


# Where scenes lie.


def find_scene(config, folders, make_demo):
    """The folder of `--scene`; the demo scene is made by `make_demo(folder)` on first use."""
    data_dir = Path(config.data_dir)
    if Path(config.scene).is_absolute():
        places = [Path(config.scene)]
    else:
        places = [data_dir / folder / config.scene for folder in folders]
        places.append(data_dir / config.scene)
    for place in places:
        if place.is_dir():
            return place
    if config.scene == DEMO:
        folder = writable_folder(data_dir / folders[0], folders[0]) / DEMO
        if not folder.is_dir():
            print(f"Making the demo scene in {folder} ...", flush=True)
            make_demo(folder)
        return folder
    looked = " or ".join(str(place) for place in places)
    raise UserError(
        f"the scene {config.scene!r} is not at {looked}; download it (scripts/download_*.sh) or "
        "set --data_dir and --scene (a name or a path)."
    )


# What the formats share.


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


def read_frames(meta, path):
    """The image names and camera-to-world matrices that a Blender file lists, as they are there."""
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


def png_file(folder, name):
    """The file of a Blender frame, which is named with or without its ending."""
    return folder / (name if name.lower().endswith(".png") else f"{name}.png")


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


def checked_angle(meta, path):
    """The horizontal field of view of a Blender file, in radians."""
    value = meta.get("camera_angle_x")
    if type(value) in (int, float) and 0 < value < math.pi:
        return float(value)
    raise UserError(f"{path} has camera_angle_x = {value!r}; radians between 0 and pi are wanted.")


def pixtocam(focal_x, focal_y, width, height):
    """`[3, 3]` from pixels to OpenGL camera directions, the principal point in the centre."""
    return np.array([
        [1 / focal_x, 0, -0.5 * width / focal_x],
        [0, -1 / focal_y, 0.5 * height / focal_y],
        [0, 0, -1],
    ])


def read_pixels_of(files, sizes, num_channels):
    """All images, made `sizes [N, 2]` big by area averages, as uint8 `[P, num_channels]`."""
    pixels = np.empty((int(sizes.prod(dim=-1).sum()), num_channels), dtype=np.uint8)
    first = 0
    for file, (width, height) in zip(files, sizes.tolist(), strict=True):
        image = image_utils.read_image(file, num_channels)
        small = image_utils.resize_area(image, width, height)
        pixels[first : first + width * height] = small.reshape(-1, num_channels)
        first += width * height
    return torch.from_numpy(pixels)


def make_scene(*, files, names, cameras, num_channels, read_pixels, **facts):
    """A `Scene` of images whose sizes the cameras tell."""
    ends = cameras.sizes.prod(dim=-1).cumsum(0)
    pixels = read_pixels_of(files, cameras.sizes, num_channels) if read_pixels else None
    return Scene(
        pixels=pixels, offsets=torch.cat([torch.zeros_like(ends[:1]), ends]), cameras=cameras,
        names=tuple(names), files=tuple(map(str, files)), **facts,
    )


def make_cameras(camtoworlds, pixtocams, sizes, **facts):
    """`Cameras` in float32 from float64 arrays."""
    return Cameras(
        camtoworlds=torch.as_tensor(np.asarray(camtoworlds), dtype=torch.float32),
        pixtocams=torch.as_tensor(np.asarray(pixtocams), dtype=torch.float32),
        sizes=torch.as_tensor(np.asarray(sizes), dtype=torch.int64),
        **facts,
    )


def cube(half_width):
    """The corners `[2, 3]` of a cube about the origin."""
    return torch.tensor([[-half_width] * 3, [half_width] * 3])


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


def ray_box(cameras):
    """The corners `[2, 3]` of the box around all rays between near and far."""
    rays = corner_rays(cameras)
    ends = torch.cat([rays.origins + t * rays.directions for t in (rays.near, rays.far)])
    ends = ends.reshape(-1, 3)
    return torch.stack([ends.amin(dim=0), ends.amax(dim=0)])


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
