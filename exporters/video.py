"""Videos of a trained scene: frames, colour scales, files."""

import json
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import image_utils
from cameras.paths import choose_path, path_cameras
from config import shading_name
from exporters.encoder import find_encoder, write_preview, write_video
from ray_utils import image_rays, reached_box
from relighting.components import component_images
from relighting.light_paths import frame_lights
from rendering import build_occupancy, render_image, surface_normals, world_distance
from runtime import distributed
from runtime.devices import select_device
from runtime.errors import UserError
from runtime.files import sole_writer, write_atomically
from runtime.run_folder import as_name
from structures import Cameras, TensorRecord

# The colour scale of distances is fixed from this many small frames before the first is drawn.
SCALE_FRAMES = 8

SCALE_SIDE = 48

# The kinds of --visualize_components.
COMPONENTS = ["albedo", "roughness", "shading_normals", "visibility", "direct", "indirect"]


def make_video(run, device):
    """Render the frames and write the videos that a run's flags ask for; the exit status."""
    config, scene = run.config, run.scene["train"]
    if config.visualize_components and not run.model.is_shading():
        raise UserError(f"--visualize_components was given, but {run.path} was saved before "
                        "surfaces are shaded; train on, or leave the flag out.")
    if config.path == "auto":
        config.path, why = choose_path(scene.cameras)
        print(f"--path {config.path}: {why}.")
    shooting = video_cameras(run, config.width, config.height).to(device)
    width, height = shooting.cameras.sizes[0].tolist()
    kinds = ["rgb"] + ["depth"] * config.visualize_depth + ["normals"] * config.visualize_normals
    kinds += COMPONENTS * config.visualize_components

    encoder = find_encoder(width_of_row(kinds, width, height), height, config.fps)
    if encoder.note:
        print(encoder.note)
    folder = run.path.parent / folder_name(run, width, height)
    with distributed.on_main(lambda: sole_writer(folder, "rendering a video")):
        with distributed.main_first():
            check_same_frames(folder, run)
        print(f"{config.frames} frames of {width}x{height} on the {config.path} path, into "
              f"{folder}", flush=True)
        occupancy = None
        if config.skip_empty:
            occupancy = build_occupancy(
                run.model, reached_box(scene).to(device), config.frames * width * height)
        scale = None
        if config.visualize_depth:
            with distributed.main_first():
                scale = distance_scale(folder, run, width, height, occupancy)
        render_frames(folder, run.model, shooting, kinds, scale, config.chunk, occupancy)
        distributed.wait_for_all()
        if distributed.is_main():
            for path in write_videos(folder, kinds, scale, config, encoder):
                print(path)
    return 0


@dataclass(frozen=True, kw_only=True)
class VideoCameras(TensorRecord):
    """What is filmed how: the `cameras` of the frames, their `lights [F, K]` (None where light is
    no matter), and how many `units` of the scene are one of its files."""

    cameras: Cameras
    lights: TensorRecord | None
    units: float


def video_cameras(run, width, height):
    """The `VideoCameras` that the flags ask for, with frames of some size."""
    config, scene = run.config, run.scene["train"]
    cameras = path_cameras(scene.cameras, config.path, config.frames, width=width, height=height,
                           zoom=config.zoom, dolly=config.dolly)
    lights = None
    if scene.lights is not None:
        lights = frame_lights(scene.lights, config.relight, config.frames, config.environment)
    return VideoCameras(cameras=cameras, lights=lights, units=scene.scale)


def folder_name(run, width, height):
    """The name of a video's folder, which tells all on which its frames depend."""
    config = run.config
    kind = config.path
    if kind == "zoom":
        kind = ("dolly" if config.dolly else "zoom") + as_name(config.zoom)
    if config.relight != "none":
        kind += f"_{config.relight}"
    if config.environment:
        kind += f"_{Path(config.environment).stem}"
    kind += shading_name(config, run.saved_config)
    whole = "" if config.skip_empty else "_whole"
    return f"video_{kind}_{run.step:08d}_{config.frames}x{width}x{height}{whole}"


def check_same_frames(folder, run):
    """Note in the folder which weights its frames show; the main rank does.

    Raises UserError where it holds frames of others.
    """
    weights = [p.detach().float().cpu().numpy().tobytes() for p in run.model.parameters()]
    made_of = {"step": run.step, "weights": zlib.crc32(b"".join(weights))}
    if shading_name(run.config, run.saved_config):
        made_of["shading"] = shading_name(run.config, run.saved_config)
    if run.config.environment:
        made_of["environment"] = zlib.crc32(Path(run.config.environment).read_bytes())
    note = folder / "video.json"
    if distributed.is_main():
        (folder / "frames").mkdir(exist_ok=True)
    if any((folder / "frames").iterdir()) and read_note(note) != made_of:
        raise UserError(f"{folder} holds frames of another model or light, as far as its "
                        "video.json tells; remove or rename it, and they are rendered again.")
    if distributed.is_main():
        write_note(note, made_of)


def write_note(path, values):
    """A `dict` as a JSON file."""
    write_atomically(path, lambda file: file.write(json.dumps(values).encode()))


