"""The control panel in the browser: what is shown, training cameras, curves."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from relighting.components import COMPONENTS
from viewer.following import Curves
from viewer.loaded_run import LoadedRun
from viewer.poses import Stage

# Kinds of images by their label.
KINDS = {"Colours": "rgb", "Distance": "depth", "Normals": "normals", "Opacity": "opacity",
         "Nothing": "empty"}

# Longer side of the final picture by its label; None follows the window.
SIDES = {"320 pixels": 320, "480 pixels": 480, "640 pixels": 640, "960 pixels": 960,
         "1280 pixels": 1280, "as the window": None}

NO_APPEARANCE, OWN_LIGHTS, DRAGGED_LIGHT = "average", "as in the first photograph", "one to drag"
NO_CAMERA = "none"

BRAND_COLOUR = (52, 120, 190)
CURVE_COLOURS = {"training": "#4dabf7", "validation": "#ff922b"}


def kind_labels(loaded: LoadedRun) -> dict[str, str]:
    """The kinds of images that a run can show, by label."""
    components = COMPONENTS if loaded.run.model.is_shading() else ()
    return KINDS | {name.replace("_", " ").capitalize(): name for name in components}


class Panel:
    """The controls. on_change is called when pictures have to be rendered again."""

    def __init__(self, server: Any, loaded: LoadedRun, stage: Stage,
                 on_change: Callable[[], None]):
        self.server, self.stage, self.on_change = server, stage, on_change
        gui = server.gui
        gui.configure_theme(show_logo=False, show_share_button=False, brand_color=BRAND_COLOUR,
                            dark_mode=True)
        gui.set_panel_label(loaded.run.path.parent.name)
        self.headline = gui.add_markdown("")
        self.progress = gui.add_markdown("Waiting for a browser.")
        self.tabs = gui.add_tab_group()
        with self.tabs.add_tab("View"):
            self._build_view(loaded)
        self.set_run(loaded, None)

    def _build_view(self, loaded: LoadedRun) -> None:
        gui = self.server.gui
        self.kinds = kind_labels(loaded)
        self.kind = gui.add_dropdown("Show", tuple(self.kinds))
        start = "640 pixels" if loaded.device.type == "cpu" else "as the window"
        self.side = gui.add_dropdown("Size", tuple(SIDES), initial_value=start,
                                     hint="Longer side of the sharp picture")
        self.fov = gui.add_slider("Field of view", min=5, max=120, step=0.5,
                                  initial_value=round(2 * math.degrees(self.stage.fov)) / 2,
                                  hint="Vertical angle in degrees")
        self.appearance = self._add_appearance(loaded)
        self.light = self._add_light(loaded)
        for control in (self.kind, self.side, self.appearance, self.light):
            if control is not None:
                control.on_update(lambda _: self.on_change())
        self.home = gui.add_button("Back to the start", icon="home")

    def _add_appearance(self, loaded: LoadedRun) -> Any:
        """The choice of the photograph whose exposure is shown, if the run has embeddings."""
        if loaded.run.model.embeddings is None:
            return None
        return self.server.gui.add_dropdown("Exposure of", (NO_APPEARANCE, *loaded.scene.names))

    def _add_light(self, loaded: LoadedRun) -> Any:
        """The choice of the light, if the model can be lit."""
        if not loaded.run.model.is_shading() or loaded.scene.lights is None:
            return None
        return self.server.gui.add_dropdown("Light", (OWN_LIGHTS, DRAGGED_LIGHT))

    def build_cameras(self, names: tuple[str, ...], on_change: Callable[[], None],
                      on_choice: Callable[[Any, int | None], None]) -> None:
        """Add the tab of the training cameras, point cloud and box."""
        gui = self.server.gui
        with self.tabs.add_tab("Cameras"):
            self.cameras = gui.add_checkbox("Show them", False)
            self.camera_size = gui.add_slider("Camera size", min=0.2, max=4, step=0.1,
                                              initial_value=1)
            self.points = gui.add_checkbox("Point cloud", False)
            self.box = gui.add_checkbox("Box", False)
            self.camera = gui.add_dropdown("Go to", (NO_CAMERA, *names))
            self.fraction = gui.add_slider(
                "Photograph", min=0, max=1, step=0.01, initial_value=0.5, disabled=True,
                hint="How much of the picture is the photograph instead of the rendering")
            self.pair = gui.add_markdown("Click a camera, or choose one, to compare its photograph "
                                         "with the rendering.")
            self.pair_image = gui.add_image(np.full((8, 16, 3), 255, np.uint8), visible=False)
        for control in (self.cameras, self.camera_size, self.points, self.box):
            control.on_update(lambda _: on_change())
        self.fraction.on_update(lambda _: self.on_change())

        # Not for changes by the program, which have no client.
        self.camera.on_update(lambda event: event.client is not None and on_choice(
            event.client, self._index_of(self.camera.value, names)))

    @staticmethod
    def _index_of(name: str, names: tuple[str, ...]) -> int | None:
        return names.index(name) if name in names else None

    def build_training(self) -> None:
        """Add the tab of the training curve."""
        from viser import uplot

        gui = self.server.gui
        with self.tabs.add_tab("Training"):
            self.training_status = gui.add_markdown("No curve yet.")
            self.plots = {
                name: gui.add_uplot(
                    (np.zeros(1), np.zeros(1)),
                    (uplot.Series(label="step"),
                     uplot.Series(label=f"{name} PSNR", stroke=colour, width=2)),
                    title=f"PSNR of {name} rays in dB" if name == "training"
                    else "PSNR of validation images in dB", scales={"x": uplot.Scale(time=False)},
                    axes=(uplot.Axis(stroke="#c1c2c5"), uplot.Axis(stroke="#c1c2c5")),
                    aspect=1.7, visible=False)
                for name, colour in CURVE_COLOURS.items()}

    def set_curves(self, curves: Curves, max_steps: int) -> None:
        """Show the training curves."""
        for name, plot in self.plots.items():
            curve = getattr(curves, name)
            if curve.size:
                plot.data = tuple(curve)
            plot.visible = curve.shape[-1] > 1
        latest = curves.latest()
        if latest is not None:
            step, psnr = latest
            self.training_status.content = (f"Step **{step:,}** of {max_steps:,}, "
                                            f"training PSNR **{psnr:.2f} dB**.")

    def set_run(self, loaded: LoadedRun, curves: Curves | None) -> None:
        """Show what is rendered in the headline."""
        run = loaded.run
        scene = run.config.scene.rstrip("/").rpartition("/")[2]
        psnr = ""
        if curves is not None and curves.validation.size:
            psnr = f" · {curves.validation[1, -1]:.2f} dB"
        elif curves is not None and curves.latest():
            psnr = f" · {curves.latest()[1]:.2f} dB in training"
        self.headline.content = (f"**{run.config.model}** of *{scene}*  \n"
                                 f"step {run.step:,} of {run.config.max_steps:,}{psnr}")

    def set_progress(self, width: int, height: int, seconds: float, is_final: bool) -> None:
        """Show how far the picture is."""
        if is_final:
            self.progress.content = f"Sharp: {width} × {height} after {seconds:.1f} s"
        else:
            self.progress.content = f"Refining: {width} × {height}"

    def shot_options(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The kind and the exposure of `loaded_run.Shot`."""
        appearance = None
        if self.appearance is not None:
            appearance = self._index_of(self.appearance.value, names)
        return {"kind": self.kinds[self.kind.value], "appearance": appearance}

    def picture_size(self, window: tuple[int, int]) -> tuple[int, int]:
        """Width and height of the final picture in a window of that size in pixels."""
        longest = SIDES[self.side.value]
        scale = 1.0 if longest is None else min(1.0, longest / max(window))
        return max(1, round(scale * window[0])), max(1, round(scale * window[1]))
