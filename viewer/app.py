"""The viewer: a server for browsers, and what connects its parts."""

import contextlib
import io
import logging
import threading
from typing import Any

import numpy as np

from config import Config
from relighting.light_paths import typical_light
from runtime.errors import UserError
from viewer.film import Film
from viewer.following import Curves, Follower
from viewer.loaded_run import LoadedRun, Shot, Tile
from viewer.markers import Markers, camera_shot
from viewer.panel import DRAGGED_LIGHT, NO_CAMERA, Panel
from viewer.photographs import Photographs
from viewer.poses import FAR, NEAR, fitted_fov, from_viser, move_client, stage_of
from viewer.refining import PREVIEW_QUALITY, Picture, to_image
from viewer.worker import Worker

# A camera that has moved by this fraction of the scene, or turned by this many radians, has left a
# photograph's.
LEFT_CAMERA = 1e-3

# Longer side of each image of the pair in the panel.
PAIR_SIDE = 320


def open_server(host: str, port: int) -> Any:
    """A viser server. Raises UserError if viser is missing or the address cannot be used."""
    try:
        import viser
    except ImportError:
        raise UserError("the viewer needs the package viser; install it by `pip install "
                        "viser`, or all of the extra by `pip install \".[viewer]\"`.") from None
    logging.getLogger("websockets").setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return viser.ViserServer(host=host, port=port, verbose=False)
    except OSError as error:
        raise UserError(f"--host {host} --port {port} cannot be used ({error}); choose another "
                        "address or port.") from None


