"""Camera paths of videos, from the cameras that a scene was trained on.

For cameras that face inward: ellipses, circles and helices about what they look at. For cameras
that face forward: LLFF's spiral, and arcs that stay among the cameras.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

import pose_utils
from ray_utils import corner_rays
from runtime.errors import UserError
from structures import Cameras

# Cameras face forward if the mean of their unit view directions is longer than this, that is, if
# they agree within some 25 degrees.
FORWARD_FACING = 0.95

# Cameras cover only an arc if their azimuths about the focus leave a gap larger than this.
LARGEST_GAP = math.radians(120)

# Turns of a video's helix, and of LLFF's spiral.
HELIX_TURNS = 2
SPIRAL_TURNS = 2

# LLFF's spiral looks at the depth whose disparity is this weighted mean of those of the nearest and
# farthest depth. In NDC the nearest depth is taken to be this many near planes away.
NEAR_DISPARITY_WEIGHT = 0.25
NEAREST_IN_NEAR_PLANES = 1.2

# Least extent of a path, if all cameras are in one place; least distance at which rays start in a
# dolly shot. Both are relative to the distance to the focus.
MIN_EXTENT = 0.02
MIN_NEAR = 0.01

# The distance of NDC's near plane in the world of recentred cameras.
NDC_NEAR = 1.0


class CameraLayout(NamedTuple):
    """The layout of training cameras, from which the paths are derived.

    camtoworlds: `[N, 3, 4]`; focus: `[3]`, the point that the cameras look at; distance: their
    median distance to it, 0 if they look away from one another; near, far: the range of t that they
    see; forward_facing: whether all look in about one direction.
    """

    camtoworlds: np.ndarray
    focus: np.ndarray
    distance: float
    near: float
    far: float
    forward_facing: bool


def path_cameras(cameras: Cameras, path: str, num_frames: int, *, width: int | None = None,
                 height: int | None = None, zoom: float = 2.0, dolly: bool = False) -> Cameras:
    """The pinhole `Cameras` of a video's frames.

    cameras: those of the training views.
    path: "ellipse" (fitted to the cameras, within their range) or "spherical" (a circle about the
        focus), both replaced by an arc if cameras face forward; "spiral" (a helix from the equator
        to the pole, or LLFF's spiral); "zoom" (to `zoom` times the focal length and back; with
        `dolly` the camera approaches instead); or "still".
    width, height: of the frames in pixels. If one is None, it follows from the other; if both are,
        they are those of the largest training image. A frame shows at least what that image shows.
    Raises UserError if the path has rays that NDC cannot represent.
    """
    layout = summarize_cameras(cameras)
    phase = 2 * math.pi * np.arange(num_frames) / num_frames
    magnification = np.ones(num_frames)
    if path == "still":
        camtoworlds = np.repeat(central_pose(layout), num_frames, axis=0)
    elif path == "zoom":
        camtoworlds = np.repeat(central_pose(layout), num_frames, axis=0)
        magnification = zoom ** (0.5 - 0.5 * np.cos(phase))
        if dolly:
            camtoworlds = move_to_focus(layout, camtoworlds, magnification)
            magnification = np.ones(num_frames)
    else:
        camtoworlds = PATHS[path][layout.forward_facing](layout, phase)
    size, pixtocams = frame_intrinsics(cameras, width, height, magnification)
    near, far = frame_range(cameras, layout, camtoworlds)
    frames = Cameras(
        camtoworlds=torch.as_tensor(camtoworlds, dtype=torch.float32),
        pixtocams=torch.as_tensor(pixtocams, dtype=torch.float32),
        sizes=torch.tensor([size] * num_frames), near=near, far=far, ndc=cameras.ndc,
    )
    if cameras.ndc is not None:
        check_ndc(frames, path)
    return frames


def choose_path(cameras: Cameras) -> tuple[str, str]:
    """The path that suits training cameras, "spiral" or "ellipse", and the reason in words."""
    layout = summarize_cameras(cameras)
    if layout.forward_facing:
        return "spiral", "the cameras face forward"
    if not layout.distance:
        return "ellipse", "the cameras look away from one another"
    covered = math.degrees(covered_arc(layout)[1])
    return "ellipse", f"the cameras cover {covered:.0f} of 360 degrees around what they look at"


def summarize_cameras(cameras: Cameras) -> CameraLayout:
    """The `CameraLayout` of training cameras."""
    camtoworlds = cameras.camtoworlds.double().cpu().numpy()
    directions = -camtoworlds[:, :, 2]
    agreement = np.linalg.norm(directions.mean(axis=0))
    forward_facing = len(camtoworlds) > 1 and agreement > FORWARD_FACING
    near, far = cameras.visible_range or (float(cameras.near.min()), float(cameras.far.max()))
    if cameras.ndc is not None:
        forward_facing, near, far = True, NEAREST_IN_NEAR_PLANES, math.inf
    focus = pose_utils.focus_point(camtoworlds)
    depth = np.median(np.sum((focus - camtoworlds[:, :, 3]) * directions, axis=-1))
    if depth < 0 and not forward_facing and len(camtoworlds) > 1:
        # The cameras look away from one another: the video camera rotates in place.
        return CameraLayout(camtoworlds, focus, 0.0, near, far, False)
    # Optical axes that are parallel, or meet out of range, do not determine the focus.
    if forward_facing or (not near < depth < far and agreement > 0.1):
        nearest = near or 0.1 * far  # Rays that start at the camera give no nearest depth.
        depth = 1 / (NEAR_DISPARITY_WEIGHT / nearest + (1 - NEAR_DISPARITY_WEIGHT) / far)
        focus = pose_utils.point_at_depth(pose_utils.average_pose(camtoworlds), depth)
    distance = float(np.median(np.linalg.norm(camtoworlds[:, :, 3] - focus, axis=-1)))
    return CameraLayout(camtoworlds, focus, distance, near, far, forward_facing)


# Paths of inward-facing cameras. `phase [F]` runs from 0 to 2 pi; poses are `[F, 3, 4]`.


def circle(layout: CameraLayout, phase: np.ndarray) -> np.ndarray:
    """A full circle about the focus, at the cameras' median elevation."""
    up = pose_utils.up_direction(layout.camtoworlds)
    azimuths, elevations = pose_utils.angles_about(layout.camtoworlds, layout.focus, up)
    elevation = np.full_like(phase, np.median(elevations))
    return pose_utils.orbit(layout.focus, up, layout.distance, azimuths[0] + phase, elevation)


