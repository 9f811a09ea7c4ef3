"""Make mip-NeRF's multiscale scenes from Blender scenes.

    python scripts/convert_blender_data.py --blender_dir data/nerf_synthetic/lego \
        --out_dir data/nerf_multiscale/lego

`--blender_dir` may also be a folder of scenes; each becomes a folder in `--out_dir`.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets import convert_to_multiscale  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--blender_dir", type=Path, required=True, help="a scene, or many")
    parser.add_argument("--out_dir", type=Path, required=True, help="where to write; must be new")
    parser.add_argument("--num_scales", type=int, choices=range(1, 9), default=4,
                        help="1, 1/2, 1/4 … of the size")
    args = parser.parse_args(argv)
    found = scenes(args.blender_dir, args.out_dir)
    for source, target in found:
        if len(found) > 1 and target.exists():
            print(f"{target} is there already and stays as it is")
            continue
        convert_to_multiscale(source, target, args.num_scales)
        print(f"{source} -> {target}")


def scenes(blender_dir, out_dir):
    """Pairs of source and target folders."""
    if any(blender_dir.glob("transforms_*.json")):
        return [(blender_dir, out_dir)]
    found = sorted({path.parent for path in blender_dir.glob("*/transforms_*.json")})
    if not found:
        raise UserError(f"--blender_dir {blender_dir} holds no transforms_*.json, nor do its "
                        "folders; give a Blender scene.")
    return [(folder, out_dir / folder.name) for folder in found]


if __name__ == "__main__":
    run_script(main)
