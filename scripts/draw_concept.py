"""Draw the idea of mip-NeRF: point samples of a ray alias, conical frustums do not.

    python scripts/draw_concept.py                       writes misc/pictures/concept.png

Above, pixels look at a wall of stripes that are finer than their footprints. A ray through each
pixel's centre hits one stripe or the other; the frustums of each pixel's cone, drawn with their
Gaussians, cover several stripes and give their mean. Below, a checkerboard on the ground, one
sample per pixel on both sides: the pattern at a point, and the expected pattern under the Gaussian
of the pixel's footprint, whose frequencies are damped by exp(-w^2 v / 2) (mip-NeRF, eq. 14).
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

OUT = Path(__file__).resolve().parents[1] / "misc" / "pictures" / "concept.png"

WIDTH, HEIGHT = 800, 416
SUPERSAMPLING = 4

INK = (31, 41, 55)
MUTED = (107, 114, 128)
PAPER = (255, 255, 255)
RAY = (37, 99, 235)
CONE = (234, 88, 12)
STRIPES = np.array([[28, 36, 52], [232, 236, 242]], float)
CHECKS = np.array([[24, 58, 110], [250, 244, 230]], float)

# A panel of 384 x 218, in its own coordinates: the camera, the image plane and the wall.
CAMERA = np.array([24.0, 109.0])
PLANE_X, WALL_X, WALL_WIDTH = 152.0, 340.0, 28.0
NUM_PIXELS, PIXEL = 7, 12.5
STRIPE_PERIOD = 19.3
FENCEPOSTS = np.array([152.0, 183.0, 217.0, 254.0, 295.0, 340.0])

# The checkerboard: pixels of the rendering, and how many screen pixels each is drawn as.
GROUND_SIZE, GROUND_ZOOM = (128, 44), 3
CHECK_PERIOD, HORIZON, FOCAL, EYE_HEIGHT = 1.05, 3.0, 60.0, 1.0
TURN = np.deg2rad(27)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=OUT, help=f"PNG to write (default: {OUT})")
    args = parser.parse_args(argv)
    draw_concept().save(args.out, optimize=True)
    print(args.out)


def draw_concept():
    """The whole figure, an RGB image of 800 pixels width."""
    canvas = Canvas(WIDTH, HEIGHT)
    ground = [draw_ground(checkerboard(integrated)) for integrated in (False, True)]
    for left, title, integrated in ((8, "NeRF: points on a ray", False),
                                    (408, "mip-NeRF: frustums of a cone", True)):
        canvas.text((left + 192, 16), title, 16, INK)
        draw_panel(canvas, (left, 30), integrated)
    canvas.text((200, 260), "one point per sample: aliasing", 13, MUTED)
    canvas.text((600, 260), "the mean over each frustum: anti-aliased", 13, MUTED)
    figure = canvas.finished()
    for left, image in zip((8, 408), ground, strict=True):
        figure.paste(image, (left, 276))
    return figure.quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)


def draw_panel(canvas, corner, integrated):
    """Camera, rays or cones, the wall, and beside the image plane the colours of the pixels."""
    canvas.origin = np.array(corner, float)
    edges = CAMERA[1] + PIXEL * (np.arange(NUM_PIXELS + 1) - NUM_PIXELS / 2)
    centres = (edges[1:] + edges[:-1]) / 2
    scale = (WALL_X - CAMERA[0]) / (PLANE_X - CAMERA[0])
    draw_wall(canvas)
    for i, centre in enumerate(centres):
        if integrated:
            draw_cone(canvas, edges[i:i + 2], odd=i % 2 == 1)
        else:
            draw_ray(canvas, centre)
    for i, centre in enumerate(centres):
        at_wall = CAMERA[1] + scale * (centre - CAMERA[1])
        # A disc of a pixel's radius (2 / sqrt(12) of its width) has a quarter of its square.
        variance = (2 / np.sqrt(12) * scale * PIXEL) ** 2 / 4 if integrated else 0.0
        value = 0.5 + 0.5 * square_wave(2 * np.pi * at_wall / STRIPE_PERIOD,
                                        (2 * np.pi / STRIPE_PERIOD) ** 2 * variance)
        colour = mix(STRIPES, value)
        canvas.box((PLANE_X - 7, edges[i], PLANE_X + 7, edges[i + 1]), colour, outline=MUTED)
    draw_camera(canvas)
    canvas.text((PLANE_X, edges[-1] + 12), "pixels", 12, MUTED)
    canvas.origin = np.zeros(2)


def draw_wall(canvas):
    for start in np.arange(-1, 14) * STRIPE_PERIOD / 2 * 2:
        for phase, colour in ((0.0, STRIPES[1]), (0.5, STRIPES[0])):
            top, bottom = np.clip((start + phase * STRIPE_PERIOD,
                                   start + (phase + 0.5) * STRIPE_PERIOD), 0, 218)
            if bottom > top:
                canvas.box((WALL_X, top, WALL_X + WALL_WIDTH, bottom), tuple(colour.astype(int)))
    canvas.box((WALL_X, 0, WALL_X + WALL_WIDTH, 218), None, outline=INK)


def draw_ray(canvas, centre):
    slope = (centre - CAMERA[1]) / (PLANE_X - CAMERA[0])
    end = (WALL_X, CAMERA[1] + slope * (WALL_X - CAMERA[0]))
    canvas.line([tuple(CAMERA), end], (*RAY, 190), 1.1)
    for x in np.append((FENCEPOSTS[1:] + FENCEPOSTS[:-1]) / 2, WALL_X):
        canvas.dot((x, CAMERA[1] + slope * (x - CAMERA[0])), 2.5, RAY)


def draw_cone(canvas, pixel_edges, odd):
    """The frustums of a pixel's cone and their Gaussians (one standard deviation)."""
    slopes = (pixel_edges - CAMERA[1]) / (PLANE_X - CAMERA[0])
    across = [CAMERA[1] + slopes * (x - CAMERA[0]) for x in FENCEPOSTS]
    canvas.polygon([tuple(CAMERA), (PLANE_X, across[0][0]), (PLANE_X, across[0][1])],
                   (*CONE, 60 if odd else 30))
    for i in range(len(FENCEPOSTS) - 1):
        x0, x1 = FENCEPOSTS[i:i + 2]
        corners = [(x0, across[i][0]), (x1, across[i + 1][0]), (x1, across[i + 1][1]),
                   (x0, across[i][1])]
        canvas.polygon(corners, (*CONE, 95 if (i + odd) % 2 else 40))
        mean, along, radial = frustum_moments(x0 - CAMERA[0], x1 - CAMERA[0],
                                              2 / np.sqrt(12) * (slopes[1] - slopes[0]))
        slope = slopes.mean()
        centre = (CAMERA[0] + mean, CAMERA[1] + slope * mean)
        canvas.ellipse(centre, np.sqrt(along) * np.hypot(1, slope), np.sqrt(radial),
                       np.arctan(slope), (*CONE, 255))


