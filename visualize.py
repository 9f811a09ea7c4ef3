"""Render a video of a trained scene: colours, distances, normals.

    python visualize.py --run log/blender_lego_mipnerf                      a circle about the scene
    python visualize.py --scene lego --visualize_depth --visualize_normals  all three, side by side
    python visualize.py --dataset_name colmap --scene garden                an ellipse or an arc
    python visualize.py --dataset_name llff --scene trex --path spiral      LLFF's spiral
    python visualize.py --dataset_name multicam --scene lego --path zoom    to twice and back
    python visualize.py --run log/lego --path path.json                     key frames of view.py
    python visualize.py --run log/lego --transparent --save_depth           files for other programs
    python visualize.py --run log/nerv_demo_nerv --relight light --path still  moving light

Needs only the run folder, not the dataset. Rendering is resumable: run the same command again.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from config import early_config, get_config
from runtime.errors import UserError, run_script

if __name__ == "__main__":
    early_config("visualize")

import torch
from tqdm import tqdm

from cameras.keyframes import names_key_frames
from cameras.paths import choose_path
from checkpoint import Checkpoint, open_run
from exporters.encoder import find_encoder
from exporters.video import (
    Scale,
    VideoCameras,
    check_same_frames,
    distance_scale,
    file_kinds,
    folder_name,
    image_kinds,
    joined_width,
    missing_images,
    render_frames,
    shown_normals,
    thumbnail_size,
    video_cameras,
    write_videos,
)
from rendering import Renderer, make_renderer
from runtime import distributed
from runtime.devices import select_device
from runtime.files import sole_writer


def main(argv: Sequence[str] | None = None) -> int:
    run = open_run(get_config(argv, "visualize"))
    device = select_device(run.config)
    with distributed.joined_ranks(device):
        make_video(run, device)
    return 0


def make_video(run: Checkpoint, device: torch.device) -> None:
    """Render the frames that a run's flags request and write their videos; prints the progress.

    Ranks divide the frames; rank 0 writes the videos.
    """
    config = run.config
    if config.visualize_components and not run.model.is_shading():
        raise UserError(f"--visualize_components was given, but {run.path} was saved before "
                        "surfaces are shaded; train further, or leave the flag out.")
    path = select_path(run)
    video = video_cameras(run, path, config.width, config.height).to(device)
    width, height = video.cameras.sizes[0].tolist()
    kinds = image_kinds(config)
    encoder = find_encoder(joined_width(kinds, width, height), height, config.fps)
    if encoder.note:
        print(encoder.note)
    folder = run.path.parent / folder_name(run, path, width, height)
    with distributed.on_main(lambda: sole_writer(folder, "rendering a video")):
        with distributed.main_first():
            check_same_frames(folder, run)
        route = f"through {path}" if names_key_frames(path) else f"on the {path} path"
        print(f"{config.frames} frames of {width}x{height} {route}, into {folder}",
              flush=True)
        render_options = {"chunk": config.chunk, "shading": run.shading,
                          "normals_from": shown_normals(config)}
        renderer = make_renderer(run.model, run.scene["train"].to(device), config.exact,
                                 config.frames * width * height, config.skip_empty)
        scale = None
        if config.visualize_depth:
            thumbnails = video_cameras(run, path, *thumbnail_size(width, height)).to(device)
            with distributed.main_first():
                scale = distance_scale(folder, renderer, thumbnails, **render_options)
        render_missing(folder, renderer, video, file_kinds(config), scale, render_options)
        distributed.wait_for_all()
        if distributed.is_main():
            for file in write_videos(folder, kinds, scale, config, encoder):
                print(file)


def select_path(run: Checkpoint) -> str:
    """`--path`, or for "auto" the path that suits the training cameras."""
    if run.config.path != "auto":
        return run.config.path
    path, reason = choose_path(run.scene["train"].cameras)
    print(f"--path {path}: {reason}.")
    return path


def render_missing(folder: Path, renderer: Renderer, video: VideoCameras,
                   kinds: Sequence[str], scale: Scale | None,
                   render_options: Mapping[str, Any]) -> None:
    """Render the missing frames; prints how many exist, and the estimated time."""
    missing = missing_images(folder, kinds, video.cameras)
    num_complete = len(video.cameras) - len(missing)
    if num_complete:
        print(f"{num_complete} frames exist already.")
    begin, count = time.perf_counter(), len(distributed.rank_items(list(missing)))
    frames = render_frames(folder, renderer, video, missing, scale, **render_options)
    bar = tqdm(frames, total=count, desc="rendering", unit="frame", disable=distributed.hide_bar())
    for done, _ in enumerate(bar):
        if done == 0:
            seconds = time.perf_counter() - begin
            print(f"{seconds:.1f} s for the first frame: about {seconds * count / 60:.1f} minutes "
                  "for all. Complete frames are kept if this is interrupted.", flush=True)


if __name__ == "__main__":
    run_script(main)
