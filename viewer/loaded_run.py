"""A run that is ready to render: what the pictures of a viewer come from."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cameras.keyframes import pinhole_cameras, vertical_fovs
from checkpoint import Checkpoint, open_run
from config import Config
from exporters.video import (
    Frame,
    Scale,
    VideoCameras,
    estimate_scale,
    render_rays,
    thumbnail_size,
)
from ray_utils import pixels_to_rays
from relighting.light_paths import typical_light
from rendering import Renderer, make_renderer
from runtime.devices import select_device
from structures import Rays, Scene

# Rays that do not go towards -z by at least this have no NDC, and show the background.
MIN_NDC_SLOPE = 0.02


class Tile(NamedTuple):
    """A rectangle of an image in pixels; right and bottom are the first beyond it."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Shot:
    """A picture to render.

    pose: the 12 numbers of a `camtoworld [3, 4]`; fov: vertical angle of view in radians; kind:
    "rgb", "depth", "normals", "opacity", "empty" or one of NeRV's components; appearance: index of
    the photograph whose exposure it has, or None; light: position of the only light (NeRV), or None
    for those of the first photograph.
    """

    pose: tuple[float, ...]
    fov: float
    width: int
    height: int
    kind: str = "rgb"
    appearance: int | None = None
    light: tuple[float, float, float] | None = None

    @property
    def camtoworld(self) -> np.ndarray:
        """The pose `[3, 4]`."""
        return np.array(self.pose).reshape(3, 4)

    def at_size(self, width: int, height: int) -> "Shot":
        """The same picture in another size."""
        return replace(self, width=width, height=height)


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A run, the scene of its training views on the model's device, and its `Renderer`."""

    run: Checkpoint
    scene: Scene
    renderer: Renderer
    appearances: dict[int, Renderer] = field(default_factory=dict)

    @cached_property
    def scale(self) -> Scale:
        """Ends of the colour scale of distances, in units of the scene's files."""
        cameras = self.scene.cameras
        size = thumbnail_size(*cameras.sizes[0].tolist())
        small = pinhole_cameras(cameras, cameras.camtoworlds.double().cpu().numpy(),
                                vertical_fovs(cameras), *size)
        video = VideoCameras(cameras=small, lights=self.scene.lights,
                             scene_scale=self.scene.scale)
        return estimate_scale(self.renderer, video.to(self.device), **self.options("depth"))

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self.scene.box.device

    def options(self, kind: str) -> dict[str, Any]:
        """Arguments of `Renderer.render` for a kind of image."""
        config = self.run.config
        return {"chunk": config.chunk, "shading": self.run.shading,
                "normals_from": config.normals_from if kind == "normals" else "depth"}

    def with_appearance(self, appearance: int) -> Renderer:
        """The renderer with the exposure of a photograph; the latest one is kept."""
        if appearance not in self.appearances:
            self.appearances.clear()
            self.appearances[appearance] = self.renderer.with_appearance(appearance)
        return self.appearances[appearance]

    def video(self, shot: Shot) -> VideoCameras:
        """The camera and the light of a shot."""
        cameras = pinhole_cameras(self.scene.cameras, shot.camtoworld[None], np.array([shot.fov]),
                                  shot.width, shot.height)
        depth = -float(shot.camtoworld[2, 3])
        if cameras.ndc is not None and depth > 1:  # In front of the near plane.
            cameras = replace(cameras, near=1 - 1 / depth)
        lights = self.scene.lights
        if lights is not None:
            lights = lights[:1]
        if lights is not None and shot.light is not None:
            light = typical_light(self.scene.lights)
            place = torch.tensor(shot.light).to(light.places)
            lights = replace(light, places=place[None], distant=torch.zeros_like(light.distant))
            lights = lights.map(lambda x: x[None])
        return VideoCameras(cameras=cameras, lights=lights,
                            scene_scale=self.scene.scale).to(self.device)

    def render(self, shot: Shot, video: VideoCameras, tile: Tile) -> Frame:
        """The `Frame` of a tile of a shot, whose camera is `video(shot)`."""
        rays, valid = rays_of_tile(video, tile)
        renderer = self.renderer
        if shot.appearance is not None:
            index = torch.full_like(rays.cam_idx, shot.appearance)
            rays, renderer = replace(rays, image_idx=index), self.with_appearance(shot.appearance)
        frame = render_rays(renderer, video, rays, **self.options(shot.kind))
        if valid is None:
            return frame
        return frame._replace(rgb=frame.rgb.where(valid[..., None], self.run.model.bg_rgb),
                              acc=frame.acc.where(valid, 0.0))


def load_run(command_line: Config) -> LoadedRun:
    """The newest checkpoint of a command line's run. Raises UserError if there is none."""
    run = open_run(command_line)
    scene = run.scene["train"].to(select_device(run.config))
    renderer = make_renderer(run.model, scene, run.config.exact, None, run.config.skip_empty)
    return LoadedRun(run, scene, renderer)


def rays_of_tile(video: VideoCameras, tile: Tile) -> tuple[Rays, Tensor | None]:
    """The `Rays [h, w]` of a tile, and bool `[h, w]` which NDC can represent; None if all."""
    device = video.cameras.sizes.device
    y, x = torch.meshgrid(torch.arange(tile.top, tile.bottom, device=device),
                          torch.arange(tile.left, tile.right, device=device), indexing="ij")
    rays = pixels_to_rays(video.cameras, torch.zeros_like(x), x, y)
    if video.lights is not None:
        rays = rays.with_lights(video.lights[0])
    if video.cameras.ndc is None:
        return rays, None
    valid = rays.viewdirs[..., 2] < -MIN_NDC_SLOPE

    def substitute(name: str, value: Any) -> Tensor:
        old = getattr(rays, name)
        return old.where(valid[..., None], old.new_tensor(value))

    ahead = [0.0, 0.0, 1.0]
    return replace(rays, origins=substitute("origins", [0.0, 0.0, -1.0]),
                   directions=substitute("directions", ahead), radii=substitute("radii", 1e-3)
                   ), valid