def draw_camera(canvas):
    x, y = CAMERA
    canvas.polygon([(x, y), (x - 13, y - 8), (x - 13, y + 8)], (*INK, 255))
    canvas.dot((x, y), 3.2, INK)


def frustum_moments(t0, t1, radius):
    """Mean of t, its variance, and the variance across the axis, of a conical frustum.

    The radius is that at t = 1 (mip-NeRF, eqs. 7 and 8, in the stable form of its appendix).
    """
    mid, half = (t0 + t1) / 2, (t1 - t0) / 2
    ratio = half**2 / (3 * mid**2 + half**2)
    mean = mid + 2 * mid * ratio
    along = half**2 / 3 - 4 / 15 * ratio**2 * (12 * mid**2 - half**2)
    across = radius**2 * (mid**2 / 4 + half**2 * (5 / 12 - 4 / 15 * ratio))
    return mean, along, across


def square_wave(phase, variance, harmonics=41):
    """Expected sign(sin(x)) for normal x of these means and variances."""
    phase, variance = np.asarray(phase, float), np.asarray(variance, float)
    if not variance.any():
        return np.sign(np.sin(phase))
    k = np.arange(1, 2 * harmonics, 2).reshape(-1, *[1] * phase.ndim)
    terms = 4 / (np.pi * k) * np.sin(k * phase) * np.exp(-k**2 * variance / 2)
    return terms.sum(axis=0)


