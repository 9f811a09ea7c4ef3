"""Errors of rendered normals on the demo scene, whose surface is known: a Markdown table.

    python scripts/score_normals.py log/demo log/blender_demo_mipnerf360

Needs runs on the demo scene in Blender format, not the dataset. Each test view is rendered once for
each kind of normals (`--normals_from`); "predicted" needs a run with `--predicted_normals`. Errors
are angles in degrees over all pixels that the true surface fills; pixels that a model leaves empty
count as 90 degrees.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from config import positive_int  # noqa: E402
from exporters import video  # noqa: E402
from procedural.tracing import render_normals  # noqa: E402
from rendering import Renderer, surface_normals  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from scripts.bench_outputs import is_demo  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_run_flags,
    environment_line,
    make_parser,
    table_head,
    table_row,
)


def main(argv=None):
    parser = make_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--views", type=positive_int,
                        help="number of test views, evenly spaced (default: all)")
    args = parser.parse_args(argv)
    device = select_device(args)
    print(f"{environment_line()}, {device}\n")
    print(table_head(["run", "model", "preset", "seed", "steps", "views", "normals from",
                      "mean error", "median error"]))
    for folder in args.runs:
        run = load_checkpoint(folder, device)
        if not is_demo(run):
            raise UserError(f"{folder} was trained on {run.config.scene}, whose normals are not "
                            "known; give runs on the demo scene in Blender format.")
        kinds = ["depth", "density"] + ["predicted"] * run.config.predicted_normals
        for kind in kinds:
            angles, count = angular_errors(run, kind, args.views)
            print(table_row([
                folder.name, run.config.model, run.config.preset, run.config.seed, run.step, count,
                kind, f"{angles.mean():.2f}", f"{angles.median():.2f}"]), flush=True)


def angular_errors(run, kind, num_views=None):
    """Angles in degrees between rendered and true normals, and the number of views.

    kind: of normals, as `--normals_from`; num_views: None for all test views.
    """
    cameras = run.scene["test"].cameras
    device = next(run.model.parameters()).device
    on_device = video.VideoCameras(cameras=cameras, lights=run.scene["test"].lights,
                                   scene_scale=1.0).to(device)
    count = min(num_views or len(cameras), len(cameras))
    angles = []
    for index in torch.linspace(0, len(cameras) - 1, count).round().int().tolist():
        width, height = cameras.sizes[index].tolist()
        true, opacity = render_normals(
            cameras.camtoworlds[index], cameras.pixtocams[index], width, height)
        frame = video.render_frame(Renderer(run.model), on_device, index, normals_from=kind)
        normals = frame.normals
        if normals is None:
            normals = surface_normals(frame.distance, frame.viewdirs, frame.acc)
        cosine = (normals.cpu().double() * true).sum(dim=-1)[opacity == 1]
        angles.append(cosine.clamp(-1, 1).acos() * (180 / math.pi))
    return torch.cat(angles), count


if __name__ == "__main__":
    run_script(main)
