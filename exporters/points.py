"""Surface points of a trained scene along its training views: a start for splat trainers."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import pose_utils
from exporters.survey import coarse_rays
from image_utils import to_uint8
from ray_utils import world_points
from rendering import Renderer, surface_normals, world_distance
from runtime.errors import UserError
from structures import Scene

# Surfaces beyond this normalized distance s are the sky, at no distance that images can tell.
FARTHEST = 0.99


class SurfacePoints(NamedTuple):
    """Points on surfaces in the world of the cameras.

    positions: `[M, 3]`; normals: `[M, 3]`, unit vectors towards a camera; colours: `[M, 3]` in
    [0, 1].
    """

    positions: Tensor
    normals: Tensor
    colours: Tensor


def surface_points(renderer: Renderer, scene: Scene, count: int, chunk: int | None = None
                   ) -> SurfacePoints:
    """About `count` surface points, evenly spaced in the images of all training views.

    scene: of the training views, on the model's device. Rays that are not opaque, or end in the
    sky, have no point. Raises UserError if no ray hits a surface.
    """
    num_pixels = int(scene.cameras.sizes.prod(dim=-1).sum())
    stride = max(1, round((num_pixels / count) ** 0.5))
    views = [points_of_view(renderer, scene, i, stride, chunk) for i in range(len(scene.cameras))]
    points = SurfacePoints(*(torch.cat(parts).cpu() for parts in zip(*views, strict=True)))
    if not len(points.positions):
        raise UserError("no ray of the training views hits a surface; train longer.")
    return points


def points_of_view(renderer: Renderer, scene: Scene, index: int, stride: int,
                   chunk: int | None) -> SurfacePoints:
    """The surface points of one training view, at every `stride`-th pixel."""
    cameras, rays = scene.cameras, coarse_rays(scene.cameras, index, stride)
    output = renderer.render(scene.light_rays(rays, index), chunk)
    distance = world_distance(cameras, rays, output.distance_median)
    normals = surface_normals(distance, rays.viewdirs, output.acc)
    s = renderer.model.normalized_distance(rays, output.distance_median[..., None])[..., 0]
    shown = (output.acc > 0.5) & (s < FARTHEST)
    points = world_points(cameras, rays, output.distance_median)
    return SurfacePoints(points[shown], normals[shown], output.rgb[shown].clamp(0, 1))


def ply_content(points: SurfacePoints, world_to_scene: Tensor) -> bytes:
    """A binary PLY file of points in the coordinates of the scene's files.

    world_to_scene: `[4, 4]` of `Scene`. Positions are doubles if the scene lies far from its
    origin, where floats would move them by more than a hundred-thousandth of their extent.
    """
    to_files = np.linalg.inv(world_to_scene.cpu().double().numpy())
    positions = pose_utils.transform_points(points.positions.double().numpy(), to_files)
    rotation = to_files[:3, :3] / pose_utils.scale_of(to_files)
    normals = points.normals.double().numpy() @ rotation.T
    extent = np.ptp(positions, axis=0).max()
    kind = "f8" if np.abs(positions).max() * 2**-24 > 1e-5 * extent else "f4"
    columns = [*((name, kind) for name in "xyz"), *((f"n{name}", "f4") for name in "xyz"),
               *((name, "u1") for name in ("red", "green", "blue"))]
    vertices = np.empty(len(positions), dtype=[(name, "<" + code) for name, code in columns])
    values = np.concatenate([positions, normals, to_uint8(points.colours.numpy())], axis=1)
    for column, (name, _) in zip(values.T, columns, strict=True):
        vertices[name] = column
    words = {"f4": "float", "f8": "double", "u1": "uchar"}
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}",
            *(f"property {words[code]} {name}" for name, code in columns), "end_header", ""]
    return "\n".join(head).encode() + vertices.tobytes()
