"""Films through key frames: a spline through camera positions, directions and focal lengths.

A path file is JSON, in the coordinates of the scene's files:

    {"closed": false, "constant_speed": true, "key_frames": [
        {"camera_to_world": [[...], [...], [...]], "vertical_fov": 45.0}, ...]}

`camera_to_world` is `[3, 4]` with OpenGL axes; `vertical_fov` is the vertical angle of view in
degrees.
"""

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline, PchipInterpolator
from scipy.spatial.transform import Rotation

import pose_utils
from cameras.paths import check_ndc, frame_range, frame_size, summarize_cameras
from runtime.errors import UserError
from runtime.files import write_atomically
from runtime.reading import parse_json, read_bytes
from structures import Cameras, Scene

# Points per key frame at which a spline's length is measured.
LENGTH_SAMPLES = 200

FORMAT = ('{"closed": ..., "constant_speed": ..., "key_frames": [{"camera_to_world": ..., '
          '"vertical_fov": ...}, ...]}')


@dataclass(frozen=True, kw_only=True)
class KeyFrames:
    """K key frames in the cameras' world, and how a film goes through them.

    camtoworlds: `[K, 3, 4]`; fovs: `[K]` vertical angles of view in radians; closed: whether the
    film returns to the first one; constant_speed: whether the camera moves evenly, instead of
    taking the same time from each key frame to the next.
    """

    camtoworlds: np.ndarray
    fovs: np.ndarray
    closed: bool = False
    constant_speed: bool = True

    def __len__(self) -> int:
        return len(self.fovs)

    def checksum(self) -> str:
        """Eight hexadecimal digits that identify the film."""
        content = self.camtoworlds.tobytes() + self.fovs.tobytes()
        return f"{zlib.crc32(content + bytes([self.closed, self.constant_speed])):08x}"


# From --path.


def names_key_frames(path: str) -> bool:
    """Whether a `--path` is a path file, or a list of training images."""
    return path.endswith(".json") or "," in path


def find_key_frames(path: str, scene: Scene) -> KeyFrames:
    """The `KeyFrames` of a `--path`: a path file, or training images separated by commas.

    scene: of the training views. A list that ends with its first image is closed. Raises UserError
    for a file that cannot be used and for images that are not there.
    """
    if path.endswith(".json"):
        return read_path(Path(path), scene.world_to_scene)
    names = path.split(",")
    closed = len(names) > 2 and names[0] == names[-1]
    indices = [image_index(scene.names, name) for name in (names[:-1] if closed else names)]
    return KeyFrames(camtoworlds=scene.cameras.camtoworlds[indices].cpu().double().numpy(),
                     fovs=vertical_fovs(scene.cameras)[indices], closed=closed)


def image_index(names: Sequence[str], name: str) -> int:
    """The index of a training image, whose folder and suffix may be left out."""
    for key in (str, lambda text: Path(text).name, lambda text: Path(text).stem):
        found = [i for i, other in enumerate(names) if key(other) == key(name)]
        if found:
            return found[0]
    raise UserError(f"--path names {name!r}, which is no training image of this run; its "
                    f"{len(names)} images go from {names[0]} to {names[-1]}.")


def vertical_fovs(cameras: Cameras) -> np.ndarray:
    """Vertical angles of view `[N]` of pinhole cameras, in radians."""
    heights = cameras.sizes[:, 1].cpu().double().numpy()
    return 2 * np.arctan(0.5 * heights * np.abs(cameras.pixtocams[:, 1, 1].cpu().double().numpy()))


# Path files.


def write_path(path: Path, key_frames: KeyFrames, world_to_scene: torch.Tensor) -> None:
    """Write a path file. Raises UserError if it cannot be written."""
    text = path_text(key_frames, world_to_scene)
    write_atomically(path, lambda file: file.write(text.encode()))


def path_text(key_frames: KeyFrames, world_to_scene: torch.Tensor) -> str:
    """The content of a path file."""
    to_files = np.linalg.inv(world_to_scene.cpu().double().numpy())
    poses = pose_utils.transform_poses(key_frames.camtoworlds, to_files)
    frames = [{"camera_to_world": pose.tolist(), "vertical_fov": math.degrees(fov)}
              for pose, fov in zip(poses, key_frames.fovs, strict=True)]
    return json.dumps({"closed": key_frames.closed, "constant_speed": key_frames.constant_speed,
                       "key_frames": frames}, indent=1)


def read_path(path: Path, world_to_scene: torch.Tensor) -> KeyFrames:
    """The `KeyFrames` of a path file. Raises UserError if it cannot be used."""
    return parse_path(read_bytes(path, "give a path.json"), f"--path {path}", world_to_scene)


