"""Make mip-NeRF's multiscale scenes from Blender scenes.

    python scripts/convert_blender_data.py --blender_dir data/nerf_synthetic/lego \
        --out_dir data/nerf_multiscale/lego

`--blender_dir` may also be a folder of scenes; each becomes a folder in `--out_dir`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loaders.multiscale import convert_to_multiscale  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--blender_dir", type=Path, required=True,
                        help="a scene, or a folder of scenes")
    parser.add_argument("--out_dir", type=Path, required=True, help="folder to write; must be new")
    parser.add_argument("--num_scales", type=int, choices=range(1, 9), default=4,
                        help="1, 1/2, 1/4 … of the size (default: %(default)s)")
    args = parser.parse_args(argv)
    pairs = scene_folders(args.blender_dir, args.out_dir)
    for source, target in pairs:
        if len(pairs) > 1 and target.exists():
            print(f"{target} exists and is not changed")
            continue
        convert_to_multiscale(source, target, args.num_scales)
        print(f"{source} -> {target}")


def scene_folders(blender_dir, out_dir):
    """Pairs of source and target folders. Raises UserError if there is no Blender scene."""
    if any(blender_dir.glob("transforms_*.json")):
        return [(blender_dir, out_dir)]
    sources = sorted({path.parent for path in blender_dir.glob("*/transforms_*.json")})
    if not sources:
        raise UserError(f"--blender_dir {blender_dir} holds no transforms_*.json, nor do its "
                        "subfolders; give a Blender scene.")
    return [(source, out_dir / source.name) for source in sources]


if __name__ == "__main__":
    run_script(main)
