"""Scenes for cameras that do not look inward: along a track, at a facade, down, and outward.

Boxes with a mosaic of tiles, whose true distances are known. World: z up.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from procedural.scene import pinhole
from procedural.solids import Box, Part, Pattern
from procedural.tracing import pixel_rays, trace

WIDTH, HEIGHT = 200, 150

# Every so many pixels, in both directions, tell the true range of distances.
STRIDE = 10


class Arrangement(NamedTuple):
    """Boxes and the cameras that look at them.

    camtoworlds: `[N, 4, 4]`, OpenGL axes; focal: in pixels of images of WIDTH x HEIGHT.
    """

    parts: tuple[Part, ...]
    camtoworlds: np.ndarray
    focal: float

    def pixtocam(self) -> np.ndarray:
        """The intrinsics `[3, 3]` of all cameras."""
        return pinhole(WIDTH, HEIGHT, self.focal)

    def surface(self) -> tuple[np.ndarray, np.ndarray]:
        """Points `[M, 3]` that the cameras see, and their depths `[M]`."""
        x, y = np.meshgrid(np.arange(0.5, WIDTH, STRIDE), np.arange(0.5, HEIGHT, STRIDE))
        points, depths = [], []
        for camtoworld in self.camtoworlds:
            origin, directions = pixel_rays(camtoworld, self.pixtocam(), x, y)
            distance = trace(origin, directions, self.parts).distance
            seen = distance.isfinite()
            points.append((origin + distance[..., None] * directions)[seen].numpy())
            depths.append(distance[seen].numpy())
        return np.concatenate(points), np.concatenate(depths)


def mosaic(size: float, seed: float) -> Pattern:
    """Tiles of random colours with an edge of `size`, each of smaller tiles that differ in tone."""
    def noise(cell: Tensor, k: float) -> Tensor:
        mixed = cell[0] * 12.9898 + cell[1] * 78.233 + cell[2] * 37.719
        return (torch.sin(mixed + 5.1 * k + seed) * 43758.5453) % 1

    def pattern(p: Tensor) -> Tensor:
        tile, small = (p / size + 0.137).floor(), (p / (0.31 * size) + 0.41).floor()
        return torch.stack([0.15 + 0.6 * noise(tile, k) + 0.2 * noise(small, 7) for k in range(3)])

    return pattern


def facing(position, direction, up=(0.0, 0.0, 1.0)) -> np.ndarray:
    """camtoworld `[4, 4]` of a camera at `position` that looks along `direction`."""
    camtoworld = np.eye(4)
    camtoworld[:3, 2] = -np.asarray(direction, np.float64) / np.linalg.norm(direction)
    right = np.cross(up, camtoworld[:3, 2])
    camtoworld[:3, 0] = right / np.linalg.norm(right)
    camtoworld[:3, 1] = np.cross(camtoworld[:3, 2], camtoworld[:3, 0])
    camtoworld[:3, 3] = position
    return camtoworld


def track() -> Arrangement:
    """24 parallel cameras on a line, 0.1 apart; boxes and a wall 2.5 to 12 units before them."""
    parts = (Part(Box((0.5, 0.4, 0.6)), (-1.0, 3.6, 0.0), mosaic(0.15, 1)),
             Part(Box((0.6, 0.6, 0.8)), (1.2, 5.5, 0.1), mosaic(0.2, 2)),
             Part(Box((0.8, 0.5, 1.5)), (-1.5, 8.0, 0.3), mosaic(0.3, 3)),
             Part(Box((9.0, 0.5, 6.0)), (0.0, 12.5, 0.0), mosaic(0.5, 4)),
             Part(Box((9.0, 6.5, 0.1)), (0.0, 8.8, -1.0), mosaic(0.4, 5)))
    camtoworlds = [facing((0.1 * (i - 11.5), 0.0, 0.0), (0.0, 1.0, 0.0)) for i in range(24)]
    return Arrangement(parts, np.stack(camtoworlds), 0.9 * WIDTH)


def facade() -> Arrangement:
    """36 parallel cameras in a plane, 1 apart, 2 units before a wall with bays."""
    wall = Part(Box((8.0, 0.5, 5.0)), (0.0, 2.5, 0.0), mosaic(0.35, 1))
    places = [(x, z) for x in np.arange(-5, 6, 1.5) for z in (-2.2, -0.7, 0.8, 2.3)]
    bays = (Part(Box((0.35, 0.15, 0.5)), (float(x), 2.0, z), mosaic(0.12, i))
            for i, (x, z) in enumerate(places))
    camtoworlds = [facing((x, 0.0, z), (0.0, 1.0, 0.0))
                   for x in range(-4, 5) for z in (-1.5, -0.5, 0.5, 1.5)]
    return Arrangement((wall, *bays), np.stack(camtoworlds), 0.9 * WIDTH)


def flight() -> Arrangement:
    """35 cameras that look straight down from a height of 30 on houses up to 8 high."""
    rng = np.random.default_rng(0)
    ground = Part(Box((60.0, 60.0, 0.5)), (0.0, 0.0, -0.5), mosaic(2.0, 1))
    houses = []
    for i, (x, y) in enumerate((x, y) for x in range(-25, 30, 10) for y in range(-25, 30, 10)):
        east, north, height = rng.uniform((x - 2, y - 2, 1), (x + 2, y + 2, 4)).tolist()
        houses.append(Part(Box((2.0, 2.0, height)), (east, north, height), mosaic(0.8, i + 3)))
    camtoworlds = [facing((x + rng.uniform(-0.5, 0.5), y, 30.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0))
                   for x in np.linspace(-20, 20, 7) for y in np.linspace(-15, 15, 5)]
    return Arrangement((ground, *houses), np.stack(camtoworlds), 0.9 * WIDTH)


def panorama() -> Arrangement:
    """40 cameras on a sphere of radius 0.5 that look outward into a room of 19 x 17 x 8 units."""
    walls = [((10.0, 0.5, 5.0), (0.0, 9.0, 0.0)), ((10.0, 0.5, 5.0), (0.0, -9.0, 0.0)),
             ((0.5, 10.0, 5.0), (10.0, 0.0, 0.0)), ((0.5, 10.0, 5.0), (-10.0, 0.0, 0.0)),
             ((11.0, 11.0, 0.5), (0.0, 0.0, -4.0)), ((11.0, 11.0, 0.5), (0.0, 0.0, 5.0))]
    boxes = [((1.0, 1.0, 1.5), (5.0, 4.0, -2.0)), ((1.0, 1.0, 1.5), (-5.0, 3.0, -2.0)),
             ((1.2, 1.0, 2.0), (1.0, -6.0, -1.5))]
    parts = tuple(Part(Box(half), centre, mosaic(0.7 if i < len(walls) else 0.4, i + 1))
                  for i, (half, centre) in enumerate(walls + boxes))
    camtoworlds = []
    for i in range(40):
        azimuth, elevation = math.pi * i / 10, (-0.35, 0.3)[i % 2]
        direction = np.array([math.cos(azimuth) * math.cos(elevation),
                              math.sin(azimuth) * math.cos(elevation), math.sin(elevation)])
        camtoworlds.append(facing(0.5 * direction, direction))
    return Arrangement(parts, np.stack(camtoworlds), 0.7 * WIDTH)


ARRANGEMENTS = {"track": track, "facade": facade, "flight": flight, "panorama": panorama}
