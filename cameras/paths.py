"""Cameras of a video, from the cameras that a scene was trained on.

Cameras that look at one thing from around it are followed by ellipses, circles and helices about
it; cameras that look one way, by LLFF's spiral and by arcs that stay among them.
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

# Mean of unit view directions above which cameras look one way: within some 25 degrees.
FORWARD_FACING = 0.95

# Cameras that leave out more than this angle in a row, as seen from their focus, stand on an arc.
LARGEST_GAP = math.radians(120)

HELIX_TURNS = 2

SPIRAL_TURNS = 2

# LLFF's spiral looks at a depth between the nearest and the farthest that a scene has, weighing
# their disparities so, and NDC's near plane is put a little before the nearest.
NEAR_DISPARITY_SHARE = 0.25

NEAREST_IN_NEAR_PLANES = 1.2

# Share of the distance to the focus that a camera moves at least, where all stood in one place.
SMALLEST_SPREAD = 0.02

# Closest that a dolly shot brings the near end of a ray to the camera, as a share of the distance
# to the focus.
SMALLEST_NEAR = 0.01

# Where NDC's near plane lies in the world of recentred cameras.
NDC_NEAR = 1.0


class View(NamedTuple):
    """How a scene was looked at: what the paths start from.

    camtoworlds: `[N, 3, 4]`; focus: `[3]`, what the cameras look at, and `distance`, how far it
    typically is; near, far: the ends of their rays; forward_facing: whether all look one way.
    """

    camtoworlds: np.ndarray
    focus: np.ndarray
    distance: float
    near: float
    far: float
    forward_facing: bool


def path_cameras(cameras, path, num_frames, *, width=None, height=None, zoom=2.0, dolly=False):
    """The `Cameras` of a video's frames, pinholes all.

    cameras: those of the training views. path: "ellipse" (through the cameras, no farther than they
    go), "spherical" (a circle about the focus), either an arc for cameras that look one way;
    "spiral" (a helix from the equator to the pole; LLFF's spiral), "zoom" (to `zoom` times the
    focal length and back; with `dolly` the camera comes as much closer instead), or "still".
    width, height: of the frames in pixels; in proportion to the other, or the largest picture's, if
    None. Frames show at least what that picture shows.
    Raises UserError for a path with rays that NDC cannot express.
    """
    view = look(cameras)
    phase = 2 * math.pi * np.arange(num_frames) / num_frames
    magnification = np.ones(num_frames)
    if path == "still":
        camtoworlds = np.repeat(home(view), num_frames, axis=0)
    elif path == "zoom":
        camtoworlds = np.repeat(home(view), num_frames, axis=0)
        magnification = zoom ** (0.5 - 0.5 * np.cos(phase))
        if dolly:
            camtoworlds = closer(view, camtoworlds, magnification)
            magnification = np.ones(num_frames)
    else:
        camtoworlds = PATHS[path][view.forward_facing](view, phase)
    size, pixtocams = frame_intrinsics(cameras, width, height, magnification)
    near, far = ray_ends(view, camtoworlds) if cameras.ndc is None else (0.0, 1.0)
    made = Cameras(
        camtoworlds=torch.as_tensor(camtoworlds, dtype=torch.float32),
        pixtocams=torch.as_tensor(pixtocams, dtype=torch.float32),
        sizes=torch.tensor([size] * num_frames), near=near, far=far, ndc=cameras.ndc,
    )
    if cameras.ndc is not None:
        check_expressible(made, path)
    return made


def choose_path(cameras):
    """The path that fits how training cameras stand: "spiral" or "ellipse"; and how they stand."""
    view = look(cameras)
    if view.forward_facing:
        return "spiral", "the cameras look one way"
    if not view.distance:
        return "ellipse", "the cameras look away from one another"
    covered = math.degrees(covered_arc(view)[1])
    return "ellipse", f"the cameras stand on {covered:.0f} of 360 degrees about what they look at"


def look(cameras):
    """The `View` of training cameras."""
    camtoworlds = cameras.camtoworlds.double().cpu().numpy()
    directions = -camtoworlds[:, :, 2]
    agreement = np.linalg.norm(directions.mean(axis=0))
    one_way = len(camtoworlds) > 1 and agreement > FORWARD_FACING
    near, far = float(cameras.near.min()), float(cameras.far.max())
    if cameras.ndc is not None:
        one_way, near, far = True, NEAREST_IN_NEAR_PLANES, math.inf
    focus = pose_utils.focus_point(camtoworlds)
    ahead = np.median(np.sum((focus - camtoworlds[:, :, 3]) * directions, axis=-1))
    if ahead < 0 and not one_way and len(camtoworlds) > 1:
        # Cameras that look away from one another: the video turns on the spot.
        return View(camtoworlds, focus, 0.0, near, far, False)
    # Axes that are parallel, or meet out of reach, do not tell what the cameras look at.
    if one_way or (not near < ahead < far and agreement > 0.1):
        nearest = near or 0.1 * far  # Rays that start at the camera tell no nearest depth.
        depth = 1 / (NEAR_DISPARITY_SHARE / nearest + (1 - NEAR_DISPARITY_SHARE) / far)
        focus = pose_utils.ahead_of(pose_utils.average_pose(camtoworlds), depth)
    distance = float(np.median(np.linalg.norm(camtoworlds[:, :, 3] - focus, axis=-1)))
    return View(camtoworlds, focus, distance, near, far, one_way)


def circle(view, phase):
    """A full circle about the focus, as high as the cameras' median."""
    up = pose_utils.up_direction(view.camtoworlds)
    azimuths, elevations = pose_utils.angles_about(view.camtoworlds, view.focus, up)
    height = np.full_like(phase, np.median(elevations))
    return pose_utils.orbit(view.focus, up, view.distance, azimuths[0] + phase, height)


