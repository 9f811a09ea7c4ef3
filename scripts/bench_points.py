"""Triangulate points from matches: how many, how long it takes, and distances of trained runs.

    python scripts/bench_points.py data/nerf_llff_data/flower data/nerfstudio/fox
    python scripts/bench_points.py --runs log/llff_flower_zipnerf log/flower_without

The first matches the training images of scenes anew, whether or not their points are cached. The
second compares the distances of trained runs with points that the test images show; these are
triangulated from all images, and each is seen by at least four of them.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

import coord  # noqa: E402
from capture.report import scene_config  # noqa: E402
from checkpoint import load_checkpoint  # noqa: E402
from datasets import load_dataset  # noqa: E402
from loaders.points import grey_image  # noqa: E402
from ray_utils import pixels_to_rays  # noqa: E402
from rendering import render_image  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from scripts.benchmark import make_parser  # noqa: E402
from sparse.supervision import point_rays  # noqa: E402
from sparse.triangulation import triangulate  # noqa: E402
from structures import concatenate  # noqa: E402

# Fewest images and greatest mean error of the points that runs are compared with.
MIN_VIEWS, MAX_ERROR = 4, 1.0

# A distance that is wrong by more than this fraction counts as wrong.
WRONG = 0.1


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("scenes", nargs="*", type=Path, help="folders of scenes")
    parser.add_argument("--runs", nargs="+", type=Path, default=[], help="folders of trained runs")
    args = parser.parse_args(argv)
    if args.scenes:
        print("| scene | images | size | points | images of each | error px | seconds |\n"
              "| --- | --- | --- | --- | --- | --- | --- |")
    for folder in args.scenes:
        print(row_of_scene(folder), flush=True)
    if args.runs:
        print("| run | places | median error | mean error | wrong by over 10 % |\n"
              "| --- | --- | --- | --- | --- |")
    for folder in args.runs:
        print(row_of_run(folder), flush=True)
    return 0


def row_of_scene(folder):
    """The points of a scene's training images, as a row of a table."""
    dataset = load_dataset(scene_config(folder), "train")
    begin = time.perf_counter()
    points = triangulate(dataset.scene.cameras, images_of(dataset), torch.get_num_threads())
    seconds = time.perf_counter() - begin
    size = "×".join(map(str, dataset.scene.cameras.sizes[0].tolist()))
    views = len(points.point_idx) / max(1, len(points))
    error = float(points.errors.mean()) if len(points) else 0.0
    return (f"| {folder.name} | {len(dataset)} | {size} | {len(points):,} | {views:.1f} | "
            f"{error:.2f} | {seconds:.0f} |")


def images_of(dataset):
    """A function from an index to a dataset's grey image and its mask."""
    return lambda index: grey_image(dataset.loader, dataset.scene, index)


def row_of_run(folder):
    """The errors of a run's median distances, relative to the true ones, as a row of a table."""
    run = load_checkpoint(folder)
    scene = replace(run.scene["test"], points=points_of_test_images(run.config))
    known = point_rays(scene)
    if known is None:
        return f"| {folder.name} | 0 | | | |"
    cam_idx = torch.searchsorted(scene.offsets, known.index, right=True) - 1
    within, width = known.index - scene.offsets[cam_idx], scene.cameras.sizes[cam_idx, 0]
    rays = pixels_to_rays(scene.cameras, cam_idx, within % width, within // width)
    rendered = render_image(run.model, rays, run.config.chunk).distance_median
    found, true = (depths(rays, t, scene.cameras.ndc) for t in (rendered, known.t))
    error = ((found - true).abs() / true).clamp(max=1)
    return (f"| {folder.name} | {len(known):,} | {error.median():.2%} | {error.mean():.2%} | "
            f"{(error > WRONG).float().mean():.1%} |")


def points_of_test_images(config):
    """The points that test images show, triangulated from all images."""
    test, train = (load_dataset(config.replace(depth_points=0.0), split)
                   for split in ("test", "train"))
    count = len(test)
    readers = images_of(test), images_of(train)
    points = triangulate(
        concatenate([test.scene.cameras, train.scene.cameras]),
        lambda i: readers[0](i) if i < count else readers[1](i - count), torch.get_num_threads())
    views = points.point_idx.bincount(minlength=len(points))[points.point_idx]
    used = (points.image_idx < count) & (views >= MIN_VIEWS) & (
        points.errors[points.point_idx] <= MAX_ERROR)
    return replace(points, image_idx=points.image_idx[used], pixels=points.pixels[used],
                   point_idx=points.point_idx[used])


def depths(rays, t, ndc):
    """Distances `[K]` at t along rays: from NDC's plane of the cameras, else along the ray."""
    if ndc is None:
        return t
    places = rays.origins + t[:, None] * rays.directions
    return -coord.from_ndc(places, *ndc)[:, 2]


if __name__ == "__main__":
    run_script(main)
