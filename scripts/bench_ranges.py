"""Captures whose cameras do not look inward: found and typed ranges, meshes and true surfaces.

    python scripts/bench_ranges.py
    python scripts/bench_ranges.py --kinds facade flight --steps 2000

Makes scenes by formulas, as transforms.json without points: cameras along a track, before a facade,
looking straight down, and outward in a room. Each is trained twice by Zip-NeRF of preset laptop: as
a user would, and with --near and --far at the true range.

Columns: the true range of depths and the one found from matches, in units of the scene; PSNR and
SSIM of the test views as found / as typed; the vertices of the mesh, and the median and 90th
percentile of their distance to the true surface, relative to the diagonal of what the cameras see.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import imageio.v3 as iio  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import trimesh  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from procedural.arrangements import (  # noqa: E402
    ARRANGEMENTS,
    HEIGHT,
    WIDTH,
    Arrangement,
)
from procedural.tracing import distance_to_surface, render  # noqa: E402
from runtime.commands import command  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from runtime.files import new_folder  # noqa: E402
from runtime.flags import integer  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    check_run,
    environment_line,
    make_parser,
    table_head,
    table_row,
)

MODEL = "--preset laptop --model zipnerf --dataset_name nerfstudio --eval_every 0"
COLUMNS = ["cameras", "true range", "found", "PSNR dB", "SSIM", "vertices", "median off",
           "90 % off"]

# Typed ranges are the true ones, widened by so much.
MARGIN = 0.05


def main(argv=None):
    args = parse(argv)
    print(f"{environment_line()}; {args.steps} steps of `{MODEL}`\n\n{table_head(COLUMNS)}",
          flush=True)
    for kind in args.kinds:
        arrangement = ARRANGEMENTS[kind]()
        write_scene(args.log_dir / kind / "scene", arrangement)
        print(table_row([kind, *row(args.log_dir / kind, arrangement, args.steps)]), flush=True)


def parse(argv):
    """The parsed command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--kinds", nargs="+", choices=ARRANGEMENTS, default=list(ARRANGEMENTS),
                        metavar="KIND", help=f"default: all of {', '.join(ARRANGEMENTS)}")
    parser.add_argument("--steps", type=integer(1), default=800, help="of training (default: 800)")
    parser.add_argument("--log_dir", type=Path, default=Path("log/ranges"),
                        help="folder of the scenes and runs (default: %(default)s)")
    return parser.parse_args(argv)


def write_scene(folder, arrangement: Arrangement):
    """Write an arrangement as a nerfstudio scene, unless `folder` exists."""
    if folder.exists():
        return
    with new_folder(folder) as unfinished:
        (unfinished / "images").mkdir()
        frames = []
        for i, camtoworld in enumerate(arrangement.camtoworlds):
            image = render(camtoworld, arrangement.pixtocam(), WIDTH, HEIGHT, 2, arrangement.parts)
            iio.imwrite(unfinished / f"images/{i:03d}.png", image[..., :3])
            frames.append({"file_path": f"images/{i:03d}.png",
                           "transform_matrix": camtoworld.tolist()})
        meta = {"camera_model": "PINHOLE", "w": WIDTH, "h": HEIGHT, "cx": WIDTH / 2,
                "cy": HEIGHT / 2, "fl_x": arrangement.focal, "fl_y": arrangement.focal}
        (unfinished / "transforms.json").write_text(json.dumps(meta | {"frames": frames}))


def row(folder, arrangement: Arrangement, steps: int):
    """The cells of an arrangement's row, after the first."""
    points, depths = arrangement.surface()
    finish(folder / "found", folder / "scene", steps)
    scene = load_checkpoint(folder / "found", "cpu").scene["train"]
    near, far = depths.min() * scene.scale, depths.max() * scene.scale
    finish(folder / "typed", folder / "scene", steps, "--near", f"{(1 - MARGIN) * near:.4g}",
           "--far", f"{(1 + MARGIN) * far:.4g}")
    check_run(command("extract_mesh.py", "--run", folder / "found"))
    vertices = trimesh.load(next((folder / "found").glob("mesh_*/mesh.ply"))).vertices
    off = distance_to_surface(torch.as_tensor(np.asarray(vertices)), arrangement.parts).abs()
    off = off.numpy() / np.linalg.norm(np.ptp(points, axis=0))
    scores = [read_scores(folder / name) for name in ("found", "typed")]
    found = scene.cameras.visible_range
    return [f"{near:.2f} to {far:.2f}", f"{found[0]:.2f} to {found[1]:.2f}",
            " / ".join(f"{s['psnr']:.2f}" for s in scores),
            " / ".join(f"{s['ssim']:.3f}" for s in scores), f"{len(vertices):,}",
            f"{100 * np.median(off):.2f} %", f"{100 * np.percentile(off, 90):.2f} %"]


def finish(folder, scene, steps: int, *flags):
    """Train and score a run, unless it has scores."""
    if not list(folder.glob("eval_test_*/scores.json")):
        check_run(command(
            "train.py", *MODEL.split(), "--scene", scene.resolve(), "--max_steps", steps,
            "--log_dir", folder.parent, "--exp_name", folder.name, *flags))


def read_scores(folder):
    """The scores of a run's test views."""
    return json.loads(next(folder.glob("eval_test_*/scores.json")).read_text())


if __name__ == "__main__":
    run_script(main)
