"""Copy a scene and paint distractors into its training views, to try --robust on.

    python scripts/add_distractors.py data/colmap/garden data/colmap/garden_distractors
    python train.py --dataset_name colmap --scene garden_distractors --robust

A third of the training views (`--fraction`) get textured shapes, at other places in each; the other
training views and all test views stay. `distractors.json` lists the painted files and the fraction
of their pixels that was painted. For Blender, LLFF, COLMAP and nerfstudio scenes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402

import image_utils  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from scripts.copies import copied_scene, find_photographs, write_like  # noqa: E402

# Shapes in a view, and their radius as a fraction of the image's shorter side.
NUM_SHAPES, RADII = (2, 5), (0.1, 0.25)


class Shape(NamedTuple):
    """An ellipse or rectangle with a texture. Lengths are in the image's shorter side.

    centre: from the image's top left corner, as fractions of width and height; radii: half axes;
    angle: of the first axis; colours: two of the texture, 8 bits; period: of its waves along both
    axes; corners: whether it is a rectangle.
    """

    centre: np.ndarray
    radii: np.ndarray
    angle: float
    colours: np.ndarray
    period: np.ndarray
    corners: bool

    @classmethod
    def random(cls, rng):
        """A shape that lies mostly in the image."""
        return cls(
            centre=rng.uniform(0.1, 0.9, 2), radii=rng.uniform(*RADII, 2),
            angle=rng.uniform(0, np.pi), colours=rng.integers(0, 256, (2, 3)),
            period=rng.uniform(0.02, 0.1, 2), corners=bool(rng.integers(2)))

    def paint(self, image):
        """Paint into `image [h, w, 3 or 4]` in place; returns the painted pixels, bool `[h, w]`."""
        height, width = image.shape[:2]
        side = min(height, width)
        y, x = np.mgrid[:height, :width] + 0.5
        x, y = (x - self.centre[0] * width) / side, (y - self.centre[1] * height) / side
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        u, v = cos * x + sin * y, cos * y - sin * x
        across = np.abs(np.stack([u, v], axis=-1) / self.radii)
        inside = across.max(axis=-1) < 1 if self.corners else (across**2).sum(axis=-1) < 1
        wave = np.sin(2 * np.pi * u / self.period[0]) * np.sin(2 * np.pi * v / self.period[1])
        blend = (0.5 + 0.5 * wave)[..., None]
        painted = self.colours[0] * blend + self.colours[1] * (1 - blend)
        image[inside, :3] = painted[inside].round()
        image[inside, 3:] = 255
        return inside


def main(argv=None):
    args = parse(argv)
    source = args.source.absolute()
    photographs = find_photographs(source, ("train",), args.llffhold)
    rng = np.random.default_rng(args.seed)
    count = round(args.fraction * len(photographs))
    fractions = {}
    with copied_scene(source, args.destination) as unfinished:
        for index in sorted(rng.permutation(len(photographs))[:count]):
            shapes = [Shape.random(rng) for _ in range(rng.integers(*NUM_SHAPES))]
            for name in photographs[index]:
                fractions[name] = paint_file(source / name, unfinished / name, shapes)
                print(f"{name}: {fractions[name]:.0%} painted")
        (unfinished / "distractors.json").write_text(json.dumps(fractions, indent=1))


def parse(argv):
    """The parsed command line; exits with status 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("source", type=Path, help="the folder of a scene")
    parser.add_argument("destination", type=Path, help="folder to write; must be new")
    parser.add_argument("--fraction", type=float, default=1 / 3,
                        help="fraction of the training views to paint into (default: a third)")
    parser.add_argument("--llffhold", type=int, default=8, help="every n-th view of a capture is a "
                        "test view (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0,
                        help="determines views and shapes (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 0 <= args.fraction <= 1:
        parser.error("--fraction must be between 0 and 1")
    if args.llffhold < 1:
        parser.error("--llffhold must be at least 1")
    if args.seed < 0:
        parser.error("--seed must be at least 0")
    return args


def paint_file(file, target, shapes):
    """Write a photograph with shapes painted into it; returns the fraction of painted pixels."""
    pixels = image_utils.read_image(file, 4 if image_utils.has_alpha(file) else 3).copy()
    painted = np.any([shape.paint(pixels) for shape in shapes], axis=0)
    write_like(file, target, pixels)
    return float(painted.mean())


if __name__ == "__main__":
    run_script(main)
