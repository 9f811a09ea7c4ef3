"""Cameras of the browser and of the project, and where a viewer begins.

The browser's library (viser) has OpenCV axes: x right, y down, looking along +z. Its cameras have
square pixels, the principal point in the centre, and a vertical angle of view.
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

import pose_utils
from cameras.keyframes import vertical_fovs
from cameras.paths import central_pose, largest_image, summarize_cameras
from structures import Cameras

# OpenCV's axes in OpenGL's.
FLIP = np.array([1.0, -1.0, -1.0])

# Clipping planes of the browser, relative to the distance between the cameras and the scene.
NEAR, FAR = 1e-3, 1e3


class Stage(NamedTuple):
    """The first view of a scene, and its size.

    camtoworld: `[3, 4]`, its first pose; up: `[3]`; focus: `[3]`, about which it turns; distance:
    from the first pose to the focus, in world units; fov: vertical angle of view in radians;
    aspect: width over height of the training images.
    """

    camtoworld: np.ndarray
    up: np.ndarray
    focus: np.ndarray
    distance: float
    fov: float
    aspect: float


def stage_of(cameras: Cameras) -> Stage:
    """The `Stage` of the training cameras: amid them, as for a video's `--path still`."""
    layout = summarize_cameras(cameras)
    pose = central_pose(layout)[0]
    index = largest_image(cameras)
    width, height = cameras.sizes[index].tolist()
    distance = float((layout.focus - pose[:, 3]) @ -pose[:, 2])
    if distance <= 0:  # The cameras look away from one another.
        distance = float(np.ptp(layout.camtoworlds[:, :, 3], axis=0).max()) or 1.0
    return Stage(pose, pose_utils.up_direction(layout.camtoworlds),
                 pose_utils.point_at_depth(pose, distance), distance,
                 float(vertical_fovs(cameras)[index]), width / height)


def fitted_fov(fov: float, aspect: float, window_aspect: float) -> float:
    """The vertical angle of view at which a window shows at least an image of another aspect."""
    return 2 * math.atan(math.tan(0.5 * fov) * max(1.0, aspect / window_aspect))


def from_viser(wxyz: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The pose `[3, 4]` of a camera in the browser; wxyz: `[4]` a quaternion."""
    w, x, y, z = wxyz
    rotation = Rotation.from_quat([x, y, z, w]).as_matrix() * FLIP
    return np.concatenate([rotation, np.asarray(position, dtype=float)[:, None]], axis=1)


def to_viser(camtoworld: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quaternion `[4]` (w first) and position `[3]` in the browser of a pose `[3, 4]`."""
    x, y, z, w = Rotation.from_matrix(camtoworld[:, :3] * FLIP).as_quat()
    return np.array([w, x, y, z]), camtoworld[:, 3]


def move_client(client, camtoworld: np.ndarray, stage: Stage, fov: float | None = None) -> None:
    """Move a browser's camera to a pose, so that the mouse turns it about the scene's focus."""
    wxyz, position = to_viser(camtoworld)
    forward = -camtoworld[:, 2]
    depth = max(float((stage.focus - position) @ forward), 0.1 * stage.distance)
    camera = client.camera
    with client.atomic():
        camera.up_direction = stage.up
        camera.position = position
        camera.look_at = position + depth * forward
        camera.wxyz = wxyz
        if fov is not None:
            camera.fov = fov
