"""Times, memory and geometry of videos and meshes: Markdown tables from run folders.

    python scripts/bench_outputs.py log/demo log/blender_lego_mipnerf

Every row is measured in a process of its own. Frames are squares from the first pose of the
spherical path, drawn with distances and normals. Where the run was trained on the demo scene in
Blender format, whose surface is known, it is compared: the mean distance from the mesh to the
surface, and from what of the surface the training views see to the mesh, in grid steps; and the
angle between drawn and true normals on the test views.
"""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from exporters import video  # noqa: E402
from exporters.mesh import extract, find_target  # noqa: E402
from procedural import scene as demo_scene  # noqa: E402
from ray_utils import image_rays  # noqa: E402
from rendering import surface_normals  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from runtime.memory import peak_memory  # noqa: E402
from runtime.provenance import git_commit  # noqa: E402

SURFACE_SAMPLES = 200_000


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--frame_sizes", type=int, nargs="+", default=[100, 200, 400])
    parser.add_argument("--grid_sizes", type=int, nargs="+", default=[64, 128, 256])
    args = parser.parse_args()
    print(f"commit {git_commit()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| run | frame | seconds | peak GB |\n| --- | --- | --- | --- |")
    for run in args.runs:
        for size in args.frame_sizes:
            print(in_own_process(time_frame, run, args.device, size), flush=True)
    print("\n| run | grid | evaluated | of the grid | seconds | peak GB | vertices "
          "| mesh to surface | surface to mesh |\n|" + " --- |" * 9)
    for run in args.runs:
        for size in args.grid_sizes:
            print(in_own_process(time_mesh, run, args.device, size), flush=True)
    for run in args.runs:
        sentence = in_own_process(compare_normals, run, args.device)
        if sentence:
            print(f"\n{sentence}")


def in_own_process(function, *words):
    """What `function` returns, called where no earlier call has left memory behind."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, words)


def time_frame(folder, device, size):
    """The row of one frame of `size` x `size` pixels."""
    run = load_checkpoint(folder, device)
    run.config.frames = 1
    place = next(run.model.parameters()).device
    cameras = video.video_cameras(run, "spherical", size, size).to(place)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        frame = video.render_frame(run.model, cameras, 0)
        for kind in ("rgb", "depth", "normals"):
            video.frame_image(frame, kind, (1.0, 10.0))
        seconds.append(time.perf_counter() - begin)
    memory = peak_memory(place) / 1e9
    return f"| {folder.name} | {size}x{size} | {np.median(seconds):.2f} | {memory:.2f} |"


def time_mesh(folder, device, grid_size):
    """The row of one mesh."""
    run = load_checkpoint(folder, device)
    config = run.config
    config.grid_size, config.chunk = grid_size, None
    place = next(run.model.parameters()).device
    begin = time.perf_counter()
    scene = run.scene["train"].to(place)
    mesh, facts = extract(run.model, scene, config, find_target(run.model, scene, config))
    seconds, memory = time.perf_counter() - begin, peak_memory(place) / 1e9
    there, back = chamfer(mesh, run, facts["step_of_grid"]) if is_known(run) else ("", "")
    return (f"| {folder.name} | {grid_size} | {facts['evaluated']:,} "
            f"| {facts['evaluated_share']:.1%} | {seconds:.1f} | {memory:.2f} "
            f"| {len(mesh.vertices):,} | {there} | {back} |")


def is_known(run):
    """Whether the surface is that of the demo scene, in its own coordinates."""
    return Path(run.config.scene).name == "demo" and run.config.dataset_name == "blender"


def chamfer(mesh, run, step):
    """The two mean distances of mesh and true surface, in grid steps, as text."""
    import trimesh
    from scipy.spatial import cKDTree

    shape = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    on_mesh, _ = trimesh.sample.sample_surface(shape, SURFACE_SAMPLES, seed=0)
    there = demo_scene.distance_to_surface(torch.tensor(np.asarray(on_mesh))).abs().mean()
    seen = []
    cameras = run.scene["train"].cameras
    for index in range(len(cameras)):
        rays = image_rays(cameras, index)[::2, ::2]
        surface = demo_scene.intersect(rays.origins.double(), rays.directions.double())
        seen.append(surface.point[surface.part >= 0])
    back, _ = cKDTree(on_mesh).query(torch.cat(seen).numpy())
    return tuple(f"{float(d) / step:.2f}" for d in (there, back.mean()))


def compare_normals(folder, device):
    """The error of drawn normals on the test views of the demo scene, in words."""
    run = load_checkpoint(folder, device)
    if not is_known(run):
        return None
    scene = run.scene["test"].to(next(run.model.parameters()).device)
    cameras = video.VideoCameras(cameras=scene.cameras, lights=scene.lights, scene_scale=1.0)
    angles = []
    for index in range(len(scene.cameras)):
        frame = video.render_frame(run.model, cameras, index)
        normals = surface_normals(frame.distance, frame.viewdirs, frame.acc).cpu()
        rays = image_rays(run.scene["test"].cameras, index)
        truth = demo_scene.intersect(rays.origins, rays.directions)
        both = (truth.part >= 0) & (frame.acc.cpu() > 0.5)
        cosine = (normals * truth.normal).sum(dim=-1)[both].clamp(-1, 1)
        angles.append(torch.rad2deg(torch.acos(cosine)))
    angles = torch.cat(angles)
    return (f"{folder.name}: normals on {len(scene.cameras)} test views are off by "
            f"{angles.mean():.1f} degrees in the mean, {angles.median():.1f} in the median.")


if __name__ == "__main__":
    run_script(main)
