"""Key frames of a film in the browser: adding, ordering, deleting, playing, files."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cameras.keyframes import (
    KeyFrames,
    in_order,
    interpolate,
    parse_path,
    path_text,
    read_path,
    with_key_frame,
    write_path,
)
from runtime.errors import UserError
from viewer.poses import Stage, from_viser, move_client, to_viser

# Pictures a second of a film that is played; points of the line that shows it.
PLAY_RATE, LINE_POINTS = 20, 200

COLOUR, CHOSEN_COLOUR = (230, 70, 90), (255, 200, 0)

EMPTY = "No key frames yet: move the camera, then *Add*."


class Film:
    """The key frames, their nodes in the scene, and the part of the panel that changes them.

    run: the run's folder, for the command that is shown; size: of a key frame's marker.
    """

    def __init__(self, server: Any, stage: Stage, world_to_scene: Any, run: str, size: float):
        self.server, self.stage, self.world_to_scene = server, stage, world_to_scene
        self.run, self.size = run, size
        self.key_frames: KeyFrames | None = None
        self.player: threading.Event | None = None
        self.nodes: list[Any] = []

    def build(self) -> None:
        """Add the controls to the current tab."""
        gui = self.server.gui
        self.status = gui.add_markdown(EMPTY)
        gui.add_button("Add this view", icon="plus").on_click(lambda event: self.add(event.client))
        self.chosen = gui.add_slider("Key frame", min=1, max=2, step=1, initial_value=1,
                                     disabled=True)
        self.chosen.on_update(lambda _: self.draw())
        actions = gui.add_button_group("Change", ("Go to", "Replace", "Earlier", "Later", "Delete"))
        actions.on_click(lambda event: self.change(actions.value, event.client))
        self.closed = gui.add_checkbox("Back to the first", False)
        self.constant_speed = gui.add_checkbox("Constant speed", True)
        for box in (self.closed, self.constant_speed):
            box.on_update(lambda _: self._set(self.key_frames))
        self.seconds = gui.add_slider("Seconds", min=1, max=60, step=1, initial_value=8)
        self.play_button = gui.add_button("Play", icon="player-play")
        self.play_button.on_click(lambda event: self.play(event.client))
        with gui.add_folder("File"):
            self.file = gui.add_text("Name", "path.json")
            gui.add_button("Save", icon="device-floppy").on_click(
                lambda event: self._reporting(self.save, event.client))
            gui.add_button("Download", icon="download").on_click(
                lambda event: self._reporting(self.download, event.client))
            upload = gui.add_upload_button("Load", icon="upload", mime_type="application/json")
            upload.on_upload(lambda event: self._reporting(
                lambda _: self.load(upload.value.name, upload.value.content), event.client))
        self.command = gui.add_markdown("")

    # Changes.

    def add(self, client: Any) -> None:
        """Insert the client's view after the chosen key frame."""
        index = self._chosen() + 1 if self.key_frames else 0
        pose = from_viser(client.camera.wxyz, client.camera.position)
        self._set(with_key_frame(self.key_frames, index, pose, client.camera.fov), index)

    def change(self, action: str, client: Any) -> None:
        """Apply a button of the group to the chosen key frame."""
        if self.key_frames is None:
            return
        index, count = self._chosen(), len(self.key_frames)
        order = list(range(count))
        if action == "Go to":
            move_client(client, self.key_frames.camtoworlds[index], self.stage,
                        float(self.key_frames.fovs[index]))
        elif action == "Replace":
            pose = from_viser(client.camera.wxyz, client.camera.position)
            more = with_key_frame(self.key_frames, index, pose, client.camera.fov)
            self._set(in_order(more, [i for i in range(count + 1) if i != index + 1]), index)
        elif action == "Delete":
            del order[index]
            self._set(in_order(self.key_frames, order) if order else None, min(index, count - 2))
        else:
            other = min(max(index + (1 if action == "Later" else -1), 0), count - 1)
            order[index], order[other] = order[other], order[index]
            self._set(in_order(self.key_frames, order), other)

    def _chosen(self) -> int:
        return min(int(self.chosen.value), len(self.key_frames)) - 1

    def _set(self, key_frames: KeyFrames | None, chosen: int | None = None) -> None:
        """Take other key frames, and the checkboxes' way through them."""
        if key_frames is not None:
            key_frames = replace(key_frames, closed=self.closed.value,
                                 constant_speed=self.constant_speed.value)
        self.key_frames = key_frames
        count = len(key_frames) if key_frames else 0
        self.chosen.disabled = count < 2
        self.chosen.max = max(2, count)
        if chosen is not None:
            self.chosen.value = max(1, chosen + 1)
        self.status.content = f"{count} key frame{'s' * (count != 1)}." if count else EMPTY
        self.draw()

    # Drawing and playing.

    def draw(self) -> None:
        """Draw the key frames and the camera's way through them."""
        for node in self.nodes:
            node.remove()
        self.nodes = []
        if self.key_frames is None:
            return
        scene = self.server.scene
        for i, (pose, fov) in enumerate(zip(self.key_frames.camtoworlds, self.key_frames.fovs,
                                            strict=True)):
            wxyz, position = to_viser(pose)
            self.nodes.append(scene.add_camera_frustum(
                f"/film/{i}", fov=float(fov), aspect=self.stage.aspect, scale=0.8 * self.size,
                thickness=2.0, thickness_units="screen", wxyz=wxyz, position=position,
                color=CHOSEN_COLOUR if i == self._chosen() else COLOUR))
        if len(self.key_frames) > 1:
            points = interpolate(self.key_frames, LINE_POINTS)[0][:, :, 3].astype(np.float32)
            if self.key_frames.closed:
                points = np.concatenate([points, points[:1]])
            self.nodes.append(scene.add_line_segments(
                "/film/line", np.stack([points[:-1], points[1:]], axis=1), COLOUR, thickness=2.0,
                thickness_units="screen"))

    def play(self, client: Any) -> None:
        """Move the client's camera along the film, or stop it."""
        if self.player is not None:
            self.player.set()
            return
        if self.key_frames is None or len(self.key_frames) < 2:
            client.add_notification("Play", "A film needs two key frames or more.",
                                    auto_close_seconds=5)
            return
        self.player = threading.Event()
        self.play_button.label = "Stop"
        count = round(PLAY_RATE * self.seconds.value)
        begin = time.perf_counter()
        poses, fovs = interpolate(self.key_frames, count)
        for i in range(count):
            move_client(client, poses[i], self.stage, float(fovs[i]))
            if self.player.wait(max(0.0, begin + i / PLAY_RATE - time.perf_counter())):
                break
        self.player, self.play_button.label = None, "Play"

    # Files.

    def _reporting(self, action: Callable[[Any], None], client: Any) -> None:
        """Do something with a file, and tell the client why it could not be done."""
        try:
            action(client)
        except UserError as error:
            client.add_notification("Key frames", str(error), color="red", auto_close_seconds=15)

    def _needed(self) -> KeyFrames:
        if self.key_frames is None or len(self.key_frames) < 2:
            raise UserError("a film needs two key frames or more; add them first.")
        return self.key_frames

    def save(self, client: Any) -> None:
        """Write the file into the folder in which view.py was started."""
        key_frames, path = self._needed(), Path(self.file.value.strip())
        if path.name != str(path) or path.suffix != ".json":
            raise UserError(f"{str(path)!r} is not the name of a file that ends with .json.")
        if path.exists():
            read_path(path, self.world_to_scene)  # Only path files are overwritten.
        write_path(path, key_frames, self.world_to_scene)
        frames = round(30 * self.seconds.value)
        self.command.content = (f"Saved. Render it by\n\n`python visualize.py --run {self.run} "
                                f"--path {path} --frames {frames}`")
        client.add_notification("Key frames", f"Saved as {path.resolve()}.", auto_close_seconds=8)

    def download(self, client: Any) -> None:
        """Send the file to the browser."""
        text = path_text(self._needed(), self.world_to_scene)
        client.send_file_download("path.json", text.encode())

    def load(self, name: str, content: bytes) -> None:
        """Take the key frames of a file from the browser."""
        key_frames = parse_path(content, name, self.world_to_scene)
        self.closed.value, self.constant_speed.value = key_frames.closed, key_frames.constant_speed
        self._set(key_frames, 0)


