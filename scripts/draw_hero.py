"""Compose the image at the head of the README: rendering, depth and normals of a test view.

    python evaluate.py --run log/hero
    python scripts/draw_hero.py --run log/hero --view 2

Uses the images that `evaluate.py` wrote into the run folder (`eval_test_<step>/`), the newest step
if there are several. Several `--run` become rows.
"""

import argparse
import re
from pathlib import Path

from PIL import Image

OUT = Path(__file__).resolve().parents[1] / "misc" / "pictures" / "hero.png"
KINDS = ["rgb", "depth", "normals"]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("--run", type=Path, nargs="+", required=True,
                        help="run folders, one row of images for each")
    parser.add_argument("--view", type=int, nargs="+", default=[0],
                        help="index of the test view, one for all runs or one for each")
    parser.add_argument("--width", type=int, default=800, help="pixels (default: 800)")
    parser.add_argument("--gap", type=int, default=4, help="pixels between images (default: 4)")
    parser.add_argument("--out", type=Path, default=OUT,
                        help=f"PNG or JPEG to write (default: {OUT})")
    args = parser.parse_args(argv)
    if len(args.view) == 1:
        args.view *= len(args.run)
    if len(args.view) != len(args.run):
        parser.error(f"{len(args.run)} runs but {len(args.view)} views; give one --view for each")
    try:
        rows = [images_of(run, view) for run, view in zip(args.run, args.view, strict=True)]
    except OSError as error:
        parser.error(str(error))
    compose(rows, args.width, args.gap).save(args.out, quality=92, optimize=True)
    print(args.out)


def images_of(run, view):
    """Rendering, depth and normals of a test view, from the newest evaluation of a run."""
    folders = [path for path in run.glob("eval_test_*")
               if re.fullmatch(r"eval_test_\d+", path.name)]
    if not folders:
        raise FileNotFoundError(f"{run} has no eval_test_<step>/; run evaluate.py --run {run}")
    newest = max(folders, key=lambda path: path.name)
    return [Image.open(newest / f"{view:03d}_{kind}.png").convert("RGB") for kind in KINDS]


def compose(rows, width, gap):
    """Rows of images, each resized to the common width, on white."""
    strips = [compose_row(images, width, gap) for images in rows]
    height = sum(strip.height for strip in strips) + gap * (len(strips) - 1)
    canvas, top = Image.new("RGB", (width, height), "white"), 0
    for strip in strips:
        canvas.paste(strip, (0, top))
        top += strip.height + gap
    return canvas


def compose_row(images, width, gap):
    """Images side by side, of one height; what rounding leaves goes to the last."""
    aspect = sum(image.width / image.height for image in images)
    height = round((width - gap * (len(images) - 1)) / aspect)
    strip, left = Image.new("RGB", (width, height), "white"), 0
    for i, image in enumerate(images):
        last = i == len(images) - 1
        side = width - left if last else round(height * image.width / image.height)
        strip.paste(image.resize((side, height), Image.LANCZOS), (left, 0))
        left += side + gap
    return strip


if __name__ == "__main__":
    main()