def checkerboard(integrated, harmonics=24):
    """A checkerboard on the ground in perspective, in [0, 1]: at points, or over footprints."""
    width, height = GROUND_SIZE
    u = np.arange(width) + 0.5 - width / 2
    v = np.arange(height) + 0.5 - HORIZON
    u, v = np.meshgrid(u, v)
    sky = v <= 1.0
    v = np.maximum(v, 1.0)
    # Ground coordinates of a pixel, and their derivatives in u and v.
    x, z = u * EYE_HEIGHT / v, FOCAL * EYE_HEIGHT / v
    along_u = np.stack([EYE_HEIGHT / v, np.zeros_like(v)])
    along_v = np.stack([-x / v, -z / v])
    turn = 2 * np.pi / CHECK_PERIOD * np.array(
        [[np.cos(TURN), -np.sin(TURN)], [np.sin(TURN), np.cos(TURN)]])
    a, b = np.einsum("ij,jhw->ihw", turn, np.stack([x, z])) + 1.3
    if not integrated:
        board = np.sign(np.sin(a) * np.sin(b))
    else:
        # sin(k a) sin(l b) = (cos(k a - l b) - cos(k a + l b)) / 2, each damped by its variance.
        du, dv = (np.einsum("ij,jhw->ihw", turn, d) for d in (along_u, along_v))
        board = np.zeros_like(a)
        for k in range(1, 2 * harmonics, 2):
            for m in range(1, 2 * harmonics, 2):
                for sign in (1, -1):
                    variance = sum((k * d[0] - sign * m * d[1]) ** 2 for d in (du, dv)) / 12
                    board += (8 / (np.pi**2 * k * m) * sign * np.cos(k * a - sign * m * b)
                              * np.exp(-variance / 2))
    board = np.clip(0.5 + 0.5 * board, 0, 1)
    board[sky] = np.nan
    return board


def draw_ground(board):
    colours = mix(CHECKS, np.nan_to_num(board)[..., None])
    colours = np.where(np.isnan(board)[..., None], np.array([214, 228, 243.0]), colours)
    image = Image.fromarray(np.rint(colours).astype(np.uint8))
    return image.resize((image.width * GROUND_ZOOM, image.height * GROUND_ZOOM), Image.NEAREST)


def mix(colours, value):
    """From the first colour to the second."""
    mixed = colours[0] + (colours[1] - colours[0]) * np.asarray(value)
    return tuple(np.rint(mixed).astype(int)) if mixed.ndim == 1 else mixed


class Canvas:
    """Anti-aliased shapes: drawn larger than they will be, each blended over the last."""

    def __init__(self, width, height):
        self.size = (width, height)
        self.image = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), PAPER)
        self.draw = ImageDraw.Draw(self.image, "RGBA")
        self.origin = np.zeros(2)

    def scaled(self, points):
        return [tuple((np.asarray(p, float) + self.origin) * SUPERSAMPLING) for p in points]

    def polygon(self, points, fill):
        self.draw.polygon(self.scaled(points), fill=fill)

    def line(self, points, fill, width):
        self.draw.line(self.scaled(points), fill=fill, width=round(width * SUPERSAMPLING),
                       joint="curve")

    def box(self, corners, fill, outline=None):
        self.draw.rectangle(self.scaled([corners[:2], corners[2:]]), fill=fill, outline=outline,
                            width=SUPERSAMPLING)

    def dot(self, centre, radius, fill):
        (x, y), = self.scaled([centre])
        r = radius * SUPERSAMPLING
        self.draw.ellipse([x - r, y - r, x + r, y + r], fill=fill, outline=PAPER,
                          width=SUPERSAMPLING // 2)

    def ellipse(self, centre, half_length, half_width, angle, outline):
        turns = np.linspace(0, 2 * np.pi, 65)
        x, y = half_length * np.cos(turns), half_width * np.sin(turns)
        points = np.stack([centre[0] + x * np.cos(angle) - y * np.sin(angle),
                           centre[1] + x * np.sin(angle) + y * np.cos(angle)], axis=1)
        self.polygon(points, (255, 247, 237, 150))
        self.line(points, outline, 1.1)

    def text(self, position, text, size, fill):
        self.draw.text(*self.scaled([position]), text, fill=fill, anchor="mm",
                       font=ImageFont.load_default(size * SUPERSAMPLING))

    def finished(self):
        return self.image.resize(self.size, Image.BOX)


if __name__ == "__main__":
    main()
