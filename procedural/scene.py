"""The demo scene: an analytic still life whose pictures, distances and normals are exact.

Spheres, boxes and cylinders are intersected in closed form. Geometry (`intersect`,
`occluded`, `distance_to_surface`) knows nothing of colour, so other shading can use it.

World: z up, everything within 1.35 of the origin (the backdrop of the forward-facing scene apart).
Inside this module vectors are component-first, [3, ...], since a row of x, y or z is contiguous
and twice as fast; the public functions take and give the components last, [..., 3].
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import imageio.v3 as imageio
import numpy as np
import torch
from torch.nn.functional import normalize, one_hot

from runtime.files import new_folder

BLENDER_SIZE = 100

BLENDER_ANGLE_X = 0.69

BLENDER_RADIUS = 4.0

NUM_BLENDER_VIEWS = 80

TEST_EVERY = 4

LLFF_SIZE = (120, 90)

LLFF_FACTOR = 4

LLFF_FOCAL = 112.0

LLFF_GRID = (6, 4)

LLFF_HOLD = 8

CAPTURE_SIZE = (96, 72)

CAPTURE_FACTOR = 4

NUM_CAPTURE_VIEWS = 40

NUM_CAPTURE_POINTS = 2000

# Of the stored pictures; the principal point is off their centre.
CAPTURE_LENS = {"fl_x": 84.0, "fl_y": 85.0, "cx": 49.5, "cy": 34.8,
                "k1": -0.08, "k2": 0.02, "p1": 0.004, "p2": -0.003}

LIGHT = (0.42, -0.58, 0.698)

RAYS_PER_BAND = 1 << 18


class Surface(NamedTuple):
    """Geometry where rays meet the scene; `part` is -1 and vectors are zero where they do not.

    `distance` [...] is t in units of |direction| (inf: no hit), `part` [...] indexes the parts;
    `point` and unit outward `normal` [..., 3] are in the world, `local` [..., 3] is the point in
    its part's own frame.
    """

    distance: torch.Tensor
    part: torch.Tensor
    point: torch.Tensor
    normal: torch.Tensor
    local: torch.Tensor


class Material(NamedTuple):
    """`albedo` [..., 3] in [0, 1]; Blinn-Phong's strength `gloss`, exponent `shininess` [...]."""

    albedo: torch.Tensor
    gloss: torch.Tensor
    shininess: torch.Tensor


class Hit(NamedTuple):
    """`distance` [...] in units of |direction|, inf if none; `normal`, `rgb` [..., 3]; `hit`."""

    distance: torch.Tensor
    normal: torch.Tensor
    rgb: torch.Tensor
    hit: torch.Tensor


def _slab_span(o: torch.Tensor, d: torch.Tensor, half: float):
    d = torch.where(d == 0, 1e-30, d)
    a, b = (-half - o) / d, (half - o) / d
    return torch.minimum(a, b), torch.maximum(a, b)


def _round_span(o: torch.Tensor, d: torch.Tensor, radius: float):
    """A sphere (three components) or an endless cylinder along z (two)."""
    squared = (d * d).sum(0).clamp_min(1e-30)
    middle = -(o * d).sum(0) / squared
    nearest = o + middle * d  # radius² − |nearest|² keeps the digits that b² − 4ac would cancel
    room = radius**2 - (nearest * nearest).sum(0)
    reach = torch.where(room > 0, (room.clamp_min(0) / squared).sqrt(), -torch.inf)
    return middle - reach, middle + reach


def _norm(v: torch.Tensor) -> torch.Tensor:
    return (v * v).sum(0).sqrt()


def _distance_to_brick(excess: torch.Tensor) -> torch.Tensor:
    """Signed distance from the excess over each half extent."""
    return _norm(excess.clamp_min(0)) + excess.amax(0).clamp_max(0)


@dataclass(frozen=True)
class Sphere:
    radius: float

    def span(self, o, d):
        return _round_span(o, d, self.radius)

    def sdf(self, p):
        return _norm(p) - self.radius

    def normal(self, p):
        return p / self.radius


