"""Frames of a video of a trained scene: rendering, colour scale, and the video files.

Frames are PNG files in the folder of their video and are kept, so an interrupted video continues
with the missing ones.
"""

import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import image_utils
from cameras.keyframes import film_cameras, find_key_frames, names_key_frames
from cameras.paths import path_cameras
from config import shading_name
from exporters.encoder import TRANSPARENT, Encoder, write_preview, write_video
from exporters.frame_files import (
    DISTANCES,
    RGBA,
    frame_file,
    is_complete,
    straight_rgba,
    write_distances,
)
from ray_utils import image_rays
from relighting.components import COMPONENTS
from relighting.light_paths import frame_lights
from rendering import Renderer, surface_normals, world_distance, world_normals
from runtime import distributed, reading
from runtime.errors import UserError, first_line
from runtime.files import write_atomically
from runtime.run_folder import as_name
from structures import Cameras, Rays, TensorRecord

logger = logging.getLogger(__name__)

# The colour scale of distances comes from this number of frames, with at most this many pixels on
# their longer side.
SCALE_FRAMES = 8
SCALE_SIDE = 48

# Ends (near, far) of the colour scale of distances.
Scale = tuple[float, float]


# Rendering.


@dataclass(frozen=True, kw_only=True)
class VideoCameras(TensorRecord):
    """The F `cameras` of a video's frames, and the lights of each frame.

    lights: `[F, K]`, None if the scene's lights are not known; scene_scale: units of the cameras'
    world per unit of the scene's files (`Scene.scale`).
    """

    cameras: Cameras
    lights: TensorRecord | None
    scene_scale: float


def video_cameras(run: Any, path: str, width: int | None, height: int | None) -> VideoCameras:
    """The `VideoCameras` of a run (a `Checkpoint`) on a camera path, for frames of the given size.

    Raises UserError for a path that NDC cannot express, and for unusable key frames.
    """
    config, scene = run.config, run.scene["train"]
    if names_key_frames(path):
        cameras = film_cameras(scene.cameras, find_key_frames(path, scene), config.frames, width,
                               height)
    else:
        cameras = path_cameras(scene.cameras, path, config.frames, width=width, height=height,
                               zoom=config.zoom, dolly=config.dolly)
    lights = None
    if scene.lights is not None:
        lights = frame_lights(scene.lights, config.relight, config.frames, config.environment)
    return VideoCameras(cameras=cameras, lights=lights, scene_scale=scene.scale)


def thumbnail_size(width: int, height: int) -> tuple[int, int]:
    """The size of the frames for the colour scale, at most `SCALE_SIDE` pixels."""
    shrink = SCALE_SIDE / max(width, height, SCALE_SIDE)
    return max(1, round(shrink * width)), max(1, round(shrink * height))


def image_kinds(config: Any) -> list[str]:
    """The kinds of images that each frame consists of, as the flags request."""
    return (["rgb"] + ["depth"] * config.visualize_depth + ["normals"] * config.visualize_normals
            + [*COMPONENTS] * config.visualize_components)


def file_kinds(config: Any) -> list[str]:
    """The kinds of images that are written for each frame, shown in videos or not."""
    return image_kinds(config) + [RGBA] * config.transparent + [DISTANCES] * config.save_depth


def shown_normals(config: Any) -> str:
    """The kind of normals that frames show; "depth", which costs nothing, if they show none."""
    return config.normals_from if config.visualize_normals else "depth"


# The folder of a video.


def folder_name(run: Any, path: str, width: int, height: int) -> str:
    """The name of a video's folder, which contains every flag that changes its frames."""
    config = run.config
    kind = path
    if kind == "zoom":
        kind = ("dolly" if config.dolly else "zoom") + as_name(config.zoom)
    elif names_key_frames(path):
        kind = f"keyframes_{find_key_frames(path, run.scene['train']).checksum()}"
    if config.relight != "none":
        kind += f"_{config.relight}"
    if config.environment:
        kind += f"_{Path(config.environment).stem}"
    kind += shading_name(config, run.saved_config)
    if shown_normals(config) != "depth":
        kind += f"_{shown_normals(config)}_normals"
    path_name = "_exact" * config.exact + "_whole" * (not config.skip_empty)
    return f"video_{kind}_{run.step:08d}_{config.frames}x{width}x{height}{path_name}"


