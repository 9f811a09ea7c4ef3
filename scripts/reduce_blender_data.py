"""Make a smaller copy of a Blender scene: area-averaged images, and some of its test views.

    python scripts/reduce_blender_data.py data/nerf_synthetic/lego data/nerf_synthetic/lego_200 \
        --factor 4 --test_every 8

The tables of misc/Results.md are of such a scene: `--factor` alone gives the same images, but
scoring all 200 test views takes longer than the small models train.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from image_utils import read_image, resize_area, write_image  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("source", type=Path, help="a Blender scene")
    parser.add_argument("target", type=Path, help="folder to write; must be new")
    parser.add_argument("--factor", type=int, default=4, help="downsampling factor (default: 4)")
    parser.add_argument("--test_every", type=int, default=8,
                        help="keep every n-th test view (default: 8)")
    parser.add_argument("--val_every", type=int, default=20,
                        help="keep every n-th validation view (default: 20)")
    args = parser.parse_args(argv)
    every = {"train": 1, "val": args.val_every, "test": args.test_every}
    if args.factor < 1 or min(every.values()) < 1:
        parser.error("--factor, --test_every and --val_every must be at least 1")
    if not (args.source / "transforms_train.json").exists():
        parser.error(f"{args.source} has no transforms_train.json; a Blender scene is needed")
    if args.target.exists():
        parser.error(f"{args.target} exists; remove it or choose another folder")
    unfinished = args.target.with_name(args.target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for split, step in every.items():
        path = args.source / f"transforms_{split}.json"
        if path.exists():
            count = reduce_split(path, unfinished, args.factor, step)
            print(f"{split}: {count} views")
    unfinished.rename(args.target)


def reduce_split(path, target, factor, step):
    """Write every `step`-th view of a transforms file, smaller; returns how many."""
    transforms = json.loads(path.read_text())
    transforms["frames"] = transforms["frames"][::step]
    for frame in transforms["frames"]:
        source = path.parent / frame["file_path"]
        image = read_image(source if source.suffix else source.with_suffix(".png"), 4)
        height, width = image.shape[:2]
        out = target / (frame["file_path"] + ("" if source.suffix else ".png"))
        out.parent.mkdir(parents=True, exist_ok=True)
        write_image(out, resize_area(image, width // factor, height // factor))
    target.mkdir(parents=True, exist_ok=True)
    (target / path.name).write_text(json.dumps(transforms, indent=1))
    return len(transforms["frames"])


if __name__ == "__main__":
    main()