@dataclass(frozen=True)
class Box:
    half: tuple[float, float, float]

    def _excess(self, p):
        return torch.stack([x.abs() - half for x, half in zip(p, self.half, strict=True)])

    def span(self, o, d):
        slabs = [_slab_span(o[i], d[i], self.half[i]) for i in range(3)]
        enters, leaves = zip(*slabs, strict=True)
        return torch.stack(enters).amax(0), torch.stack(leaves).amin(0)

    def sdf(self, p):
        return _distance_to_brick(self._excess(p))

    def normal(self, p):
        face = one_hot(self._excess(p).argmax(0), 3).movedim(-1, 0)
        return face * p.sign()


@dataclass(frozen=True)
class Cylinder:
    """Capped, along z."""

    radius: float
    half: float

    def _excess(self, p):
        return torch.stack([_norm(p[:2]) - self.radius, p[2].abs() - self.half])

    def span(self, o, d):
        side, caps = _round_span(o[:2], d[:2], self.radius), _slab_span(o[2], d[2], self.half)
        return torch.maximum(side[0], caps[0]), torch.minimum(side[1], caps[1])

    def sdf(self, p):
        return _distance_to_brick(self._excess(p))

    def normal(self, p):
        side, cap = self._excess(p)
        on_cap = torch.stack([torch.zeros_like(p[2]), torch.zeros_like(p[2]), p[2].sign()])
        on_side = torch.stack([p[0], p[1], torch.zeros_like(p[2])]) / self.radius
        return torch.where(cap > side, on_cap, on_side)


RGB = tuple[float, float, float]

Pattern = Callable[[torch.Tensor], torch.Tensor]


def _pick(mask: torch.Tensor, yes: RGB | torch.Tensor, no: RGB | torch.Tensor) -> torch.Tensor:
    """Colours, or albedos [3, N], chosen by a mask [N]."""
    yes, no = (torch.tensor(c, device=mask.device)[:, None] if isinstance(c, tuple) else c
               for c in (yes, no))
    return torch.where(mask, yes, no)


def _odd(*coordinates: torch.Tensor) -> torch.Tensor:
    """Stripes of width 1 in one coordinate, checks in several."""
    return sum(c.floor() for c in coordinates) % 2 == 1


def _turns(p: torch.Tensor) -> torch.Tensor:
    return torch.atan2(p[1], p[0]) / (2 * math.pi)


def plain(colour: RGB) -> Pattern:
    return lambda p: _pick(torch.ones_like(p[0], dtype=torch.bool), colour, colour)


def helix(width: float, starts: int, first: RGB, second: RGB) -> Pattern:
    """Winding stripes, `width` high; rings where `starts` is 0."""
    return lambda p: _pick(_odd(p[2] / width + 2 * starts * _turns(p)), first, second)


def harlequin(p: torch.Tensor) -> torch.Tensor:
    """Checks of latitude and longitude, between two plain caps."""
    height = p[2] / _norm(p)
    checks = _odd(height.asin() * (9 / math.pi) + 0.5, _turns(p) * 16)
    return _pick(
        height.abs() > 0.9,
        (0.16, 0.20, 0.45),
        _pick(checks, (0.98, 0.76, 0.12), (0.16, 0.42, 0.80)),
    )


def plate(p: torch.Tensor) -> torch.Tensor:
    """Fine checks, a dark border, bars round the rim."""
    across = _norm(p[:2])
    top = _pick(_odd(p[0] / 0.09, p[1] / 0.09), (0.92, 0.90, 0.84), (0.20, 0.25, 0.34))
    rim = _pick(_odd(_turns(p) * 60), (0.76, 0.24, 0.18), (0.93, 0.86, 0.70))
    return torch.where(across > 1.119, rim, _pick(across > 1.03, (0.45, 0.16, 0.18), top))