def ellipse(layout: CameraLayout, phase: np.ndarray) -> np.ndarray:
    """An ellipse fitted to the cameras; back and forth if they cover only an arc.

    Positions are the curve p(azimuth) = c + a cos(azimuth) + b sin(azimuth) that is the
    least-squares fit to the cameras; the points that they look at are fitted in the same way.
    """
    if not layout.distance:
        return circle(layout, phase)
    up = pose_utils.up_direction(layout.camtoworlds)
    azimuths, _ = pose_utils.angles_about(layout.camtoworlds, layout.focus, up)
    first, covered = covered_arc(layout)
    is_closed = covered > 2 * math.pi - LARGEST_GAP
    frame_azimuths = (azimuths[0] + phase if is_closed
                      else first + covered * (0.5 - 0.5 * np.cos(phase)))

    def basis(angles):
        return np.stack([np.ones_like(angles), np.cos(angles), np.sin(angles)], axis=-1)

    curves, *_ = np.linalg.lstsq(
        basis(azimuths), np.c_[layout.camtoworlds[:, :, 3], look_at_points(layout)], rcond=None)
    positions, targets = np.split(basis(frame_azimuths) @ curves, 2, axis=-1)
    return np.stack([pose_utils.view_matrix(p - t, up, p)
                     for p, t in zip(positions, targets, strict=True)])


def look_at_points(layout: CameraLayout) -> np.ndarray:
    """For each camera, the point `[N, 3]` on its optical axis that is nearest to the focus."""
    positions, directions = layout.camtoworlds[:, :, 3], -layout.camtoworlds[:, :, 2]
    depth = np.sum((layout.focus - positions) * directions, axis=-1, keepdims=True)
    return positions + np.maximum(depth, MIN_EXTENT * layout.distance) * directions


def covered_arc(layout: CameraLayout) -> tuple[float, float]:
    """The first azimuth, and the angle, of the arc about the focus that cameras cover; radians."""
    up = pose_utils.up_direction(layout.camtoworlds)
    azimuths = np.sort(pose_utils.angles_about(layout.camtoworlds, layout.focus, up)[0])
    gaps = np.diff(azimuths, append=azimuths[0] + 2 * math.pi)
    widest = int(gaps.argmax())
    return azimuths[(widest + 1) % len(azimuths)], 2 * math.pi - gaps[widest]


def helix(layout: CameraLayout, phase: np.ndarray) -> np.ndarray:
    """From the equator to the pole in two turns about the focus."""
    up = pose_utils.up_direction(layout.camtoworlds)
    azimuths, _ = pose_utils.angles_about(layout.camtoworlds, layout.focus, up)
    frame_azimuths = azimuths[0] + HELIX_TURNS * phase
    return pose_utils.orbit(layout.focus, up, layout.distance, frame_azimuths,
                            np.linspace(0, math.pi / 2, len(phase)))


# Paths of forward-facing cameras.


def spiral(layout: CameraLayout, phase: np.ndarray) -> np.ndarray:
    """LLFF's spiral: two turns within the cameras' extent, once forward and back."""
    angle = SPIRAL_TURNS * phase
    offsets = np.stack([np.cos(angle), -np.sin(angle), -np.sin(angle / SPIRAL_TURNS)], axis=-1)
    return poses_near_average(layout, offsets * camera_extent(layout))


def arc(layout: CameraLayout, phase: np.ndarray) -> np.ndarray:
    """Back and forth on an arc about the focus, within the cameras' horizontal extent."""
    angle = math.atan2(camera_extent(layout)[0], layout.distance) * np.sin(phase)
    offsets = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle) - 1], axis=-1)
    return poses_near_average(layout, offsets * layout.distance)


