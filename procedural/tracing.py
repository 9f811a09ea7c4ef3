"""An exact ray tracer of solids: intersections, distances, shading, images.

Geometry (`intersect`, `occluded`, `distance_to_surface`) is independent of colour, so that other
shading can use it. Public functions take and return vectors with their components last, [..., 3].
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from procedural.solids import Part
from procedural.still_life import STILL_LIFE

# The direction to the distant light.
LIGHT = (0.42, -0.58, 0.698)

# Rays traced at once.
RAYS_PER_BAND = 1 << 18


class Surface(NamedTuple):
    """First intersections of rays; without a hit, `part` is -1 and vectors are zero.

    distance: [...] in units of |direction|, inf without a hit; part: [...] index of the part.
    point, normal: [..., 3] in the world, the normal of unit length and outward.
    local: [..., 3], the point in the local frame of its part.
    """

    distance: Tensor
    part: Tensor
    point: Tensor
    normal: Tensor
    local: Tensor


class Material(NamedTuple):
    """Albedo [..., 3] in [0, 1]; strength `gloss` and exponent `shininess` [...] of Blinn-Phong."""

    albedo: Tensor
    gloss: Tensor
    shininess: Tensor


class Hit(NamedTuple):
    """Distance [...] in units of |direction|, inf if none; normal, rgb [..., 3]; bool hit [...]."""

    distance: Tensor
    normal: Tensor
    rgb: Tensor
    hit: Tensor


# Geometry.


def _components(v: Tensor) -> Tensor:
    """Vectors from [..., 3] to [3, N]."""
    return v.reshape(-1, 3).T.contiguous()


def _ray_components(origins: Tensor, directions: Tensor):
    """Both as [3, N]; a vector common to all rays stays [3, 1], which halves the work."""
    shape = torch.broadcast_shapes(origins.shape, directions.shape)
    o, d = (_components(v if v.dim() == 1 else v.expand(shape)) for v in (origins, directions))
    return shape[:-1], o, d


def _first_hit(part: Part, origins: Tensor, directions: Tensor) -> Tensor:
    """Smallest positive t [N] at which rays [3, N] cross the part's surface; inf if none."""
    enter, leave = part.shape.span(part.to_local(origins), part.rotate_to_local(directions))
    t = torch.where(enter > 0, enter, leave)
    return torch.where((enter < leave) & (t > 0), t, torch.inf)


def intersect(origins: Tensor, directions: Tensor, parts=STILL_LIFE) -> Surface:
    """First intersections of rays, in closed form.

    origins, directions: [..., 3] in world units, of any dtype and device; directions need not be
    unit vectors. Origins should be outside the parts; from inside, a ray hits the far wall.
    """
    shape, o, d = _ray_components(origins, directions)
    distance = torch.full_like(o[0] + d[0], torch.inf)
    index = torch.full_like(distance, -1, dtype=torch.long)
    for i, part in enumerate(parts):
        t = _first_hit(part, o, d)
        index = torch.where(t < distance, i, index)
        distance = torch.minimum(t, distance)
    point = torch.where(index >= 0, o + distance * d, 0.0)
    local, normal = torch.zeros_like(point), torch.zeros_like(point)
    for i, part in enumerate(parts):
        rays = (index == i).nonzero()[:, 0]
        on_part = part.to_local(point[:, rays])
        local[:, rays] = on_part
        normal[:, rays] = part.rotate_to_world(part.shape.normal(on_part)).to(normal)
    vectors = [v.T.reshape(*shape, 3) for v in (point, normal, local)]
    return Surface(distance.reshape(shape), index.reshape(shape), *vectors)


def occluded(points: Tensor, directions: Tensor, parts=STILL_LIFE) -> Tensor:
    """Whether rays from points [..., 3] along directions [..., 3] hit any part: bool [...].

    Points should be offset from their own surface (`point + 1e-4 * normal`).
    """
    shape, p, d = _ray_components(points, directions)
    blocked = torch.zeros_like(p[0] + d[0], dtype=torch.bool)
    for part in parts:
        blocked |= _first_hit(part, p, d).isfinite()
    return blocked.reshape(shape)


def distance_to_surface(points: Tensor, parts=STILL_LIFE) -> Tensor:
    """Signed distance [...] of points [..., 3] to the surface of the union, in world units.

    Exact outside. Inside (negative) it is exact near a single part; where parts touch or overlap,
    its magnitude is a lower bound, because walls hidden inside the union still count.
    """
    p = _components(points)
    nearest = torch.stack([part.shape.sdf(part.to_local(p)) for part in parts]).amin(0)
    return nearest.reshape(points.shape[:-1])


# Colour.