def die(p: torch.Tensor) -> torch.Tensor:
    """Dots, stripes and a target on the three pairs of faces, told apart by their side."""
    face = p.abs().argmax(0)
    u = torch.where(face == 0, p[1], p[0])
    v = torch.where(face == 2, p[1], p[2])
    positive = p.gather(0, face[None])[0] > 0
    dots = torch.hypot((u / 0.14 + 0.5) % 1 - 0.5, (v / 0.14 + 0.5) % 1 - 0.5) < 0.32
    dots = _pick(dots, (0.13, 0.30, 0.28), (0.95, 0.62, 0.22))
    slant = _odd((u + torch.where(positive, v, -v)) / 0.075)
    lines = _pick(slant, (0.90, 0.88, 0.80), (0.20, 0.55, 0.50))
    rings = _pick(_odd(torch.hypot(u, v) / 0.055), (0.95, 0.90, 0.78), (0.72, 0.22, 0.36))
    return torch.where(face == 0, dots, torch.where(face == 1, lines, rings))


def bricks(p: torch.Tensor) -> torch.Tensor:
    """A wall in the plane y = const: offset courses, each brick of its own tone."""
    course = (p[2] / 0.22).floor()
    along = p[0] / 0.5 + 0.5 * (course % 2)
    tone = torch.sin(along.floor() * 12.9898 + course * 78.233) * 0.5 + 0.5
    body = torch.stack([0.55 + 0.22 * tone, 0.42 + 0.16 * tone, 0.38 + 0.10 * (1 - tone)])
    mortar = ((along % 1) < 0.06) | ((p[2] / 0.22 % 1) < 0.13)
    return _pick(mortar, (0.86, 0.84, 0.80), body)


def planks(p: torch.Tensor) -> torch.Tensor:
    """A floor of boards running towards the wall."""
    board = (p[0] / 0.35).floor()
    grain = torch.sin(p[0] * 45 + 2 * torch.sin(p[1] * 3 + board * 5))
    tone = 0.82 + 0.12 * torch.sin(board * 37.7) - 0.06 * grain
    gap = (p[0] / 0.35 % 1) < 0.07
    return _pick(gap, (0.30, 0.25, 0.22), torch.stack([0.84 * tone, 0.76 * tone, 0.64 * tone]))


def _turn(rows, v: torch.Tensor) -> torch.Tensor:
    """Matrix times vectors, written out: a matrix product may run in reduced precision."""
    return torch.stack([a * v[0] + b * v[1] + c * v[2] for a, b, c in rows])


@dataclass(frozen=True)
class Part:
    """A shape placed in the world: world = rotation @ local + centre."""

    shape: Sphere | Box | Cylinder
    centre: tuple[float, float, float]
    pattern: Pattern
    gloss: float = 0.0
    shininess: float = 20.0
    rotation: tuple[RGB, RGB, RGB] | None = None

    def turn_to_world(self, v: torch.Tensor) -> torch.Tensor:
        return v if self.rotation is None else _turn(self.rotation, v)

    def turn_to_local(self, v: torch.Tensor) -> torch.Tensor:
        return v if self.rotation is None else _turn(zip(*self.rotation, strict=True), v)

    def to_local(self, p: torch.Tensor) -> torch.Tensor:
        return self.turn_to_local(p - p.new_tensor(self.centre)[:, None])


def _turned(degrees: float) -> tuple[RGB, RGB, RGB]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))


def _rod(start: RGB, end: RGB, pattern: Pattern) -> Part:
    """A thin cylinder between two points, about two pixels wide in the pictures."""
    start, end = np.array(start), np.array(end)
    length = np.linalg.norm(end - start)
    z = (end - start) / length
    x = np.cross(z, (0.36, 0.48, 0.8))
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z], axis=1).tolist()
    return Part(Cylinder(0.025, length / 2), tuple((start + end) / 2), pattern, 0.3, 30.0, rotation)


PEPPERMINT = helix(0.06, 0, (0.80, 0.12, 0.16), (0.95, 0.93, 0.90))

APEX = (0.56, 0.50, 0.52)