def parse_path(content: bytes, name: str, world_to_scene: torch.Tensor) -> KeyFrames:
    """The `KeyFrames` of a path file's content; `name` is its name in messages."""
    values = parse_json(content, name)
    frames = values.get("key_frames")
    if not isinstance(frames, list):
        raise UserError(f"{name} has no list key_frames; {FORMAT} is expected.")
    if len(frames) < 2:
        raise UserError(f"{name} has {len(frames)} key frame(s); a film needs two or more.")
    unknown = sorted(values.keys() - {"closed", "constant_speed", "key_frames"})
    if unknown:
        raise UserError(f"{name} has {', '.join(unknown)}, which no path has; {FORMAT} is "
                        "expected.")
    switches = {key: values[key] for key in ("closed", "constant_speed") if key in values}
    for key, value in switches.items():
        if not isinstance(value, bool):
            raise UserError(f"{name} has {key} = {value!r}; true or false is expected.")
    poses, fovs = zip(*(_key_frame(frame, f"{name}: key frame {i + 1}")
                        for i, frame in enumerate(frames)), strict=True)
    poses = pose_utils.transform_poses(np.stack(poses), world_to_scene.cpu().double().numpy())
    return KeyFrames(camtoworlds=poses, fovs=np.array(fovs), **switches)


def _key_frame(frame: Any, name: str) -> tuple[np.ndarray, float]:
    """The pose `[3, 4]` and angle of view in radians of a path file's key frame."""
    frame = frame if isinstance(frame, dict) else {}
    try:
        pose = np.array(frame.get("camera_to_world"), dtype=float)
    except (ValueError, TypeError, OverflowError):
        pose = np.zeros(0)
    if pose.shape not in ((3, 4), (4, 4)):
        raise UserError(f"{name} has no camera_to_world of 3 rows with 4 numbers.")
    rigid, _, fault = pose_utils.rigid_pose(pose[:3])
    if fault:
        raise UserError(f"{name}: camera_to_world {fault}; a rotation and a position are expected.")
    fov = frame.get("vertical_fov")
    if isinstance(fov, bool) or not isinstance(fov, int | float) or not 0 < fov < 180:
        raise UserError(f"{name} has vertical_fov = {fov!r}; degrees between 0 and 180 are "
                        "expected.")
    return rigid, math.radians(fov)


# Films.


def film_cameras(cameras: Cameras, key_frames: KeyFrames, num_frames: int,
                 width: int | None = None, height: int | None = None) -> Cameras:
    """The pinhole `Cameras` of a film's frames.

    cameras: those of the training views; width, height: as in `paths.path_cameras`. Raises
    UserError if the film has rays that NDC cannot represent.
    """
    poses, fovs = interpolate(key_frames, num_frames)
    frames = pinhole_cameras(cameras, poses, fovs, *frame_size(cameras, width, height))
    if cameras.ndc is not None:
        check_ndc(frames, "given")
    return frames


def pinhole_cameras(cameras: Cameras, camtoworlds: np.ndarray, fovs: np.ndarray, width: int,
                    height: int) -> Cameras:
    """Pinhole `Cameras` with square pixels at poses `[F, 3, 4]`, for the scene of `cameras`.

    fovs: `[F]` vertical angles of view in radians. The range of t suits the training views.
    """
    pixel = 2 * np.tan(0.5 * np.asarray(fovs)) / height
    pixtocams = np.zeros((len(pixel), 3, 3))
    pixtocams[:, 0, 0], pixtocams[:, 0, 2] = pixel, -0.5 * width * pixel
    pixtocams[:, 1, 1], pixtocams[:, 1, 2] = -pixel, 0.5 * height * pixel
    pixtocams[:, 2, 2] = -1
    near, far = frame_range(cameras, summarize_cameras(cameras), camtoworlds)
    return Cameras(
        camtoworlds=torch.as_tensor(camtoworlds, dtype=torch.float32),
        pixtocams=torch.as_tensor(pixtocams, dtype=torch.float32),
        sizes=torch.tensor([[width, height]] * len(pixel)), near=near, far=far, ndc=cameras.ndc)


