"""Time, memory and accuracy of videos and meshes: Markdown tables from run folders.

    python scripts/bench_outputs.py log/demo log/blender_lego_mipnerf

Every row is measured in a separate process. A frame is a square image from the first pose of the
spherical path, with depth and normals. For runs on the demo scene in Blender format, whose surface
is known, meshes and normals are compared with it: the mean distance from the mesh to the surface,
and from the part of the surface that the training views see to the mesh, in grid steps; and the
angle between predicted and true normals on the test views.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from exporters import video  # noqa: E402
from exporters.mesh import extract, find_target  # noqa: E402
from procedural.tracing import distance_to_surface, intersect  # noqa: E402
from ray_utils import image_rays  # noqa: E402
from rendering import Renderer, make_renderer, surface_normals  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from runtime.memory import peak_memory  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_run_flags,
    call_in_process,
    environment_line,
    make_parser,
    table_head,
    table_row,
)

# Points sampled on a mesh.
SURFACE_SAMPLES = 200_000

# Repetitions of a frame, of which the median counts.
FRAME_ROUNDS = 3


def main(argv=None):
    parser = make_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--frame_sizes", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--grid_sizes", type=int, nargs="+", default=[64, 128, 256])
    args = parser.parse_args(argv)
    print(f"{environment_line()}\n")
    print(table_head(["run", "frame", "seconds", "peak GB"]))
    for run in args.runs:
        for size in args.frame_sizes:
            print(call_in_process(time_frame, run, args.device, size), flush=True)
    print()
    print(table_head(["run", "grid", "evaluated", "of the grid", "seconds", "peak GB", "vertices",
                      "mesh to surface", "surface to mesh"]))
    for run in args.runs:
        for size in args.grid_sizes:
            print(call_in_process(time_mesh, run, args.device, size), flush=True)
    for run in args.runs:
        sentence = call_in_process(compare_normals, run, args.device)
        if sentence:
            print(f"\n{sentence}")


def time_frame(folder, device, size):
    """Table row: seconds and memory for one frame of `size` x `size` pixels."""
    run = load_checkpoint(folder, device)
    run = run.with_config(run.config.replace(frames=1))
    device = next(run.model.parameters()).device
    cameras = video.video_cameras(run, "spherical", size, size).to(device)
    renderer = make_renderer(run.model, run.scene["train"].to(device))
    seconds = []
    for _ in range(FRAME_ROUNDS):
        begin = time.perf_counter()
        frame = video.render_frame(renderer, cameras, 0)
        for kind in ("rgb", "depth", "normals"):
            video.frame_image(frame, kind, (1.0, 10.0))
        seconds.append(time.perf_counter() - begin)
    return table_row([folder.name, f"{size}x{size}", f"{np.median(seconds):.2f}",
                      f"{peak_memory(device) / 1e9:.2f}"])


def time_mesh(folder, device, grid_size):
    """The table's row of one mesh."""
    run = load_checkpoint(folder, device)
    config = run.config.replace(grid_size=grid_size, chunk=None)
    device = next(run.model.parameters()).device
    begin = time.perf_counter()
    scene = run.scene["train"].to(device)
    mesh, stats = extract(scene, config, find_target(run.model, scene, config))
    seconds, memory = time.perf_counter() - begin, peak_memory(device) / 1e9
    distances = chamfer(mesh, run, stats["step_of_grid"]) if is_demo(run) else ("", "")
    return table_row([folder.name, grid_size, f"{stats['evaluated']:,}",
                      f"{stats['evaluated_share']:.1%}", f"{seconds:.1f}", f"{memory:.2f}",
                      f"{len(mesh.vertices):,}", *distances])


def is_demo(run):
    """Whether the scene is the demo scene in its own coordinates, whose surface is known."""
    return Path(run.config.scene).name == "demo" and run.config.dataset_name == "blender"


def chamfer(mesh, run, step):
    """Mean distances mesh to surface, and visible surface to mesh, in grid steps, as text."""
    import trimesh
    from scipy.spatial import cKDTree

    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    on_mesh, _ = trimesh.sample.sample_surface(shape, SURFACE_SAMPLES, seed=0)
    to_surface = distance_to_surface(torch.tensor(np.asarray(on_mesh))).abs().mean()
    visible = []
    cameras = run.scene["train"].cameras
    for index in range(len(cameras)):
        rays = image_rays(cameras, index)[::2, ::2]
        surface = intersect(rays.origins.double(), rays.directions.double())
        visible.append(surface.point[surface.part >= 0])
    to_mesh, _ = cKDTree(on_mesh).query(torch.cat(visible).numpy())
    return tuple(f"{float(d) / step:.2f}" for d in (to_surface, to_mesh.mean()))


def compare_normals(folder, device):
    """The error of predicted normals on the test views of the demo scene, in a sentence."""
    run = load_checkpoint(folder, device)
    if not is_demo(run):
        return None
    scene = run.scene["test"].to(next(run.model.parameters()).device)
    cameras = video.VideoCameras(cameras=scene.cameras, lights=scene.lights, scene_scale=1.0)
    angles = []
    for index in range(len(scene.cameras)):
        frame = video.render_frame(Renderer(run.model), cameras, index)
        normals = surface_normals(frame.distance, frame.viewdirs, frame.acc).cpu()
        rays = image_rays(run.scene["test"].cameras, index)
        surface = intersect(rays.origins, rays.directions)
        both = (surface.part >= 0) & (frame.acc.cpu() > 0.5)
        cosine = (normals * surface.normal).sum(dim=-1)[both].clamp(-1, 1)
        angles.append(torch.rad2deg(torch.acos(cosine)))
    angles = torch.cat(angles)
    return (f"{folder.name}: the normals on {len(scene.cameras)} test views have a mean error of "
            f"{angles.mean():.1f} and a median error of {angles.median():.1f} degrees.")


if __name__ == "__main__":
    run_script(main)
