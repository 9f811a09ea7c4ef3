"""Plot learning curves of runs: PSNR against training time, steps or rays, as a PNG.

    python scripts/plot_curves.py log/blender_lego_mipnerf log/blender_lego_zipnerf
    python scripts/plot_curves.py log/a log/b --labels "mip-NeRF" "Zip-NeRF" --x steps
    python scripts/plot_curves.py log/a log/b --log           with a logarithmic x axis
    python scripts/plot_curves.py log/a --metric validation/psnr --out curve.png

Reads `metrics.jsonl`, so it also works while a run trains. Without `--metric` it is the training
PSNR of each run's last level, a mean over `--log_every` batches.
"""

import argparse
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SUPERSAMPLING = 4
SIZE = (800, 360)
# Left, top, right and bottom edges of the plot area.
FRAME = (56, 18, 668, 312)
LABEL_GAP = 17
X_TITLES = {"seconds": "seconds of training", "steps": "training steps", "rays": "training rays"}

INK, MUTED, GRID, PAPER = (31, 41, 55), (107, 114, 128), (229, 231, 235), (255, 255, 255)
COLOURS = [(37, 99, 235), (234, 88, 12), (5, 150, 105), (147, 51, 234), (220, 38, 38),
           (13, 148, 136), (161, 98, 7), (75, 85, 99)]


