"""Copy a scene with another exposure for each photograph, to try appearance embeddings on.

    python scripts/change_exposures.py data/colmap/garden data/colmap/garden_exposures --stops 1

Linear light is multiplied by 2^u with u uniform in plus or minus --stops, the same for all sizes
of a photograph, in all splits. Masks and all other files are copied as they are; `exposures.json`
holds the multiples. For Blender, LLFF, COLMAP and nerfstudio scenes.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import image_utils  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from scripts.copies import copied_scene, find_photographs, write_like  # noqa: E402

MAX_STOPS = 16


def main(argv=None):
    args = parse(argv)
    source = args.source.absolute()
    photographs = find_photographs(source)
    stops = np.random.default_rng(args.seed).uniform(-args.stops, args.stops, len(photographs))
    multiples = {}
    with copied_scene(source, args.destination) as unfinished:
        for files, stop in zip(photographs, stops, strict=True):
            for name in files:
                multiples[name] = float(2**stop)
                write_exposed(source / name, unfinished / name, multiples[name])
                print(f"{name}: {multiples[name]:.3f}")
        (unfinished / "exposures.json").write_text(json.dumps(multiples, indent=1))


def parse(argv):
    """The parsed command line; exits with status 2 for a wrong one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("source", type=Path, help="the folder of a scene")
    parser.add_argument("destination", type=Path, help="folder to write; must be new")
    parser.add_argument("--stops", type=float, default=1.0,
                        help="largest change, in factors of 2 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0,
                        help="determines the exposures (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 0 <= args.stops <= MAX_STOPS:
        parser.error(f"--stops must be between 0 and {MAX_STOPS}")
    if args.seed < 0:
        parser.error("--seed must be at least 0")
    return args


def write_exposed(file, target, multiple):
    """Write a photograph whose linear light is multiplied; alpha and EXIF data are kept."""
    pixels = image_utils.read_image(file, 4 if image_utils.has_alpha(file) else 3)
    light = image_utils.srgb_to_linear(torch.arange(256, dtype=torch.float64) / 255)
    levels = image_utils.to_uint8(image_utils.linear_to_srgb((multiple * light).clamp(max=1)))
    exposed = pixels.copy()
    exposed[..., :3] = levels[pixels[..., :3]]
    write_like(file, target, exposed)

if __name__ == "__main__":
    run_script(main)
