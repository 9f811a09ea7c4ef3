"""From a small picture to the final one, tile by tile."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch

import image_utils
from exporters.video import Frame, frame_image
from rendering import normal_fit, surface_normals
from viewer.loaded_run import LoadedRun, Shot, Tile

# Seconds that the first, small picture and each tile may take, and between two pictures.
PREVIEW_SECONDS = 0.08
TILE_SECONDS = 0.06
SHOW_SECONDS = 0.3

# Fewest rays of a preview and of a tile, whatever they take.
MIN_PREVIEW_RAYS, MIN_TILE_RAYS = 1200, 256

# Seconds of rendering after which an earlier measurement of the speed counts half.
SPEED_MEMORY = 0.3

# The sides of a picture grow by this factor from one stage to the next.
STAGE_FACTOR = 3.0

# JPEG quality of all pictures but the final one, which has no loss.
PREVIEW_QUALITY = 80

# Depth of empty pixels: beyond what the browser can represent.
EMPTY_DEPTH = 1e3

# Longer side of the depth map while a picture is refined.
DEPTH_SIDE = 200


class Picture(NamedTuple):
    """An image for a browser, uint8 `[h, w, 3]`; depth `[h', w']` along the optical axis in world
    units; is_final: whether it is complete."""

    image: np.ndarray
    depth: np.ndarray
    is_final: bool


class Speed:
    """How many rays are rendered within some time, from those rendered so far."""

    def __init__(self):
        self.num_rays, self.seconds = 2000.0, 0.1

    def add(self, num_rays: int, seconds: float) -> None:
        """Count a rendering; earlier ones then count less."""
        kept = 0.5 ** (seconds / SPEED_MEMORY)
        self.num_rays = kept * self.num_rays + num_rays
        self.seconds = kept * self.seconds + seconds

    def rays_within(self, seconds: float) -> int:
        """The number of rays that take some seconds."""
        return int(self.num_rays / self.seconds * seconds)


def stages(width: int, height: int, num_rays: int) -> list[tuple[int, int]]:
    """Sizes of a picture from about `num_rays` pixels to the final one."""
    shrink = min(1.0, (max(num_rays, MIN_PREVIEW_RAYS) / (width * height)) ** 0.5)
    sizes = []
    while shrink * STAGE_FACTOR**0.5 < 1:
        sizes.append((max(1, round(shrink * width)), max(1, round(shrink * height))))
        shrink *= STAGE_FACTOR
    return [*sizes, (width, height)]


def tiles(width: int, height: int, num_rays: int) -> list[Tile]:
    """Square tiles of about `num_rays` pixels that cover an image, from its centre outwards."""
    side = max(8, round(max(num_rays, MIN_TILE_RAYS) ** 0.5))
    columns, rows = (_bounds(length, side) for length in (width, height))
    found = [Tile(left, top, right, bottom) for top, bottom in rows for left, right in columns]
    return sorted(found, key=lambda tile: (tile.left + tile.right - width) ** 2
                  + (tile.top + tile.bottom - height) ** 2)


def _bounds(length: int, side: int) -> list[tuple[int, int]]:
    """Ends of about equal parts of a length, none longer than `side`."""
    count = -(-length // side)
    return [(length * i // count, length * (i + 1) // count) for i in range(count)]


def refine(loaded: LoadedRun, shot: Shot, speed: Speed) -> Iterator[Picture | None]:
    """Pictures of a shot, each better than the one before; the last one is final.

    None between them are moments at which the work may be given up.
    """
    image = depth = None
    first, *rest = stages(shot.width, shot.height, speed.rays_within(PREVIEW_SECONDS))
    for size in (first, *rest):
        stage = shot.at_size(*size)
        areas = tiles(*size, speed.rays_within(TILE_SECONDS)) if size != first or not rest \
            else [Tile(0, 0, *size)]
        buffer = FrameBuffer(*size)
        canvas, video = _resized(image, size), loaded.video(stage)
        shown = time.perf_counter()
        for area in areas:
            begin = time.perf_counter()
            frame = loaded.render(stage, video, area)
            canvas[area.top : area.bottom, area.left : area.right] = to_image(loaded, shot, frame)
            buffer.paste(area, frame)
            now = time.perf_counter()
            speed.add(frame.acc.numel(), now - begin)
            is_due = now - shown > SHOW_SECONDS and image is not None and area is not areas[-1]
            if is_due:
                shown = now
                yield Picture(canvas.copy(), depth, False)
            elif area is not areas[-1]:
                yield None
        whole = buffer.whole()
        is_final = size == (shot.width, shot.height)
        if is_final and shot.kind == "normals" and whole.normals is None:
            yield from _fit_normals(whole, buffer, areas)
            whole = buffer.whole()
        image = to_image(loaded, shot, whole)
        depth = depth_of(loaded, shot, whole)
        yield Picture(image, depth if is_final else _small(depth), is_final)


def _fit_normals(frame: Frame, buffer: "FrameBuffer", areas: list[Tile]) -> Iterator[None]:
    """Add the normals of a complete frame's distances to its buffer, tile by tile."""
    fit = normal_fit(frame.distance, frame.viewdirs, frame.acc)
    height, width = frame.acc.shape
    normals = torch.zeros_like(frame.viewdirs)
    for tile in areas:
        left, top = max(0, tile.left - fit.window), max(0, tile.top - fit.window)
        part = (slice(top, min(height, tile.bottom + fit.window)),
                slice(left, min(width, tile.right + fit.window)))
        fitted = surface_normals(frame.distance[part], frame.viewdirs[part], frame.acc[part], fit)
        normals[tile.top : tile.bottom, tile.left : tile.right] = fitted[
            tile.top - top : tile.bottom - top, tile.left - left : tile.right - left]
        yield None
    buffer.arrays["normals"] = normals


