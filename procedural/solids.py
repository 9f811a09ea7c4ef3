"""Solids of the demo scene: convex shapes in closed form, surface patterns, placed parts.

Vectors are component-first, [3, N]: a row of x, y or z is contiguous, which is twice as fast.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

Vector = tuple[float, float, float]
Rotation = tuple[Vector, Vector, Vector]
RGB = tuple[float, float, float]
Pattern = Callable[[Tensor], Tensor]


# Shapes, convex and centred in their local frame. `span`: the t [N] at which rays enter and leave
# (a miss if enter >= leave); `sdf`: signed distance [N]; `normal`: unit outward normal [3, N] at
# points on the surface.


def _slab_span(o: Tensor, d: Tensor, half: float):
    """The t [N] at which rays enter and leave |x| <= half, for one component of o and d."""
    d = torch.where(d == 0, 1e-30, d)
    a, b = (-half - o) / d, (half - o) / d
    return torch.minimum(a, b), torch.maximum(a, b)


def _round_span(o: Tensor, d: Tensor, radius: float):
    """The t [N] at which rays enter and leave a sphere (3 components) or cylinder (2, infinite)."""
    squared = (d * d).sum(0).clamp_min(1e-30)
    middle = -(o * d).sum(0) / squared
    nearest = o + middle * d
    # More accurate than b² − 4ac, which cancels digits.
    half_chord_squared = radius**2 - (nearest * nearest).sum(0)
    half_span = torch.where(half_chord_squared > 0,
                            (half_chord_squared.clamp_min(0) / squared).sqrt(), -torch.inf)
    return middle - half_span, middle + half_span


def _norm(v: Tensor) -> Tensor:
    """Length [N] of component-first vectors."""
    return (v * v).sum(0).sqrt()


def _distance_from_excess(excess: Tensor) -> Tensor:
    """Signed distance [N] from the excess [K, N] of |coordinates| over the half extents."""
    return _norm(excess.clamp_min(0)) + excess.amax(0).clamp_max(0)


@dataclass(frozen=True)
class Sphere:
    """A sphere about the origin."""

    radius: float

    def span(self, o, d):
        return _round_span(o, d, self.radius)

    def sdf(self, p):
        return _norm(p) - self.radius

    def normal(self, p):
        return p / self.radius


@dataclass(frozen=True)
class Box:
    """An axis-aligned box about the origin with half extents `half`."""

    half: Vector

    def _excess(self, p):
        return torch.stack([x.abs() - half for x, half in zip(p, self.half, strict=True)])

    def span(self, o, d):
        slabs = [_slab_span(o[i], d[i], self.half[i]) for i in range(3)]
        enters, leaves = zip(*slabs, strict=True)
        return torch.stack(enters).amax(0), torch.stack(leaves).amin(0)

    def sdf(self, p):
        return _distance_from_excess(self._excess(p))

    def normal(self, p):
        face = one_hot(self._excess(p).argmax(0), 3).movedim(-1, 0)
        return face * p.sign()


@dataclass(frozen=True)
class Cylinder:
    """A capped cylinder along z, of half height `half`."""

    radius: float
    half: float

    def _excess(self, p):
        return torch.stack([_norm(p[:2]) - self.radius, p[2].abs() - self.half])

    def span(self, o, d):
        side, caps = _round_span(o[:2], d[:2], self.radius), _slab_span(o[2], d[2], self.half)
        return torch.maximum(side[0], caps[0]), torch.minimum(side[1], caps[1])

    def sdf(self, p):
        return _distance_from_excess(self._excess(p))

    def normal(self, p):
        side, cap = self._excess(p)
        on_cap = torch.stack([torch.zeros_like(p[2]), torch.zeros_like(p[2]), p[2].sign()])
        on_side = torch.stack([p[0], p[1], torch.zeros_like(p[2])]) / self.radius
        return torch.where(cap > side, on_cap, on_side)


# Patterns: albedo [3, N] of local points [3, N].


def _pick(mask: Tensor, yes: RGB | Tensor, no: RGB | Tensor) -> Tensor:
    """Albedo [3, N]: `yes` where a mask [N] is true, else `no`; each is a colour or [3, N]."""
    yes, no = (torch.tensor(c, device=mask.device)[:, None] if isinstance(c, tuple) else c
               for c in (yes, no))
    return torch.where(mask, yes, no)


def _is_odd_cell(*coordinates: Tensor) -> Tensor:
    """A mask [N] of stripes of width 1 in one coordinate, or of checks in several."""
    return sum(c.floor() for c in coordinates) % 2 == 1


def _azimuth(p: Tensor) -> Tensor:
    """Azimuth [N] of points [3, N], in turns from -1/2 to 1/2."""
    return torch.atan2(p[1], p[0]) / (2 * math.pi)


def plain(colour: RGB) -> Pattern:
    """One colour everywhere."""
    return lambda p: _pick(torch.ones_like(p[0], dtype=torch.bool), colour, colour)


def helix(width: float, starts: int, first: RGB, second: RGB) -> Pattern:
    """Helical stripes, `width` high; rings if `starts` is 0."""
    return lambda p: _pick(_is_odd_cell(p[2] / width + 2 * starts * _azimuth(p)), first, second)


def harlequin(p: Tensor) -> Tensor:
    """A checkerboard in latitude and longitude between two plain caps."""
    height = p[2] / _norm(p)
    checks = _is_odd_cell(height.asin() * (9 / math.pi) + 0.5, _azimuth(p) * 16)
    return _pick(
        height.abs() > 0.9,
        (0.16, 0.20, 0.45),
        _pick(checks, (0.98, 0.76, 0.12), (0.16, 0.42, 0.80)),
    )


def plate(p: Tensor) -> Tensor:
    """A fine checkerboard with a dark border, and bars around the rim."""
    across = _norm(p[:2])
    top = _pick(_is_odd_cell(p[0] / 0.09, p[1] / 0.09), (0.92, 0.90, 0.84), (0.20, 0.25, 0.34))
    rim = _pick(_is_odd_cell(_azimuth(p) * 60), (0.76, 0.24, 0.18), (0.93, 0.86, 0.70))
    return torch.where(across > 1.119, rim, _pick(across > 1.03, (0.45, 0.16, 0.18), top))


def die(p: Tensor) -> Tensor:
    """Dots, stripes and rings on the three pairs of faces; stripes differ on opposite faces."""
    face = p.abs().argmax(0)
    u = torch.where(face == 0, p[1], p[0])
    v = torch.where(face == 2, p[1], p[2])
    positive = p.gather(0, face[None])[0] > 0
    dots = torch.hypot((u / 0.14 + 0.5) % 1 - 0.5, (v / 0.14 + 0.5) % 1 - 0.5) < 0.32
    dots = _pick(dots, (0.13, 0.30, 0.28), (0.95, 0.62, 0.22))
    slant = _is_odd_cell((u + torch.where(positive, v, -v)) / 0.075)
    lines = _pick(slant, (0.90, 0.88, 0.80), (0.20, 0.55, 0.50))
    rings = _pick(_is_odd_cell(torch.hypot(u, v) / 0.055), (0.95, 0.90, 0.78), (0.72, 0.22, 0.36))
    return torch.where(face == 0, dots, torch.where(face == 1, lines, rings))


def bricks(p: Tensor) -> Tensor:
    """A wall in a plane y = const: offset courses of bricks that differ in tone."""
    course = (p[2] / 0.22).floor()
    along = p[0] / 0.5 + 0.5 * (course % 2)
    tone = torch.sin(along.floor() * 12.9898 + course * 78.233) * 0.5 + 0.5
    body = torch.stack([0.55 + 0.22 * tone, 0.42 + 0.16 * tone, 0.38 + 0.10 * (1 - tone)])
    mortar = ((along % 1) < 0.06) | ((p[2] / 0.22 % 1) < 0.13)
    return _pick(mortar, (0.86, 0.84, 0.80), body)


def planks(p: Tensor) -> Tensor:
    """A floor of boards running towards the wall."""
    board = (p[0] / 0.35).floor()
    grain = torch.sin(p[0] * 45 + 2 * torch.sin(p[1] * 3 + board * 5))
    tone = 0.82 + 0.12 * torch.sin(board * 37.7) - 0.06 * grain
    gap = (p[0] / 0.35 % 1) < 0.07
    return _pick(gap, (0.30, 0.25, 0.22), torch.stack([0.84 * tone, 0.76 * tone, 0.64 * tone]))


# Parts.


def _rotate(rows, v: Tensor) -> Tensor:
    """Matrix times vectors [3, N], written out: a matmul might run in reduced precision."""
    return torch.stack([a * v[0] + b * v[1] + c * v[2] for a, b, c in rows])


@dataclass(frozen=True)
class Part:
    """A shape placed in the world: world = rotation @ local + centre.

    pattern: albedo [3, N] of local points [3, N].
    gloss, shininess: strength and exponent of Blinn-Phong reflection.
    """

    shape: Sphere | Box | Cylinder
    centre: Vector
    pattern: Pattern
    gloss: float = 0.0
    shininess: float = 20.0
    rotation: Rotation | None = None

    def rotate_to_world(self, v: Tensor) -> Tensor:
        """Vectors [3, N] from local to world axes."""
        return v if self.rotation is None else _rotate(self.rotation, v)

    def rotate_to_local(self, v: Tensor) -> Tensor:
        """Vectors [3, N] from world to local axes."""
        return v if self.rotation is None else _rotate(zip(*self.rotation, strict=True), v)

    def to_local(self, p: Tensor) -> Tensor:
        """Points [3, N] from the world to the local frame."""
        return self.rotate_to_local(p - p.new_tensor(self.centre)[:, None])
