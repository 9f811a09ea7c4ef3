"""The parts of the demo scene: a still life, alone or in surroundings.

World: z up; the still life is within 1.35 of the origin.
"""

import math

import numpy as np

from procedural.solids import (
    Box,
    Cylinder,
    Part,
    Pattern,
    Rotation,
    Sphere,
    Vector,
    bricks,
    die,
    harlequin,
    helix,
    plain,
    planks,
    plate,
)


def _rotation_about_z(degrees: float) -> Rotation:
    """The rotation matrix by `degrees` about z, row by row."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return ((c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0))


def _rod(start: Vector, end: Vector, pattern: Pattern) -> Part:
    """A thin cylinder between two points, about two pixels wide in the images."""
    start, end = np.array(start), np.array(end)
    length = np.linalg.norm(end - start)
    z = (end - start) / length
    x = np.cross(z, (0.36, 0.48, 0.8))
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z], axis=1).tolist()
    return Part(Cylinder(0.025, length / 2), tuple((start + end) / 2), pattern, 0.3, 30.0, rotation)


PEPPERMINT = helix(0.06, 0, (0.80, 0.12, 0.16), (0.95, 0.93, 0.90))
APEX = (0.56, 0.50, 0.52)

# On a round plate.
STILL_LIFE = (
    Part(Cylinder(1.12, 0.09), (0.0, 0.0, -0.62), plate, 0.1, 20.0),
    Part(Cylinder(0.21, 0.46), (-0.02, 0.16, -0.07),
         helix(0.13, 2, (0.06, 0.50, 0.48), (0.93, 0.88, 0.76)), 0.2, 30.0),
    Part(Sphere(0.33), (-0.02, 0.16, 0.72), harlequin, 0.35, 60.0,
         ((0.8, 0.0, 0.6), (0.0, 1.0, 0.0), (-0.6, 0.0, 0.8))),
    Part(Sphere(0.43), (-0.50, -0.36, -0.10), plain((0.72, 0.05, 0.09)), 0.9, 45.0),
    Part(Box((0.28, 0.28, 0.28)), (0.48, -0.42, -0.25), die, 0.1, 20.0, _rotation_about_z(27)),
    Part(Box((0.17, 0.17, 0.17)), (0.46, -0.40, 0.20), die, 0.1, 20.0, _rotation_about_z(62)),
    Part(Box((0.36, 0.13, 0.34)), (-0.52, 0.52, -0.19),
         helix(0.07, 0, (0.45, 0.33, 0.25), (0.70, 0.57, 0.44)), 0.0, 20.0, _rotation_about_z(35)),
    Part(Sphere(0.15), (-0.52, 0.52, 0.30), plain((0.10, 0.55, 0.22)), 0.8, 70.0),
    Part(Sphere(0.13), (0.02, -0.82, -0.40), plain((0.10, 0.20, 0.75)), 0.8, 70.0),
    Part(Sphere(0.12), (0.93, 0.02, -0.41), plain((0.95, 0.55, 0.05)), 0.8, 70.0),
    Part(Sphere(0.11), APEX, plain((0.45, 0.45, 0.50)), 0.9, 25.0),
    _rod((0.86, 0.52, -0.53), APEX, PEPPERMINT),
    _rod((0.40, 0.80, -0.53), APEX, PEPPERMINT),
    _rod((0.38, 0.28, -0.53), APEX, PEPPERMINT),
)

# With a wall behind and a floor.
FORWARD_FACING = STILL_LIFE + (
    Part(Box((9.0, 0.1, 6.0)), (0.0, 2.6, 0.0), bricks),
    Part(Box((9.0, 9.0, 0.1)), (0.0, 0.0, -0.81), planks, 0.1, 10.0),
)

# With four walls and a floor.
ROOM = STILL_LIFE + (
    Part(Box((12.0, 12.0, 0.1)), (0.0, 0.0, -0.81), planks, 0.1, 10.0),
    Part(Box((7.0, 0.1, 3.0)), (0.0, 7.0, 2.0), bricks),
    Part(Box((7.0, 0.1, 3.0)), (0.0, -7.0, 2.0), bricks),
    Part(Box((7.0, 0.1, 3.0)), (7.0, 0.0, 2.0), bricks, rotation=_rotation_about_z(90)),
    Part(Box((7.0, 0.1, 3.0)), (-7.0, 0.0, 2.0), bricks, rotation=_rotation_about_z(90)),
)