def interpolate(key_frames: KeyFrames, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Poses `[num_frames, 3, 4]` and vertical angles of view `[num_frames]` of a film."""
    knots = _knots(key_frames)
    spline = _spline(key_frames, knots)
    fraction = np.linspace(0, 1, num_frames, endpoint=not key_frames.closed)
    timing = _even_speed if key_frames.constant_speed else _even_time
    values = spline(timing(key_frames, knots, spline, fraction))
    rotations = Rotation.from_quat(values[:, 3:7]).as_matrix()
    poses = np.concatenate([rotations, values[:, :3, None]], axis=2)
    return poses, 2 * np.arctan(np.exp(-values[:, 7]))


def _key_values(key_frames: KeyFrames) -> np.ndarray:
    """Position, quaternion, and log of the focal length in half image heights: `[K, 8]`.

    Neighbouring quaternions are on one side of the sphere. A closed film has the first key frame
    again at its end, `[K + 1, 8]`, and its quaternion may have the other sign there.
    """
    poses = key_frames.camtoworlds
    quaternions = Rotation.from_matrix(poses[:, :, :3]).as_quat()
    focal = -np.log(np.tan(0.5 * key_frames.fovs))
    values = np.concatenate([poses[:, :, 3], quaternions, focal[:, None]], axis=1)
    if key_frames.closed:
        values = np.concatenate([values, values[:1]])
    for before, after in zip(values, values[1:], strict=False):
        after[3:7] *= 1 if before[3:7] @ after[3:7] >= 0 else -1
    return values


def _lengths(values: np.ndarray) -> np.ndarray:
    """Distances `[M - 1]` between values `[M, 8]` of a curve, in units of the world.

    Turning and zooming by 1 count as the mean radius of the curve if it were a circle; the largest
    of the three counts.
    """
    moved = np.linalg.norm(np.diff(values[:, :3], axis=0), axis=1)
    quaternions = values[:, 3:7] / np.linalg.norm(values[:, 3:7], axis=1, keepdims=True)
    cosines = np.abs((quaternions[1:] * quaternions[:-1]).sum(axis=1))
    turned = 2 * np.arccos(np.clip(cosines, 0, 1))
    zoomed = np.abs(np.diff(values[:, 7]))
    radius = moved.sum() / (2 * math.pi) or 1.0
    return np.maximum(moved, radius * np.maximum(turned, zoomed))


def _knots(key_frames: KeyFrames) -> np.ndarray:
    """The spline's parameter at each key frame: centripetal, so that it does not overshoot."""
    lengths = np.sqrt(_lengths(_key_values(key_frames)))
    # Key frames that repeat the one before them still need an interval.
    lengths = np.maximum(lengths, 1e-3 * lengths.max()) if lengths.max() > 0 else lengths + 1
    return np.concatenate([[0.0], np.cumsum(lengths)])


def _spline(key_frames: KeyFrames, knots: np.ndarray) -> CubicSpline:
    """The spline of `_key_values`; that of a closed film repeats after two rounds.

    A camera that turns by 360 degrees ends with minus its first quaternion, and only two rounds
    lead back to it.
    """
    values = _key_values(key_frames)
    if not key_frames.closed:
        return CubicSpline(knots, values, bc_type="natural")
    sign = np.ones(8)
    sign[3:7] = values[0, 3:7] @ values[-1, 3:7]
    second = np.concatenate([sign * values[1:-1], values[:1]])
    return CubicSpline(np.concatenate([knots, knots[1:] + knots[-1]]),
                       np.concatenate([values, second]), bc_type="periodic")


def _even_speed(key_frames, knots, spline, fraction):
    """The parameters `[F]` of frames after fractions of the film's length."""
    samples = np.linspace(0, knots[-1], LENGTH_SAMPLES * len(knots))
    travelled = np.concatenate([[0.0], np.cumsum(_lengths(spline(samples)))])
    if travelled[-1] == 0:
        return fraction * knots[-1]
    return np.interp(fraction * travelled[-1], travelled, samples)


def _even_time(key_frames, knots, spline, fraction):
    """The parameters `[F]` of frames that take equally long between any two key frames."""
    count, total = len(knots) - 1, knots[-1]
    times = np.arange(count + 1)
    if key_frames.closed:
        knots = np.concatenate([knots[:-1] - total, knots, knots[1:] + total])
        times = np.arange(-count, 2 * count + 1)
    return PchipInterpolator(times, knots)(count * fraction)


def with_key_frame(key_frames: KeyFrames | None, index: int, camtoworld: np.ndarray,
                   fov: float) -> KeyFrames:
    """The `KeyFrames` with another one inserted before position `index`."""
    if key_frames is None:
        return KeyFrames(camtoworlds=camtoworld[None], fovs=np.array([fov]))
    return replace(key_frames, fovs=np.insert(key_frames.fovs, index, fov),
                   camtoworlds=np.insert(key_frames.camtoworlds, index, camtoworld, axis=0))


def in_order(key_frames: KeyFrames, order: Sequence[int]) -> KeyFrames:
    """The `KeyFrames` of some indices, in that order."""
    order = list(order)
    return replace(key_frames, camtoworlds=key_frames.camtoworlds[order],
                   fovs=key_frames.fovs[order])