def to_image(loaded: LoadedRun, shot: Shot, frame: Frame) -> np.ndarray:
    """A frame's image of the shot's kind, uint8 `[h, w, 3]`."""
    if shot.kind == "empty":
        return np.full((*frame.acc.shape, 3), 255, dtype=np.uint8)
    if shot.kind == "opacity":
        return image_utils.to_uint8(frame.acc[..., None].expand(*frame.acc.shape, 3))
    scale = loaded.scale if shot.kind == "depth" else None
    return image_utils.to_uint8(frame_image(frame, shot.kind, scale))


def depth_of(loaded: LoadedRun, shot: Shot, frame: Frame) -> np.ndarray:
    """Depth `[h, w]` along the optical axis in world units."""
    depth = (frame.depth * loaded.scene.scale).where(frame.acc > 0.5, EMPTY_DEPTH)
    if shot.kind == "empty":
        depth = torch.full_like(depth, EMPTY_DEPTH)
    return depth.float().cpu().numpy()


def _resized(image: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """An image in another size; white if None."""
    if image is None:
        return np.full((size[1], size[0], 3), 255, dtype=np.uint8)
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def _small(depth: np.ndarray) -> np.ndarray:
    """A depth map of at most `DEPTH_SIDE` pixels a side."""
    stride = -(-max(depth.shape) // DEPTH_SIDE)
    return np.ascontiguousarray(depth[::stride, ::stride])


class FrameBuffer:
    """Collects the tiles of a frame."""

    def __init__(self, width: int, height: int):
        self.size = height, width
        self.arrays: dict[str, torch.Tensor] = {}
        self.components: dict[str, np.ndarray] = {}

    def paste(self, tile: Tile, frame: Frame) -> None:
        """Add a tile."""
        area = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
        for name, value in frame._asdict().items():
            if isinstance(value, torch.Tensor):
                whole = self.arrays.get(name)
                if whole is None:
                    whole = value.new_zeros(*self.size, *value.shape[2:])
                    self.arrays[name] = whole
                whole[area] = value
        for name, component in frame.components.items():
            if name not in self.components:
                self.components[name] = np.zeros((*self.size, 3), dtype=component.dtype)
            self.components[name][area] = component

    def whole(self) -> Frame:
        """The frame, once all tiles were added."""
        return Frame(**self.arrays, components=self.components)