class Viewer:
    """Shows a run to browsers until `stop`.

    command_line: that of view.py; host, port: where the server listens.
    """

    def __init__(self, command_line: Config, loaded: LoadedRun, host: str, port: int):
        self.loaded, self.stage = loaded, stage_of(loaded.scene.cameras)
        self.server = open_server(host, port)
        self.port = self.server.get_port()
        self.curves: Curves | None = None
        self.photographs: Photographs | None = None
        self.chosen: int | None = None
        self.lock = threading.Lock()
        self.pictures: dict[int, tuple[Picture, Shot]] = {}
        self.worker = Worker(loaded)
        self._set_scene()
        self.panel = Panel(self.server, loaded, self.stage, self.refresh)
        self.gizmo = self._add_gizmo()
        self.markers = Markers(self.server, loaded, self.stage, self.go_to)
        self.worker.background = self.markers.work
        self._build_panel(str(command_line.run or loaded.run.path.parent))
        self.follower = Follower(command_line, loaded, self.set_loaded, self.set_curves)
        self.server.on_client_connect(self._connect)
        self.server.on_client_disconnect(lambda client: self._disconnect(client.client_id))
        self.worker.start()
        self.follower.start()

    def stop(self) -> None:
        """End all threads and the server."""
        self.follower.stop()
        self.worker.stop()
        self.server.stop()

    def _set_scene(self) -> None:
        """Orientation, first camera and clipping planes of new browsers."""
        stage, scene, camera = self.stage, self.server.scene, self.server.initial_camera
        scene.set_up_direction(stage.up)
        scene.world_axes.visible = False
        camera.position, camera.look_at = stage.camtoworld[:, 3], stage.focus
        camera.up, camera.fov = stage.up, stage.fov
        camera.near, camera.far = NEAR * stage.distance, FAR * stage.distance

    def _build_panel(self, run: str) -> None:
        panel, names = self.panel, self.loaded.scene.names
        panel.home.on_click(lambda event: self.go_home(event.client))
        panel.fov.on_update(lambda event: event.client is not None and self._set_fov())
        panel.build_cameras(names, self._set_markers, self.go_to)
        self.film = Film(self.server, self.stage, self.loaded.scene.world_to_scene, run,
                         self.markers.size)
        with panel.tabs.add_tab("Film"):
            self.film.build()
        panel.build_training()

    def _add_gizmo(self) -> Any:
        """A handle to drag the light, if the model can be lit."""
        if self.panel.light is None:
            return None
        place = typical_light(self.loaded.scene.lights.to("cpu")).places[0].double().numpy()
        if np.linalg.norm(place) < 2:
            place = place * self.stage.distance
        gizmo = self.server.scene.add_transform_controls(
            "/light", scale=0.15 * self.stage.distance, disable_rotations=True,
            disable_sliders=True, position=place, visible=False)
        gizmo.on_update(lambda _: self.refresh())
        return gizmo

    # Browsers.

    def _connect(self, client: Any) -> None:
        camera = client.camera
        camera.near, camera.far = NEAR * self.stage.distance, FAR * self.stage.distance
        self.worker.add_screen(client.client_id,
                               lambda *picture: self._show(client, *picture))
        self.go_home(client)
        camera.on_update(lambda _: self._request(client))
        self._request(client)

    def _disconnect(self, key: int) -> None:
        self.worker.remove_screen(key)
        self.pictures.pop(key, None)

    def go_home(self, client: Any) -> None:
        """Move a browser's camera to the start."""
        fov = fitted_fov(self.stage.fov, self.stage.aspect, client.camera.aspect)
        self._choose(None)
        move_client(client, self.stage.camtoworld, self.stage, fov)

    def _set_fov(self) -> None:
        for client in self.server.get_clients().values():
            client.camera.fov = float(np.radians(self.panel.fov.value))

    def refresh(self) -> None:
        """Request pictures for all browsers, as the controls say now."""
        if self.gizmo is not None:
            self.gizmo.visible = self.panel.light.value == DRAGGED_LIGHT
        for client in self.server.get_clients().values():
            self._request(client)
            self._show_again(client)

    def _request(self, client: Any) -> None:
        """Request the picture of a browser's camera."""
        camera = client.camera
        # The browser reports the same pose again with other rounding errors.
        pose = from_viser(camera.wxyz, camera.position).round(9)
        width, height = self.panel.picture_size((camera.image_width, camera.image_height))
        light = None
        if self.gizmo is not None and self.panel.light.value == DRAGGED_LIGHT:
            light = tuple(map(float, self.gizmo.position))
        names = self.loaded.scene.names
        self.worker.request(client.client_id, Shot(
            tuple(pose.flatten().tolist()), round(float(camera.fov), 9), width, height, light=light,
            **self.panel.shot_options(names)))

    def _show(self, client: Any, picture: Picture, shot: Shot, seconds: float) -> None:
        """Send a picture to a browser, unless it has gone."""
        if client.client_id not in self.server.get_clients():
            return
        self.pictures[client.client_id] = picture, shot
        self._send(client, picture, shot)
        self.panel.set_progress(shot.width, shot.height, seconds, picture.is_final)

    def _show_again(self, client: Any) -> None:
        """Send the last picture again, with another part of the photograph."""
        last = self.pictures.get(client.client_id)
        if last is not None:
            self._send(client, *last)

    def _send(self, client: Any, picture: Picture, shot: Shot) -> None:
        image = picture.image
        if self._is_at_chosen(shot):
            image = self.photographs.overlay(self.loaded, image, shot, self.chosen,
                                             self.panel.fraction.value)
        client.scene.set_background_image(
            image, format="png" if picture.is_final else "jpeg", jpeg_quality=PREVIEW_QUALITY,
            depth=picture.depth)

    # Training cameras and photographs.

    def _set_markers(self) -> None:
        panel, markers = self.panel, self.markers
        markers.show_cameras(panel.cameras.value, panel.camera_size.value)
        markers.show_points(panel.points.value)
        markers.box.visible = panel.box.value

    def go_to(self, client: Any, index: int | None) -> None:
        """Move a browser's camera to a training camera, and compare with its photograph."""
        if index is None:
            self._choose(None)
            self.refresh()
            return
        shot = camera_shot(self.loaded, index, PAIR_SIDE)
        fov = fitted_fov(shot.fov, shot.width / shot.height, client.camera.aspect)
        with self.lock:
            if self.photographs is None:
                self.photographs = Photographs(self.loaded)
        self._choose(index)
        move_client(client, shot.camtoworld, self.stage, fov)
        self._show_pair(index, shot)

    def _choose(self, index: int | None) -> None:
        """Make a training camera the one that is compared."""
        self.chosen = index
        self.markers.highlight(index)
        panel, names = self.panel, self.loaded.scene.names
        panel.camera.value = NO_CAMERA if index is None else names[index]
        has_photograph = self.photographs is not None and self.photographs.dataset is not None
        panel.fraction.disabled = index is None or not has_photograph

    def _show_pair(self, index: int, shot: Shot) -> None:
        """Show a photograph and its rendering side by side in the panel."""
        frame = self.loaded.render(shot, self.loaded.video(shot), Tile(0, 0, shot.width,
                                                                       shot.height))
        images = [to_image(self.loaded, shot, frame)]
        text = f"{self.loaded.scene.names[index]}: rendering"
        if self.photographs.dataset is not None:
            images.insert(0, self.photographs.warped(self.loaded, shot, index)[0])
            text = f"{self.loaded.scene.names[index]}: photograph and rendering"
        else:
            text += f". The photograph is not shown: {self.photographs.missing}"
        self.panel.pair.content = text
        self.panel.pair_image.image = np.concatenate(images, axis=1)
        self.panel.pair_image.visible = True

    def _is_at_chosen(self, shot: Shot) -> bool:
        """Whether a shot is from the camera of a photograph that is compared."""
        if self.chosen is None or self.photographs is None or self.photographs.dataset is None:
            return False
        pose = camera_shot(self.loaded, self.chosen, PAIR_SIDE).camtoworld
        error = np.abs(pose - shot.camtoworld)
        return bool(error[:, :3].max() < LEFT_CAMERA
                    and error[:, 3].max() < LEFT_CAMERA * self.stage.distance)

    # Training.

    def set_loaded(self, loaded: LoadedRun) -> None:
        """Show a newer checkpoint."""
        self.loaded = loaded
        self.worker.set_loaded(loaded)
        self.markers.set_loaded(loaded)
        self.panel.set_run(loaded, self.curves)

    def set_curves(self, curves: Curves) -> None:
        """Show longer training curves."""
        self.curves = curves
        self.panel.set_curves(curves, self.loaded.run.config.max_steps)
        self.panel.set_run(self.loaded, curves)