def material(surface: Surface, parts=STILL_LIFE) -> Material:
    """The material at intersections; zero without a hit."""
    local, index = _components(surface.local), surface.part.reshape(-1)
    albedo, gloss, shininess = torch.zeros_like(local), *torch.zeros_like(local[:2])
    for i, part in enumerate(parts):
        rays = (index == i).nonzero()[:, 0]
        albedo[:, rays] = part.pattern(local[:, rays]).to(albedo)
        gloss[rays], shininess[rays] = part.gloss, part.shininess
    shape = surface.part.shape
    return Material(albedo.T.reshape(*shape, 3), gloss.reshape(shape), shininess.reshape(shape))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product [..., 1]."""
    return (a * b).sum(-1, keepdim=True)


def shade(surface: Surface, directions: Tensor, parts=STILL_LIFE) -> Tensor:
    """sRGB colour [..., 3] in [0, 1]: sky light, a shadowed distant light, Blinn-Phong reflection.

    directions: [..., 3] of the rays, on which the highlight depends.
    """
    albedo, gloss, shininess = material(surface, parts)
    light = normalize(directions.new_tensor(LIGHT), dim=0)
    shadow = occluded(surface.point + 1e-4 * surface.normal, light, parts)[..., None]
    sun = torch.where(shadow, 0.0, _dot(surface.normal, light).clamp_min(0))
    sky = 0.45 + 0.12 * surface.normal[..., 2:]
    halfway = normalize(light - normalize(directions, dim=-1), dim=-1)
    mirror = _dot(surface.normal, halfway).clamp_min(0) ** shininess[..., None]
    return (albedo * (sky + 0.62 * sun) + gloss[..., None] * mirror * (sun > 0)).clamp(0, 1)


def trace(origins: Tensor, directions: Tensor, parts=STILL_LIFE) -> Hit:
    """Exact distance, normal and colour along rays [..., 3]; the latter two are 0 without a hit."""
    surface = intersect(origins, directions, parts)
    hit = surface.part >= 0
    rgb = torch.zeros_like(surface.point)
    visible = Surface(*(field[hit] for field in surface))
    rgb[hit] = shade(visible, directions.expand_as(rgb)[hit], parts)
    return Hit(surface.distance, surface.normal, rgb, hit)


# Images.


def pixel_rays(camtoworld, pixtocam, x, y) -> tuple[Tensor, Tensor]:
    """Origin [3] and directions [..., 3], float64, through continuous pixel coordinates x, y [...].

    camtoworld: [3 or 4, 4] with OpenGL axes; pixtocam: [3, 3] from (x, y, 1) to camera directions
    with z = −1, so that t is depth. The centre of pixel (0, 0) is (0.5, 0.5).
    """
    camtoworld, pixtocam = np.asarray(camtoworld, np.float64), np.asarray(pixtocam, np.float64)
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    directions = pixels @ (camtoworld[:3, :3] @ pixtocam).T
    return torch.from_numpy(camtoworld[:3, 3].copy()), torch.from_numpy(directions)


def render_normals(camtoworld, pixtocam, width: int, height: int, supersample: int = 3,
                   parts=STILL_LIFE) -> tuple[Tensor, Tensor]:
    """World normals [height, width, 3] and opacity [height, width] of an image, float64.

    A normal is the mean over the covered part of a pixel, as a unit vector; 0 without one.
    """
    across, down = ((np.arange(side * supersample) + 0.5) / supersample for side in (width, height))
    origin, directions = pixel_rays(camtoworld, pixtocam, *np.meshgrid(across, down))
    surface = intersect(origin, directions, parts)
    values = torch.cat([surface.normal, (surface.part >= 0)[..., None]], dim=-1)
    mean = values.reshape(height, supersample, width, supersample, 4).mean((1, 3))
    return normalize(mean[..., :3], dim=-1), mean[..., 3]


@contextmanager
def single_thread() -> Iterator[None]:
    """Run on one thread: for many small operations a second one gains little."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@single_thread()
def render(
    camtoworld, pixtocam, width: int, height: int, supersample: int = 4, parts=STILL_LIFE,
    undistort=lambda x, y: (x, y),
) -> np.ndarray:
    """An image as uint8 RGBA [height, width, 4]; straight alpha is coverage.

    Each pixel is the mean of supersample² premultiplied colours (box filter). undistort: a function
    from pixel coordinates x, y of the image to those of a lens without distortion.
    """
    across = (np.arange(width * supersample) + 0.5) / supersample
    rows = max(1, RAYS_PER_BAND // (width * supersample**2))
    bands = []
    for top in range(0, height, rows):
        count = min(rows, height - top)
        down = top + (np.arange(count * supersample) + 0.5) / supersample
        x, y = undistort(*np.meshgrid(across, down))
        hits = trace(*pixel_rays(camtoworld, pixtocam, x, y), parts)
        premultiplied = torch.cat([hits.rgb, hits.hit[..., None].to(hits.rgb)], -1)
        cells = premultiplied.reshape(count, supersample, width, supersample, 4)
        bands.append(cells.mean((1, 3)).numpy())
    mean = np.concatenate(bands)
    alpha = mean[..., 3:]
    rgb = mean[..., :3] / np.where(alpha > 0, alpha, 1.0)
    return np.rint(255 * np.concatenate([rgb, alpha], -1)).astype(np.uint8)