def read_note(path):
    """What `write_note` wrote, or None where it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def distance_scale(folder, run, width, height, occupancy=None):
    """The ends (near, far) of the whole video's colour scale, in the units of the scene's files.

    Taken from a few small frames along the path, and kept for when the video is gone on with.
    """
    path = folder / "depth_scale.json"
    kept = read_note(path)
    try:
        if 0 < kept["near"] < kept["far"] < float("inf"):
            return kept["near"], kept["far"]
    except (TypeError, KeyError):
        pass
    for frame in (folder / "frames").glob("depth_*.png"):  # Of a scale that was lost.
        frame.unlink()
    shrink = SCALE_SIDE / max(width, height, SCALE_SIDE)
    small = [max(1, round(shrink * side)) for side in (width, height)]
    shooting = video_cameras(run, *small).to(select_device(run.config))
    count = len(shooting.cameras)
    chosen = np.linspace(0, count - 1, min(SCALE_FRAMES, count)).round().astype(int)
    seen = [look(run.model, shooting, int(i), run.config.chunk, occupancy) for i in chosen]
    near, far = image_utils.distance_range(
        torch.stack([view.distance for view in seen]), torch.stack([view.acc for view in seen])
    )
    write_note(path, {"near": near, "far": far, "unit": "as in the scene's files"})
    return near, far


class View(NamedTuple):
    """What a camera sees: rgb, viewdirs `[h, w, 3]`; acc, distance `[h, w]` in the files' units;
    and the pictures of its components, by name."""

    rgb: torch.Tensor
    viewdirs: torch.Tensor
    acc: torch.Tensor
    distance: torch.Tensor
    components: dict


def look(model, shooting, index, chunk=None, occupancy=None):
    """The `View` of one frame."""
    cameras = shooting.cameras
    rays = image_rays(cameras, index)
    if shooting.lights is not None:
        rays = rays.with_lights(shooting.lights[index])
    output = render_image(model, rays, chunk, occupancy)
    distance = world_distance(cameras, rays, output.distance_median) / shooting.units
    return View(output.rgb, rays.viewdirs, output.acc, distance, component_images(output))


def draw(view, kind, scale):
    """A picture `[h, w, 3]` of one kind: rgb, depth, normals or a component."""
    if kind == "rgb":
        return view.rgb
    if kind in COMPONENTS:
        return view.components[kind]
    if kind == "depth":
        return image_utils.visualize_distance(view.distance, view.acc, *scale)
    normals = surface_normals(view.distance, view.viewdirs, view.acc)
    return image_utils.visualize_normals(normals, view.acc)


def render_frames(folder, model, shooting, kinds, scale, chunk=None, occupancy=None):
    """Write the frames that are not there yet, each as soon as it is rendered; ranks share them."""
    cameras = shooting.cameras
    size = cameras.sizes[0].tolist()
    missing = {i: [kind for kind in kinds if not is_whole(frame_file(folder, kind, i), size)]
               for i in range(len(cameras))}
    distributed.wait_for_all()  # All have looked before the first one writes.
    todo = [i for i in missing if missing[i]]
    if len(todo) < len(cameras):
        print(f"{len(cameras) - len(todo)} frames are there already.")
    begin, mine = time.perf_counter(), distributed.rank_items(todo)
    bar = tqdm(mine, desc="rendering", unit="frame", disable=distributed.hide_bar())
    for done, i in enumerate(bar):
        view = look(model, shooting, i, chunk, occupancy)
        for kind in missing[i]:
            image_utils.write_image(frame_file(folder, kind, i), draw(view, kind, scale))
        if done == 0:
            seconds = time.perf_counter() - begin
            print(f"{seconds:.1f} s for the first frame: about {seconds * len(mine) / 60:.1f} "
                  "minutes for all. What is done is kept if this is interrupted.", flush=True)


def frame_file(folder, kind, index):
    """Where a frame lies."""
    return folder / "frames" / f"{kind}_{index:05d}.png"


def is_whole(path, size):
    """Whether a frame of this size (width, height) is there and can be read."""
    try:
        return path.exists() and image_utils.read_image(path, 3).shape[1::-1] == tuple(size)
    except UserError:
        return False


def write_videos(folder, kinds, scale, config, encoder):
    """A video of each kind, one with all side by side, and its small GIF; returns their files."""
    rows = [[kind] for kind in kinds] + [kinds] * (len(kinds) > 1)
    files = []
    for row in rows:
        name = f"{'_'.join(row)}_{config.fps}fps"
        files.append(folder / f"{name}{encoder.suffix}")
        write_video(files[-1], frames_of(folder, row, scale, config.frames), config.fps, encoder)
    files.append(folder / f"{name}.gif")
    write_preview(files[-1], frames_of(folder, kinds, scale, config.frames), config.frames,
                  config.fps)
    return files


def frames_of(folder, kinds, scale, count):
    """Frame after frame of a video, uint8, its kinds side by side, depth with a legend."""
    for i in range(count):
        row = []
        for kind in kinds:
            row.append(image_utils.read_image(frame_file(folder, kind, i), 3))
            if kind == "depth":
                row.append(image_utils.distance_legend(row[-1].shape[0], *scale))
        yield np.concatenate(row, axis=1)


def width_of_row(kinds, width, height):
    """How wide frames of these kinds are side by side."""
    legend = image_utils.distance_legend(height, 1.0, 2.0).shape[1]
    return len(kinds) * width + legend * ("depth" in kinds)