def check_same_frames(folder: Path, run: Any) -> None:
    """Check that the frames in a folder come from this model and light.

    Rank 0 creates the folder of the frames and records their source in `video.json`. Raises
    UserError if there are frames from another source.
    """
    frames, record = folder / "frames", folder / "video.json"
    if distributed.is_main():
        frames.mkdir(exist_ok=True)
    source = frame_source(run)
    if any(frames.iterdir()) and read_json(record) != source:
        raise UserError(f"{folder} holds frames of another model or light, according to its "
                        "video.json; remove or rename the folder to render them again.")
    if distributed.is_main():
        write_json(record, source)


def frame_source(run: Any) -> dict:
    """Checksums of weights and lights, which the folder's name does not identify."""
    weights = [p.detach().float().cpu().numpy().tobytes() for p in run.model.parameters()]
    source = {"step": run.step, "weights": zlib.crc32(b"".join(weights))}
    if shading_name(run.config, run.saved_config):
        source["shading"] = shading_name(run.config, run.saved_config)
    if run.config.environment:
        source["environment"] = zlib.crc32(Path(run.config.environment).read_bytes())
    return source


def write_json(path: Path, values: dict) -> None:
    """Atomically write a `dict` as a JSON file."""
    write_atomically(path, lambda file: file.write(json.dumps(values).encode()))


def read_json(path: Path) -> Any:
    """The content of a JSON file, or None if it is missing or damaged."""
    try:
        return reading.read_json(path)
    except UserError:
        return None


# One frame.


class Frame(NamedTuple):
    """A rendered frame.

    rgb, viewdirs: `[h, w, 3]`; acc: `[h, w]`; distance, depth: `[h, w]` from the camera and along
    its axis, in units of the scene's files; components: NeRV's images `[h, w, 3]` by name; normals:
    `[h, w, 3]` in the world, or None for those of the distances.
    """

    rgb: Tensor
    viewdirs: Tensor
    acc: Tensor
    distance: Tensor
    depth: Tensor
    components: Mapping[str, np.ndarray]
    normals: Tensor | None = None


def render_frame(renderer: Renderer, video: VideoCameras, index: int,
                 **render_options: Any) -> Frame:
    """Render the frame at `index`. render_options: of `Renderer.render`."""
    rays = image_rays(video.cameras, index)
    if video.lights is not None:
        rays = rays.with_lights(video.lights[index])
    return render_rays(renderer, video, rays, **render_options)


def render_rays(renderer: Renderer, video: VideoCameras, rays: Rays,
                **render_options: Any) -> Frame:
    """Render rays `[h, w]` of a frame, all or a part of it. render_options: of `Renderer.render`.
    """
    output = renderer.render(rays, **render_options)
    distance = world_distance(video.cameras, rays, output.distance_median) / video.scene_scale
    forward = -video.cameras.camtoworlds[rays.cam_idx[..., 0], :, 2]
    depth = distance * (rays.viewdirs * forward).sum(dim=-1)
    return Frame(output.rgb, rays.viewdirs, output.acc, distance, depth,
                 renderer.model.extra_images(output),
                 world_normals(video.cameras, rays, output))


def frame_image(frame: Frame, kind: str, scale: Scale | None) -> Tensor | np.ndarray:
    """An image `[h, w, 3]` of a frame.

    kind: rgb, depth, normals or a component; scale: of `distance_scale`, for depth.
    """
    if kind == "rgb":
        return frame.rgb
    if kind in COMPONENTS:
        return frame.components[kind]
    if kind == "depth":
        return image_utils.visualize_distance(frame.distance, frame.acc, *scale)
    normals = frame.normals
    if normals is None:
        normals = surface_normals(frame.distance, frame.viewdirs, frame.acc)
    return image_utils.visualize_normals(normals, frame.acc)


# The colour scale of distances.


def distance_scale(folder: Path, renderer: Renderer, thumbnails: VideoCameras,
                   **render_options: Any) -> Scale:
    """Ends of the colour scale of a whole video, in units of the scene's files.

    Estimated from some of the `thumbnails` (small frames along the path) and kept in
    `depth_scale.json`, so that a continued video has the same scale.
    """
    path = folder / "depth_scale.json"
    scale = read_scale(path)
    if scale is None:
        for frame in (folder / "frames").glob("depth_*.png"):  # Their scale is unknown.
            frame.unlink()
        scale = estimate_scale(renderer, thumbnails, **render_options)
        near, far = scale
        write_json(path, {"near": near, "far": far, "unit": "as in the scene's files"})
    return scale


def read_scale(path: Path) -> Scale | None:
    """The scale in a file, or None if it is missing or damaged."""
    values = read_json(path)
    try:
        if 0 < values["near"] < values["far"] < float("inf"):
            return values["near"], values["far"]
    except (TypeError, KeyError):
        pass
    return None