def ellipse(view, phase):
    """The ellipse through the cameras about the focus; there and back where they stand on an arc.

    Of the curves p(angle) = c + a cos(angle) + b sin(angle), that of least squares to the cameras;
    what they look at is followed by such a curve too.
    """
    if not view.distance:
        return circle(view, phase)
    up = pose_utils.up_direction(view.camtoworlds)
    azimuths, _ = pose_utils.angles_about(view.camtoworlds, view.focus, up)
    first, covered = covered_arc(view)
    whole = covered > 2 * math.pi - LARGEST_GAP
    turn = azimuths[0] + phase if whole else first + covered * (0.5 - 0.5 * np.cos(phase))

    def basis(angles):
        return np.stack([np.ones_like(angles), np.cos(angles), np.sin(angles)], axis=-1)

    curves, *_ = np.linalg.lstsq(
        basis(azimuths), np.c_[view.camtoworlds[:, :, 3], looked_at(view)], rcond=None)
    positions, targets = np.split(basis(turn) @ curves, 2, axis=-1)
    return np.stack([pose_utils.view_matrix(p - t, up, p)
                     for p, t in zip(positions, targets, strict=True)])


def looked_at(view):
    """What each camera looks at: the point `[N, 3]` of its axis that is nearest to the focus."""
    positions, directions = view.camtoworlds[:, :, 3], -view.camtoworlds[:, :, 2]
    along = np.sum((view.focus - positions) * directions, axis=-1, keepdims=True)
    return positions + np.maximum(along, SMALLEST_SPREAD * view.distance) * directions


def covered_arc(view):
    """Where the arc on which cameras stand about the focus begins, and its angle, in radians."""
    up = pose_utils.up_direction(view.camtoworlds)
    azimuths = np.sort(pose_utils.angles_about(view.camtoworlds, view.focus, up)[0])
    gaps = np.diff(azimuths, append=azimuths[0] + 2 * math.pi)
    widest = int(gaps.argmax())
    return azimuths[(widest + 1) % len(azimuths)], 2 * math.pi - gaps[widest]


def helix(view, phase):
    """From the equator to the pole, all around twice."""
    up = pose_utils.up_direction(view.camtoworlds)
    azimuths, _ = pose_utils.angles_about(view.camtoworlds, view.focus, up)
    turn = azimuths[0] + HELIX_TURNS * phase
    return pose_utils.orbit(view.focus, up, view.distance, turn,
                            np.linspace(0, math.pi / 2, len(phase)))


