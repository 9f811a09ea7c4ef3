"""Markers in the scene: training cameras with thumbnails, a point cloud, the box."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import coord
import image_utils
from cameras.keyframes import vertical_fovs
from exporters.video import Frame
from viewer.loaded_run import LoadedRun, Shot, Tile
from viewer.poses import Stage, to_viser

# Most training cameras that are drawn; longer side of a thumbnail; most points of the cloud.
MAX_CAMERAS = 200
THUMBNAIL_SIDE = 96
MAX_POINTS = 60_000

# Size of a camera relative to the distance of its neighbour, and its limits relative to the scene.
CAMERA_SIZE, SIZE_LIMITS = 0.35, (0.01, 0.05)

# The far side of a box in NDC is at infinity; it is drawn where NDC's z has this value.
FARTHEST_NDC = 0.9

CAMERA_COLOUR, CHOSEN_COLOUR, BOX_COLOUR = (90, 105, 130), (255, 140, 0), (240, 170, 60)


class Thumbnail(NamedTuple):
    """A small rendering of a training view: image, uint8 `[h, w, 3]`; points on its surface
    `[M, 3]` in the world and their colours, uint8 `[M, 3]`."""

    image: np.ndarray
    points: np.ndarray
    colours: np.ndarray


def shown_cameras(count: int) -> list[int]:
    """The indices of the training cameras that are drawn, evenly spaced."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, MAX_CAMERAS)).round()})


def camera_shot(loaded: LoadedRun, index: int, side: int) -> Shot:
    """The view of a training camera, its longer side `side` pixels, without lens distortion."""
    cameras = loaded.scene.cameras
    size = cameras.sizes[index].tolist()
    width, height = (max(1, round(side * length / max(size))) for length in size)
    pose = tuple(cameras.camtoworlds[index].double().cpu().flatten().tolist())
    return Shot(pose, float(vertical_fovs(cameras[index : index + 1])[0]), width, height)


def render_thumbnail(loaded: LoadedRun, index: int, num_points: int) -> Thumbnail:
    """The `Thumbnail` of a training view, with about `num_points` of its points."""
    shot = camera_shot(loaded, index, THUMBNAIL_SIDE)
    frame = loaded.render(shot, loaded.video(shot), Tile(0, 0, shot.width, shot.height))
    image = image_utils.to_uint8(frame.rgb)
    points, opaque = surface_points(loaded, shot, frame)
    stride = max(1, points.shape[0] // max(1, num_points))
    return Thumbnail(image, points[::stride], image[opaque][::stride])


def surface_points(loaded: LoadedRun, shot: Shot, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Points `[M, 3]` on the surface in a frame, and which pixels show them, bool `[h, w]`."""
    opaque = ((frame.acc > 0.5) & frame.distance.isfinite()).cpu().numpy()
    distance = (frame.distance * loaded.scene.scale)[..., None]
    points = (distance * frame.viewdirs).cpu().numpy() + shot.camtoworld[:, 3]
    return points[opaque].astype(np.float32), opaque


def camera_size(cameras: torch.Tensor, stage: Stage) -> float:
    """A length in world units at which cameras at positions `[N, 3]` do not hide one another."""
    distances = torch.cdist(cameras, cameras)
    distances.fill_diagonal_(torch.inf)
    nearest = float(distances.amin(dim=1).median()) if len(cameras) > 1 else stage.distance
    low, high = (limit * stage.distance for limit in SIZE_LIMITS)
    return min(max(CAMERA_SIZE * nearest, low), high)


def box_edges(box: torch.Tensor, ndc: tuple | None) -> np.ndarray:
    """The edges of a box `[2, 3]` in the coordinates of rays, as lines `[12, 2, 3]` in the world.

    Straight lines in NDC are straight in the world.
    """
    ends = box.double().cpu()
    if ndc is not None:
        ends = ends.clone()
        ends[1, 2] = min(float(ends[1, 2]), FARTHEST_NDC)
    corners = torch.tensor([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)])
    points = ends.gather(0, corners)
    if ndc is not None:
        points = coord.from_ndc(points, *ndc)
    edges = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]
    return points.numpy()[np.array(edges)]


class Markers:
    """The nodes of training cameras, point cloud and box in the browser's scene.

    on_click: called with a client and the index of the camera that it clicked.
    """

    def __init__(self, server: Any, loaded: LoadedRun, stage: Stage,
                 on_click: Callable[[Any, int], None]):
        self.server, self.loaded, self.stage, self.on_click = server, loaded, stage, on_click
        self.indices = shown_cameras(len(loaded.scene.names))
        self.size = camera_size(loaded.scene.cameras.camtoworlds[self.indices, :, 3].cpu(), stage)
        self.frustums = {index: self._add_frustum(index) for index in self.indices}
        self.thumbnails: dict[int, Thumbnail] = {}
        self.pending = list(self.indices)
        self.cloud: Any = None
        self.shows_points = False
        self.box = server.scene.add_line_segments(
            "/box", box_edges(loaded.scene.box, loaded.scene.cameras.ndc).astype(np.float32),
            BOX_COLOUR, thickness=2.0, thickness_units="screen", visible=False)

    def _add_frustum(self, index: int) -> Any:
        shot = camera_shot(self.loaded, index, THUMBNAIL_SIDE)
        wxyz, position = to_viser(shot.camtoworld)
        frustum = self.server.scene.add_camera_frustum(
            f"/cameras/{index}", fov=shot.fov, aspect=shot.width / shot.height, scale=self.size,
            thickness=1.5, thickness_units="screen", color=CAMERA_COLOUR, wxyz=wxyz,
            position=position, cast_shadow=False, receive_shadow=False, visible=False)
        frustum.on_click(lambda event: self.on_click(event.client, index))
        return frustum

    def show_cameras(self, visible: bool, scale: float) -> None:
        """Show or hide the cameras; scale: multiple of their usual size."""
        for frustum in self.frustums.values():
            frustum.visible = visible
            frustum.scale = scale * self.size

    def highlight(self, chosen: int | None) -> None:
        """Draw one camera in another colour, and hide its thumbnail, which would hide the view."""
        for index, frustum in self.frustums.items():
            colour = CHOSEN_COLOUR if index == chosen else CAMERA_COLOUR
            if tuple(frustum.color) != colour:
                frustum.color = colour

    def show_points(self, visible: bool) -> None:
        """Show or hide the point cloud."""
        self.shows_points = visible
        if visible and self.cloud is None:
            self._update_cloud()
        if self.cloud is not None:
            self.cloud.visible = visible

    def set_loaded(self, loaded: LoadedRun) -> None:
        """Render the thumbnails again, from a newer checkpoint."""
        self.loaded, self.pending = loaded, list(self.indices)

    def work(self) -> bool:
        """Render the next thumbnail; False if none is left."""
        if not self.pending:
            return False
        index = self.pending.pop(0)
        thumbnail = render_thumbnail(self.loaded, index, MAX_POINTS // len(self.indices))
        self.thumbnails[index] = thumbnail
        self.frustums[index].image = thumbnail.image
        if not self.pending and self.shows_points:
            self._update_cloud()
        return True

    def _update_cloud(self) -> None:
        """Draw the points of all thumbnails so far."""
        found = [t for t in self.thumbnails.values() if len(t.points)]
        if found:
            self.cloud = self.server.scene.add_point_cloud(
                "/points", np.concatenate([t.points for t in found]),
                np.concatenate([t.colours for t in found]), point_size=0.002 * self.stage.distance,
                point_shape="circle", precision="float32", visible=self.shows_points)