class Curve(NamedTuple):
    """Points of one run, in the order of training."""

    label: str
    x: list
    y: list


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--labels", nargs="+", help="names of the curves (default: the folders')")
    parser.add_argument("--x", choices=list(X_TITLES), default="seconds",
                        help="unit of the x axis (default: seconds)")
    parser.add_argument("--log", action="store_true", help="make the x axis logarithmic")
    parser.add_argument("--metric", help="key of metrics.jsonl (default: the last psnr/level_<i>)")
    parser.add_argument("--smooth", type=int, default=1, metavar="N",
                        help="running mean over N lines of metrics.jsonl (default: 1)")
    parser.add_argument("--title", help="text above the curves")
    parser.add_argument("--out", type=Path, default=Path("curves.png"),
                        help="PNG to write (default: %(default)s)")
    args = parser.parse_args(argv)
    labels = args.labels or [run.name for run in args.runs]
    if args.smooth < 1:
        parser.error("--smooth must be at least 1")
    if len(labels) != len(args.runs):
        parser.error(f"{len(args.runs)} runs but {len(labels)} --labels; give one for each run")
    try:
        curves = [smoothed(read_curve(run, label, args.x, args.metric), args.smooth)
                  for run, label in zip(args.runs, labels, strict=True)]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    image = plot(curves, args.x, args.metric or "training PSNR", args.title, args.log)
    image.save(args.out, optimize=True)
    print(args.out)


def read_curve(run, label, x, metric=None):
    """The `Curve` of a run folder. Raises ValueError if its metrics lack the quantity."""
    path = run / "metrics.jsonl"
    scale = 1
    if x == "rays":
        scale = json.loads((run / "config.json").read_text())["batch_size"]
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    key = metric or last_level(lines)
    points = [(line["seconds"] if x == "seconds" else scale * line["step"], line[key])
              for line in lines if key in line and math.isfinite(line[key])]
    if not points:
        known = sorted({name for line in lines for name in line} - {"step", "seconds"})
        raise ValueError(f"{path} has no values of {key}; it has {', '.join(known) or 'none'}")
    return Curve(label, *map(list, zip(*points, strict=True)))


def smoothed(curve, count):
    """Each value replaced by the mean of up to `count` values around it, as many on each side."""
    reach = [min(i, len(curve.y) - 1 - i, count // 2) for i in range(len(curve.y))]
    y = [sum(curve.y[i - r:i + r + 1]) / (2 * r + 1) for i, r in enumerate(reach)]
    return curve._replace(y=y)


def last_level(lines):
    """The key of the finest level's training PSNR."""
    levels = {int(match[1]) for line in lines for name in line
              if (match := re.fullmatch(r"psnr/level_(\d+)", name))}
    return f"psnr/level_{max(levels, default=0)}"


def plot(curves, x, metric, title=None, logarithmic=False):
    """An RGB image of the curves with axes, grid and a label at the end of each."""
    canvas = Image.new("RGB", tuple(side * SUPERSAMPLING for side in SIZE), PAPER)
    draw = ImageDraw.Draw(canvas)
    left, top, right, bottom = FRAME
    top = top + 18 if title else top
    longest = max(max(curve.x) for curve in curves)
    first = min(min(curve.x) for curve in curves)
    x_ticks = log_ticks(first, longest) if logarithmic else [
        value for value in ticks(0, longest, 7) if value <= longest]
    # The first points of a run are far below the rest and would flatten it.
    low = min(min(curve.y[len(curve.y) // 20:]) for curve in curves)
    y_ticks = ticks(low, max(max(curve.y) for curve in curves), 6)

    def to_x(value):
        part = math.log(value / first) / math.log(longest / first) if logarithmic else (
            value / longest)
        return left + (right - left) * part

    def to_y(value):
        value = max(value, y_ticks[0])
        return bottom - (bottom - top) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    for value in y_ticks:
        line(draw, [(left, to_y(value)), (right, to_y(value))], GRID, 1)
        text(draw, (left - 8, to_y(value)), f"{value:g}", MUTED, "rm")
    for value in x_ticks:
        line(draw, [(to_x(value), bottom), (to_x(value), bottom + 4)], MUTED, 1)
        text(draw, (to_x(value), bottom + 8), f"{value:,.10g}", MUTED, "ma")
    line(draw, [(left, bottom), (right, bottom)], MUTED, 1)
    text(draw, ((left + right) / 2, bottom + 28), X_TITLES[x], MUTED, "ma")
    text(draw, (left + 8, top + 4), f"{metric}, dB" if "psnr" in metric.lower() else metric,
         MUTED, "la")
    if title:
        text(draw, ((left + right) / 2, 10), title, INK, "ma", 14)
    for i, curve in enumerate(curves):
        points = [(to_x(a), to_y(b)) for a, b in zip(curve.x, curve.y, strict=True)]
        line(draw, points, COLOURS[i % len(COLOURS)], 2)
    ends = spread([to_y(curve.y[-1]) for curve in curves], LABEL_GAP)
    for i, (curve, end) in enumerate(zip(curves, ends, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        line(draw, [(right + 6, end), (right + 18, end)], colour, 3)
        text(draw, (right + 23, end), curve.label, INK, "lm")
    return canvas.resize(SIZE, Image.BOX)


def ticks(low, high, count):
    """About `count` round numbers, the first at or below `low`, the last at or above `high`."""
    span = max(high - low, 1e-9)
    power = 10 ** math.floor(math.log10(span / count))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def log_ticks(low, high):
    """The numbers 1, 2 and 5 times a power of ten from `low` to `high`, both above 0."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [m * 10.0**power for power in powers for m in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def spread(positions, gap):
    """Positions moved apart until neighbours are at least `gap` apart; same order."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    moved = [positions[i] for i in order]
    for _ in range(100):
        for i in range(1, len(moved)):
            overlap = gap - (moved[i] - moved[i - 1])
            if overlap > 0:
                moved[i - 1] -= overlap / 2
                moved[i] += overlap / 2
    return [moved[order.index(i)] for i in range(len(positions))]


def line(draw, points, colour, width):
    draw.line([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points], fill=colour,
              width=width * SUPERSAMPLING, joint="curve")


def text(draw, position, content, colour, anchor, size=12):
    draw.text(tuple(side * SUPERSAMPLING for side in position), content, fill=colour,
              anchor=anchor, font=ImageFont.load_default(size * SUPERSAMPLING))


if __name__ == "__main__":
    main()