STILL_LIFE = (
    Part(Cylinder(1.12, 0.09), (0.0, 0.0, -0.62), plate, 0.1, 20.0),
    Part(Cylinder(0.21, 0.46), (-0.02, 0.16, -0.07),
         helix(0.13, 2, (0.06, 0.50, 0.48), (0.93, 0.88, 0.76)), 0.2, 30.0),
    Part(Sphere(0.33), (-0.02, 0.16, 0.72), harlequin, 0.35, 60.0,
         ((0.8, 0.0, 0.6), (0.0, 1.0, 0.0), (-0.6, 0.0, 0.8))),
    Part(Sphere(0.43), (-0.50, -0.36, -0.10), plain((0.72, 0.05, 0.09)), 0.9, 45.0),
    Part(Box((0.28, 0.28, 0.28)), (0.48, -0.42, -0.25), die, 0.1, 20.0, _turned(27)),
    Part(Box((0.17, 0.17, 0.17)), (0.46, -0.40, 0.20), die, 0.1, 20.0, _turned(62)),
    Part(Box((0.36, 0.13, 0.34)), (-0.52, 0.52, -0.19),
         helix(0.07, 0, (0.45, 0.33, 0.25), (0.70, 0.57, 0.44)), 0.0, 20.0, _turned(35)),
    Part(Sphere(0.15), (-0.52, 0.52, 0.30), plain((0.10, 0.55, 0.22)), 0.8, 70.0),
    Part(Sphere(0.13), (0.02, -0.82, -0.40), plain((0.10, 0.20, 0.75)), 0.8, 70.0),
    Part(Sphere(0.12), (0.93, 0.02, -0.41), plain((0.95, 0.55, 0.05)), 0.8, 70.0),
    Part(Sphere(0.11), APEX, plain((0.45, 0.45, 0.50)), 0.9, 25.0),
    _rod((0.86, 0.52, -0.53), APEX, PEPPERMINT),
    _rod((0.40, 0.80, -0.53), APEX, PEPPERMINT),
    _rod((0.38, 0.28, -0.53), APEX, PEPPERMINT),
)

FORWARD_FACING = STILL_LIFE + (
    Part(Box((9.0, 0.1, 6.0)), (0.0, 2.6, 0.0), bricks),
    Part(Box((9.0, 9.0, 0.1)), (0.0, 0.0, -0.81), planks, 0.1, 10.0),
)

ROOM = STILL_LIFE + (
    Part(Box((12.0, 12.0, 0.1)), (0.0, 0.0, -0.81), planks, 0.1, 10.0),
    Part(Box((7.0, 0.1, 3.0)), (0.0, 7.0, 2.0), bricks),
    Part(Box((7.0, 0.1, 3.0)), (0.0, -7.0, 2.0), bricks),
    Part(Box((7.0, 0.1, 3.0)), (7.0, 0.0, 2.0), bricks, rotation=_turned(90)),
    Part(Box((7.0, 0.1, 3.0)), (-7.0, 0.0, 2.0), bricks, rotation=_turned(90)),
)


def _components(v: torch.Tensor) -> torch.Tensor:
    """[..., 3] to [3, N]."""
    return v.reshape(-1, 3).T.contiguous()


def _ray_components(origins: torch.Tensor, directions: torch.Tensor):
    """Both as [3, N], but a vector that all rays share as [3, 1], which halves the work."""
    shape = torch.broadcast_shapes(origins.shape, directions.shape)
    o, d = (_components(v if v.dim() == 1 else v.expand(shape)) for v in (origins, directions))
    return shape[:-1], o, d