def camera_extent(layout: CameraLayout) -> np.ndarray:
    """The 90th percentile of the cameras' offsets from their average pose, `[3]` along its axes."""
    average = pose_utils.average_pose(layout.camtoworlds)
    offsets = (layout.camtoworlds[:, :, 3] - average[:, 3]) @ average[:, :3]
    return np.maximum(np.percentile(np.abs(offsets), 90, axis=0),
                      np.array([1, 1, 0]) * MIN_EXTENT * layout.distance)


def poses_near_average(layout: CameraLayout, offsets: np.ndarray) -> np.ndarray:
    """Poses that look at the focus, at `offsets [F, 3]` along the axes of the average pose."""
    average = pose_utils.average_pose(layout.camtoworlds)
    positions = average[:, 3] + offsets @ average[:, :3].T
    return np.stack([pose_utils.view_matrix(p - layout.focus, average[:, 1], p)
                     for p in positions])


# The functions of each path, for inward-facing (False) and forward-facing cameras (True).
PATHS = {"ellipse": {False: ellipse, True: arc}, "spherical": {False: circle, True: arc},
         "spiral": {False: helix, True: spiral}}


# Zooming.


def central_pose(layout: CameraLayout) -> np.ndarray:
    """The pose `[1, 3, 4]` amid the cameras, or on the circle at the first one's azimuth."""
    if layout.forward_facing:
        return poses_near_average(layout, np.zeros((1, 3)))
    return circle(layout, np.zeros(1))


def move_to_focus(layout: CameraLayout, camtoworlds: np.ndarray,
                  magnification: np.ndarray) -> np.ndarray:
    """Poses moved towards the focus until it appears `magnification [F]` times as large."""
    moved = camtoworlds.copy()
    moved[:, :, 3] = layout.focus + (moved[:, :, 3] - layout.focus) / magnification[:, None]
    return moved


# Rays.


def frame_range(cameras: Cameras, layout: CameraLayout, camtoworlds: np.ndarray
                ) -> tuple[np.ndarray | float, np.ndarray | float]:
    """near and far, numbers or `[F]`: the range around the focus that the training rays cover.

    Rays in NDC, and rays that reach beyond what is visible, keep the range of training.
    """
    near, far = float(cameras.near.min()), float(cameras.far.max())
    beyond = cameras.visible_range and not np.allclose(cameras.visible_range, (near, far))
    if cameras.ndc is not None or beyond:
        return near, far
    shift = np.linalg.norm(camtoworlds[:, :, 3] - layout.focus, axis=-1) - layout.distance
    smallest = min(layout.near, MIN_NEAR * layout.distance)
    return np.maximum(layout.near + shift, smallest), layout.far + shift


def frame_intrinsics(cameras: Cameras, width: int | None, height: int | None,
                     magnification: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """Size (width, height) and pixel-to-camera matrices `[F, 3, 3]` of frames.

    They follow the largest training image, all of which is visible at the centre of a frame.
    """
    largest = largest_image(cameras)
    full = cameras.sizes[largest].cpu().numpy()
    inverse = cameras.pixtocams[largest].double().cpu().numpy()
    width, height = frame_size(cameras, width, height)
    scale = min(width / full[0], height / full[1])
    focal_x, focal_y = (scale * magnification / abs(inverse[i, i]) for i in (0, 1))
    pixtocams = np.zeros((len(magnification), 3, 3))
    pixtocams[:, 0, 0], pixtocams[:, 0, 2] = 1 / focal_x, -0.5 * width / focal_x
    pixtocams[:, 1, 1], pixtocams[:, 1, 2] = -1 / focal_y, 0.5 * height / focal_y
    pixtocams[:, 2, 2] = -1
    return (width, height), pixtocams


def frame_size(cameras: Cameras, width: int | None, height: int | None) -> tuple[int, int]:
    """Width and height of frames; what is None follows from the largest training image."""
    full = cameras.sizes[largest_image(cameras)].tolist()
    if width is None and height is None:
        return full[0], full[1]
    return (width or max(1, round(full[0] * height / full[1])),
            height or max(1, round(full[1] * width / full[0])))


def largest_image(cameras: Cameras) -> int:
    """The index of the training image with the most pixels."""
    return int(cameras.sizes.prod(dim=-1).argmax())


def check_ndc(cameras: Cameras, path: str) -> None:
    """Raise UserError for cameras behind NDC's near plane, or with rays that do not face -z."""
    deepest = float(cameras.camtoworlds[:, 2, 3].min())
    steepest = float(corner_rays(replace(cameras, ndc=None)).viewdirs[..., 2].max())
    if deepest > -NDC_NEAR and steepest < 0:
        return
    fault = (f"moves a camera to z = {deepest:.2f}, behind NDC's near plane z = -{NDC_NEAR:g}"
             if deepest <= -NDC_NEAR else "has rays that do not go towards -z")
    raise UserError(f"the {path} path {fault}, which NDC cannot represent, and this model was "
                    "trained in NDC; use a smaller --zoom, --no-dolly, another --path, or a "
                    "--width and --height nearer to the images' proportions.")