def estimate_scale(renderer: Renderer, thumbnails: VideoCameras,
                   **render_options: Any) -> Scale:
    """The range of distances in `SCALE_FRAMES` evenly spaced thumbnails."""
    count = len(thumbnails.cameras)
    indices = np.linspace(0, count - 1, min(SCALE_FRAMES, count)).round().astype(int)
    frames = [render_frame(renderer, thumbnails, int(i), **render_options) for i in indices]
    return image_utils.distance_range(torch.stack([frame.distance for frame in frames]),
                                      torch.stack([frame.acc for frame in frames]))


# All frames.


def missing_images(folder: Path, kinds: Sequence[str], cameras: Cameras) -> dict[int, list[str]]:
    """The kinds of images that are not yet in the folder, by frame; complete frames are left out.

    Waits until all ranks have checked, so that none of them sees new frames of another rank.
    """
    size = tuple(cameras.sizes[0].tolist())
    missing = {i: [kind for kind in kinds if not is_complete(frame_file(folder, kind, i), size)]
               for i in range(len(cameras))}
    distributed.wait_for_all()
    return {i: kinds_missing for i, kinds_missing in missing.items() if kinds_missing}


def render_frames(folder: Path, renderer: Renderer, video: VideoCameras,
                  missing: Mapping[int, Sequence[str]], scale: Scale | None,
                  **render_options: Any) -> Iterator[int]:
    """Render this rank's part of the missing images; yields each frame's index once it is written.
    """
    for index in distributed.rank_items(list(missing)):
        frame = render_frame(renderer, video, index, **render_options)
        for kind in missing[index]:
            write_frame(frame_file(folder, kind, index), frame, kind, scale, renderer.model.bg_rgb)
        yield index


def write_frame(path: Path, frame: Frame, kind: str, scale: Scale | None,
                background: float) -> None:
    """Write one of a frame's `file_kinds`. background: the colour behind the scene."""
    if kind == DISTANCES:
        write_distances(path, frame.distance, frame.depth, frame.acc)
    elif kind == RGBA:
        image_utils.write_image(path, straight_rgba(frame.rgb, frame.acc, background))
    else:
        image_utils.write_image(path, frame_image(frame, kind, scale))


# Video files.


def write_videos(folder: Path, kinds: Sequence[str], scale: Scale | None, config: Any,
                 encoder: Encoder) -> list[Path]:
    """Write a video of each kind, one with all kinds side by side, and a GIF preview of that one.

    Returns their paths. Raises UserError if one cannot be written.
    """
    rows = [[kind] for kind in kinds] + [list(kinds)] * (len(kinds) > 1)
    files = []
    for row in rows:
        name = f"{'_'.join(row)}_{config.fps}fps"
        files.append(folder / f"{name}{encoder.suffix}")
        frames = joined_frames(folder, row, scale, config.frames)
        write_video(files[-1], frames, config.fps, encoder)
    if config.transparent:
        files += write_transparent(folder, config)
    files.append(folder / f"{name}.gif")
    frames = joined_frames(folder, kinds, scale, config.frames)
    write_preview(files[-1], frames, config.frames, config.fps)
    return files


def write_transparent(folder: Path, config: Any) -> list[Path]:
    """Write a video with alpha; returns its path, or none if no encoder works."""
    path = folder / f"{RGBA}_{config.fps}fps.webm"
    frames = (image_utils.read_image(frame_file(folder, RGBA, i), 4) for i in range(config.frames))
    try:
        write_video(path, frames, config.fps, TRANSPARENT)
    except OSError as error:
        logger.info(f"No video with alpha: {first_line(error)}. The frames are {RGBA}_*.png.")
        return []
    return [path]


def joined_frames(folder: Path, kinds: Sequence[str], scale: Scale | None,
                  count: int) -> Iterator[np.ndarray]:
    """Frames, uint8 `[h, w, 3]`, with their kinds side by side and a legend beside depth."""
    for i in range(count):
        row = []
        for kind in kinds:
            row.append(image_utils.read_image(frame_file(folder, kind, i), 3))
            if kind == "depth":
                row.append(image_utils.distance_legend(row[-1].shape[0], *scale))
        yield np.concatenate(row, axis=1)


def joined_width(kinds: Sequence[str], width: int, height: int) -> int:
    """Width in pixels of `joined_frames`."""
    legend = image_utils.distance_legend(height, 1.0, 2.0).shape[1]
    return len(kinds) * width + legend * ("depth" in kinds)