def spiral(view, phase):
    """LLFF's spiral: two turns among the cameras that rise and sink once."""
    turn = SPIRAL_TURNS * phase
    offsets = np.stack([np.cos(turn), -np.sin(turn), -np.sin(turn / SPIRAL_TURNS)], axis=-1)
    return among(view, offsets * spread(view))


def arc(view, phase):
    """There and back on an arc about the focus, within the cameras' spread to the sides."""
    angle = math.atan2(spread(view)[0], view.distance) * np.sin(phase)
    offsets = np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle) - 1], axis=-1)
    return among(view, offsets * view.distance)


def spread(view):
    """How far from their mean pose most cameras stand: `[3]` along its axes."""
    mean = pose_utils.average_pose(view.camtoworlds)
    offsets = (view.camtoworlds[:, :, 3] - mean[:, 3]) @ mean[:, :3]
    return np.maximum(np.percentile(np.abs(offsets), 90, axis=0),
                      np.array([1, 1, 0]) * SMALLEST_SPREAD * view.distance)


def among(view, offsets):
    """Poses at `offsets [F, 3]` along the axes of the mean pose that look at the focus."""
    mean = pose_utils.average_pose(view.camtoworlds)
    positions = mean[:, 3] + offsets @ mean[:, :3].T
    return np.stack([pose_utils.view_matrix(p - view.focus, mean[:, 1], p) for p in positions])


PATHS = {"ellipse": {False: ellipse, True: arc}, "spherical": {False: circle, True: arc},
         "spiral": {False: helix, True: spiral}}


def home(view):
    """The pose `[1, 3, 4]` in the middle of the views' own."""
    return among(view, np.zeros((1, 3))) if view.forward_facing else circle(view, np.zeros(1))


def closer(view, camtoworlds, magnification):
    """Poses moved towards the focus until it looks `magnification [F]` times as large."""
    moved = camtoworlds.copy()
    moved[:, :, 3] = view.focus + (moved[:, :, 3] - view.focus) / magnification[:, None]
    return moved


def ray_ends(view, camtoworlds):
    """near and far `[F]`: the range about the focus that the training rays cover."""
    shift = np.linalg.norm(camtoworlds[:, :, 3] - view.focus, axis=-1) - view.distance
    smallest = min(view.near, SMALLEST_NEAR * view.distance)
    return np.maximum(view.near + shift, smallest), view.far + shift


def frame_intrinsics(cameras, width, height, magnification):
    """Size (width, height) and pixel-to-camera matrices `[F, 3, 3]` of frames.

    As those of the largest training picture, all of which is shown in the middle of a frame.
    """
    largest = int(cameras.sizes.prod(dim=-1).argmax())
    full = cameras.sizes[largest].cpu().numpy()
    inverse = cameras.pixtocams[largest].double().cpu().numpy()
    if width is None and height is None:
        width, height = full.tolist()
    width = width or max(1, round(full[0] * height / full[1]))
    height = height or max(1, round(full[1] * width / full[0]))
    scale = min(width / full[0], height / full[1])
    focal_x, focal_y = (scale * magnification / abs(inverse[i, i]) for i in (0, 1))
    pixtocams = np.zeros((len(magnification), 3, 3))
    pixtocams[:, 0, 0], pixtocams[:, 0, 2] = 1 / focal_x, -0.5 * width / focal_x
    pixtocams[:, 1, 1], pixtocams[:, 1, 2] = -1 / focal_y, 0.5 * height / focal_y
    pixtocams[:, 2, 2] = -1
    return (width, height), pixtocams


def check_expressible(cameras, path):
    """Raise UserError for cameras behind NDC's near plane or with rays not towards -z."""
    deepest = float(cameras.camtoworlds[:, 2, 3].min())
    steepest = float(corner_rays(replace(cameras, ndc=None)).viewdirs[..., 2].max())
    if deepest > -NDC_NEAR and steepest < 0:
        return
    fault = (f"moves a camera to z = {deepest:.2f}, behind the plane z = -{NDC_NEAR:g}"
             if deepest <= -NDC_NEAR else "has rays that do not go towards -z,")
    raise UserError(f"the {path} path {fault} where NDC ends, in which this model was trained; "
                    "take a smaller --zoom, --no-dolly, another --path, or a --width and --height "
                    "nearer to the pictures' proportions.")