def _first_hit(part: Part, origins: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Smallest positive t [N] at which rays [3, N] cross the part's surface, else inf."""
    enter, leave = part.shape.span(part.to_local(origins), part.turn_to_local(directions))
    t = torch.where(enter > 0, enter, leave)
    return torch.where((enter < leave) & (t > 0), t, torch.inf)


def intersect(origins: torch.Tensor, directions: torch.Tensor, parts=STILL_LIFE) -> Surface:
    """First surface that rays meet, in closed form.

    `origins`, `directions` [..., 3] in world units; directions need not be unit. Origins should
    lie outside the parts (from inside, the far wall of that part counts). Any dtype and device.
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
        mine = (index == i).nonzero()[:, 0]
        here = part.to_local(point[:, mine])
        local[:, mine] = here
        normal[:, mine] = part.turn_to_world(part.shape.normal(here)).to(normal)
    vectors = [v.T.reshape(*shape, 3) for v in (point, normal, local)]
    return Surface(distance.reshape(shape), index.reshape(shape), *vectors)


def occluded(points: torch.Tensor, directions: torch.Tensor, parts=STILL_LIFE) -> torch.Tensor:
    """Whether any part lies ahead of points [..., 3] along directions [..., 3]: bool [...].

    Move points off their own surface first (`point + 1e-4 * normal`).
    """
    shape, p, d = _ray_components(points, directions)
    blocked = torch.zeros_like(p[0] + d[0], dtype=torch.bool)
    for part in parts:
        blocked |= _first_hit(part, p, d).isfinite()
    return blocked.reshape(shape)


def distance_to_surface(points: torch.Tensor, parts=STILL_LIFE) -> torch.Tensor:
    """Signed distance [...] of points [..., 3] to the surface of the union, in world units.

    Exact outside. Inside (negative) it is exact where one part alone is near; where parts touch or
    overlap its magnitude is a lower bound, since it still sees the walls hidden between them.
    """
    p = _components(points)
    nearest = torch.stack([part.shape.sdf(part.to_local(p)) for part in parts]).amin(0)
    return nearest.reshape(points.shape[:-1])


def material(surface: Surface, parts=STILL_LIFE) -> Material:
    """What the surface is made of; zero where nothing was hit."""
    local, index = _components(surface.local), surface.part.reshape(-1)
    albedo, gloss, shininess = torch.zeros_like(local), *torch.zeros_like(local[:2])
    for i, part in enumerate(parts):
        mine = (index == i).nonzero()[:, 0]
        albedo[:, mine] = part.pattern(local[:, mine]).to(albedo)
        gloss[mine], shininess[mine] = part.gloss, part.shininess
    shape = surface.part.shape
    return Material(albedo.T.reshape(*shape, 3), gloss.reshape(shape), shininess.reshape(shape))


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum(-1, keepdim=True)


def shade(surface: Surface, directions: torch.Tensor, parts=STILL_LIFE) -> torch.Tensor:
    """Display colour [..., 3] in [0, 1]: sky light, one shadowed distant light, Blinn-Phong gloss.

    `directions` [..., 3] are those of the rays; the highlight moves with them.
    """
    of = material(surface, parts)
    light = normalize(directions.new_tensor(LIGHT), dim=0)
    shadow = occluded(surface.point + 1e-4 * surface.normal, light, parts)[..., None]
    sun = torch.where(shadow, 0.0, _dot(surface.normal, light).clamp_min(0))
    sky = 0.45 + 0.12 * surface.normal[..., 2:]
    halfway = normalize(light - normalize(directions, dim=-1), dim=-1)
    mirror = _dot(surface.normal, halfway).clamp_min(0) ** of.shininess[..., None]
    return (of.albedo * (sky + 0.62 * sun) + of.gloss[..., None] * mirror * (sun > 0)).clamp(0, 1)


def trace(origins: torch.Tensor, directions: torch.Tensor, parts=STILL_LIFE) -> Hit:
    """Exact distance, normal and colour along rays [..., 3]; zero normal and colour at no hit."""
    surface = intersect(origins, directions, parts)
    hit = surface.part >= 0
    rgb = torch.zeros_like(surface.point)
    seen = Surface(*(field[hit] for field in surface))
    rgb[hit] = shade(seen, directions.expand_as(rgb)[hit], parts)
    return Hit(surface.distance, surface.normal, rgb, hit)


def pixel_rays(camtoworld, pixtocam, x, y) -> tuple[torch.Tensor, torch.Tensor]:
    """Origins and directions [..., 3], float64, of continuous pixel coordinates x, y [...].

    `camtoworld` [3 or 4, 4] with OpenGL camera axes; `pixtocam` [3, 3] maps (x, y, 1) to those
    axes, on the plane z = −1, so that t is depth. The centre of pixel (0, 0) is (0.5, 0.5).
    """
    camtoworld, pixtocam = np.asarray(camtoworld, np.float64), np.asarray(pixtocam, np.float64)
    pixels = np.stack([x, y, np.ones_like(x)], axis=-1)
    directions = pixels @ (camtoworld[:3, :3] @ pixtocam).T
    return torch.from_numpy(camtoworld[:3, 3].copy()), torch.from_numpy(directions)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small operations: a second thread gains little, and waits long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def render(
    camtoworld, pixtocam, width: int, height: int, supersample: int = 4, parts=STILL_LIFE,
    straighten=lambda x, y: (x, y),
) -> np.ndarray:
    """Picture as uint8 RGBA [height, width, 4], straight alpha = coverage.

    Each pixel is the mean of supersample² premultiplied colours (box filter). `straighten` maps
    pixel coordinates x, y of the picture to those that a lens without distortion would give.
    """
    across = (np.arange(width * supersample) + 0.5) / supersample
    rows = max(1, RAYS_PER_BAND // (width * supersample**2))
    bands = []
    for top in range(0, height, rows):
        count = min(rows, height - top)
        down = top + (np.arange(count * supersample) + 0.5) / supersample
        x, y = straighten(*np.meshgrid(across, down))
        seen = trace(*pixel_rays(camtoworld, pixtocam, x, y), parts)
        premultiplied = torch.cat([seen.rgb, seen.hit[..., None].to(seen.rgb)], -1)
        cells = premultiplied.reshape(count, supersample, width, supersample, 4)
        bands.append(cells.mean((1, 3)).numpy())
    mean = np.concatenate(bands)
    alpha = mean[..., 3:]
    rgb = mean[..., :3] / np.where(alpha > 0, alpha, 1.0)
    return np.rint(255 * np.concatenate([rgb, alpha], -1)).astype(np.uint8)


def look_at(position, target=(0.0, 0.0, 0.0)) -> np.ndarray:
    """camtoworld [4, 4] of an upright camera (OpenGL axes) at `position` that sees `target`."""
    camtoworld = np.eye(4)
    back = np.asarray(position, np.float64) - target
    right = np.cross((0.0, 0.0, 1.0), back)
    camtoworld[:3, 2] = back / np.linalg.norm(back)
    camtoworld[:3, 0] = right / np.linalg.norm(right)
    camtoworld[:3, 1] = np.cross(camtoworld[:3, 2], camtoworld[:3, 0])
    camtoworld[:3, 3] = position
    return camtoworld


def pinhole(width: int, height: int, focal: float) -> np.ndarray:
    """pixtocam [3, 3] to OpenGL camera axes; `focal` in pixels, principal point in the middle."""
    return np.array([[1, 0, -width / 2], [0, -1, height / 2], [0, 0, -focal]]) / focal


def blender_cameras(split: str) -> tuple[np.ndarray, np.ndarray]:
    """camtoworlds [N, 4, 4] and the pixtocam [3, 3] they share; `split` is "train" or "test".

    A spiral evenly over the upper hemisphere from 80° to 5° above the horizon; every fourth view is
    a test view, so its neighbours on all sides are training views.
    """
    i = np.arange(NUM_BLENDER_VIEWS)
    z = np.interp(i, (0, NUM_BLENDER_VIEWS - 1), np.sin(np.radians((80, 5))))
    turn = i * math.pi * (3 - math.sqrt(5))
    xyz = np.stack([np.cos(turn) * np.sqrt(1 - z**2), np.sin(turn) * np.sqrt(1 - z**2), z], -1)
    chosen = (i % TEST_EVERY == TEST_EVERY // 2) == (split == "test")
    focal = BLENDER_SIZE / 2 / math.tan(BLENDER_ANGLE_X / 2)
    camtoworlds = np.stack([look_at(BLENDER_RADIUS * p) for p in xyz[chosen]])
    return camtoworlds, pinhole(BLENDER_SIZE, BLENDER_SIZE, focal)


def llff_cameras() -> tuple[np.ndarray, np.ndarray]:
    """camtoworlds [N, 4, 4] and pixtocam [3, 3] of the stored size: an uneven grid facing +y.

    Every eighth view, which LLFF holds out, is drawn in, so that it lies among the others.
    """
    columns, rows = LLFF_GRID
    z, x = np.meshgrid(np.linspace(0.3, -0.3, rows), np.linspace(-0.5, 0.5, columns), indexing="ij")
    grid = np.stack([x.ravel(), z.ravel()], -1)
    grid += np.random.default_rng(0).uniform(-0.05, 0.05, grid.shape)
    grid[::LLFF_HOLD] *= 0.6
    camtoworlds = [look_at((x, -3.3, 0.5 + z), (0.25 * x, 0.3, 0.02)) for x, z in grid]
    return np.stack(camtoworlds), pinhole(*LLFF_SIZE, LLFF_FOCAL)


def capture_cameras() -> np.ndarray:
    """camtoworlds [N, 4, 4] of a walk round the still life, looking inward: low, then high.

    The walk is an ellipse, so that the cameras' principal axes are no matter of chance.
    """
    turn = np.arange(NUM_CAPTURE_VIEWS) * (4 * math.pi / NUM_CAPTURE_VIEWS)
    high = np.arange(NUM_CAPTURE_VIEWS) >= NUM_CAPTURE_VIEWS // 2
    x, y = 3.6 * np.cos(turn), 3.1 * np.sin(turn)
    z = np.where(high, 1.9, 0.7) + 0.15 * np.sin(3 * turn)
    return np.stack([look_at(p, (0.0, 0.0, 0.05)) for p in np.stack([x, y, z], axis=-1)])


def capture_matrix() -> np.ndarray:
    """The intrinsic matrix [3, 3] of the pictures of the walk, of OpenCV's kind."""
    lens = CAPTURE_LENS
    return np.array([[lens["fl_x"], 0, lens["cx"]], [0, lens["fl_y"], lens["cy"]], [0, 0, 1]])


def straighten_capture(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where pixel coordinates of the walk's pictures would be without distortion (by OpenCV)."""
    matrix, distortion = capture_matrix(), [CAPTURE_LENS[k] for k in ("k1", "k2", "p1", "p2")]
    pixels = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    often = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 100, 1e-12)
    straight = cv2.undistortPoints(
        pixels, matrix, np.array(distortion), P=matrix, criteria=often
    )
    return straight[:, 0, 0].reshape(x.shape), straight[:, 0, 1].reshape(y.shape)


def capture_picture(camtoworld) -> np.ndarray:
    """One picture of the walk as uint8 RGB [height, width, 3]."""
    pixtocam = np.diag([1.0, -1.0, -1.0]) @ np.linalg.inv(capture_matrix())
    return render(camtoworld, pixtocam, *CAPTURE_SIZE, supersample=2, parts=ROOM,
                  straighten=straighten_capture)[..., :3]


def capture_points() -> tuple[np.ndarray, np.ndarray]:
    """Points [M, 3] on what the walk's pictures show, and their colours, uint8 [M, 3]."""
    rng = np.random.default_rng(0)
    pixtocam = np.diag([1.0, -1.0, -1.0]) @ np.linalg.inv(capture_matrix())
    points, colours = [], []
    for camtoworld in capture_cameras():
        pixels = rng.uniform(0, CAPTURE_SIZE, (NUM_CAPTURE_POINTS // NUM_CAPTURE_VIEWS, 2))
        rays = pixel_rays(camtoworld, pixtocam, *straighten_capture(*pixels.T))
        seen = trace(*rays, ROOM)
        points.append(rays[0] + seen.distance[:, None] * rays[1])
        colours.append(seen.rgb)
    colours = (255 * torch.cat(colours)).round().to(torch.uint8)
    return torch.cat(points).numpy(), colours.numpy()


def write_blender(folder: str | Path) -> None:
    """Write the scene in Blender format, unless `folder` exists: 60 training, 20 test pictures."""
    folder = Path(folder)
    if folder.exists():
        return
    with new_folder(folder) as unfinished:
        for split in ("train", "test"):
            (unfinished / split).mkdir()
            camtoworlds, pixtocam = blender_cameras(split)
            frames = []
            for i, camtoworld in enumerate(camtoworlds):
                rgba = render(camtoworld, pixtocam, BLENDER_SIZE, BLENDER_SIZE)
                imageio.imwrite(unfinished / split / f"r_{i}.png", rgba)
                frames.append(
                    {"file_path": f"./{split}/r_{i}", "transform_matrix": camtoworld.tolist()}
                )
            meta = {"camera_angle_x": BLENDER_ANGLE_X, "frames": frames}
            (unfinished / f"transforms_{split}.json").write_text(json.dumps(meta, indent=2))


def _depth_bounds(camtoworld, pixtocam, width: int, height: int) -> tuple[float, float]:
    """Smallest and largest depth in the picture, a little widened."""
    corners = np.meshgrid(np.arange(width + 1.0), np.arange(height + 1.0))
    depth = intersect(*pixel_rays(camtoworld, pixtocam, *corners), FORWARD_FACING).distance
    return 0.97 * depth.min().item(), 1.03 * depth.max().item()


def write_llff(folder: str | Path) -> None:
    """Write the forward-facing scene in LLFF format, unless `folder` exists.

    `poses_bounds.npy` speaks of pictures LLFF_FACTOR times larger than those in `images_4`.
    """
    folder = Path(folder)
    if folder.exists():
        return
    camtoworlds, pixtocam = llff_cameras()
    width, height = LLFF_SIZE
    full_size = LLFF_FACTOR * np.array([height, width, LLFF_FOCAL])
    with new_folder(folder) as unfinished:
        images = unfinished / f"images_{LLFF_FACTOR}"
        images.mkdir()
        rows = []
        for i, camtoworld in enumerate(camtoworlds):
            rgba = render(camtoworld, pixtocam, width, height, parts=FORWARD_FACING)
            imageio.imwrite(images / f"image{i:03d}.png", rgba[..., :3])
            right, up, back, position = camtoworld[:3].T
            pose = np.stack([-up, right, back, position, full_size], axis=1)
            bounds = _depth_bounds(camtoworld, pixtocam, width, height)
            rows.append(np.concatenate([pose.ravel(), bounds]))
        np.save(unfinished / "poses_bounds.npy", np.stack(rows))


def write_nerfstudio(folder: str | Path) -> None:
    """Write the walk round the still life in nerfstudio's format, unless `folder` exists."""
    folder = Path(folder)
    if folder.exists():
        return
    with new_folder(folder) as unfinished:
        (unfinished / "images").mkdir()
        frames = []
        for i, camtoworld in enumerate(capture_cameras()):
            name = f"images/frame_{i:05d}.png"
            imageio.imwrite(unfinished / name, capture_picture(camtoworld))
            frames.append({"file_path": name, "transform_matrix": camtoworld.tolist()})
        width, height = CAPTURE_SIZE
        meta = {"camera_model": "OPENCV", "w": width, "h": height} | CAPTURE_LENS
        text = json.dumps(meta | {"frames": frames}, indent=2)
        (unfinished / "transforms.json").write_text(text)


def write_colmap(folder: str | Path) -> None:
    """Write the walk round the still life as COLMAP's model and images, unless `folder` exists.

    The model speaks of pictures CAPTURE_FACTOR times larger than those in `images_4`.
    """
    import pycolmap

    folder = Path(folder)
    if folder.exists():
        return
    lens, factor = list(CAPTURE_LENS.values()), CAPTURE_FACTOR
    width, height = (factor * side for side in CAPTURE_SIZE)
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(pycolmap.Camera(
        camera_id=1, model="OPENCV", width=width, height=height,
        params=[*(factor * value for value in lens[:4]), *lens[4:]],
    ))
    with new_folder(folder) as unfinished:
        images, sparse = unfinished / f"images_{factor}", unfinished / "sparse" / "0"
        images.mkdir()
        sparse.mkdir(parents=True)
        for i, camtoworld in enumerate(capture_cameras()):
            name = f"frame_{i:05d}.png"
            imageio.imwrite(images / name, capture_picture(camtoworld))
            opencv = np.linalg.inv(camtoworld @ np.diag([1.0, -1.0, -1.0, 1.0]))
            model.add_image_with_trivial_frame(
                pycolmap.Image(name=name, camera_id=1, image_id=i + 1),
                pycolmap.Rigid3d(opencv[:3]),
            )
        for point, colour in zip(*capture_points(), strict=True):
            model.add_point3D(point, pycolmap.Track(), colour)
        model.write(str(sparse))
