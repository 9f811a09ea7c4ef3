"""Export a trained scene for others: a page, surface points, cameras.

    python export.py --run log/blender_lego_zipnerf                    page.html, for any browser
    python export.py --run log/fox --format ply --num_points 500000    points for splat trainers
    python export.py --run log/fox --format cameras                    transforms.json and COLMAP

Needs only the run folder, not the dataset. The page is one file: it holds the trained field and
renders it by WebGL 2, without a server. Points and cameras are in the coordinates of the scene's
files; refined cameras are exported as refined.
"""

from collections.abc import Sequence
from pathlib import Path

from config import early_config, get_config
from runtime.errors import run_script

if __name__ == "__main__":
    early_config("export")

from checkpoint import Checkpoint, open_run
from exporters.camera_files import colmap_files, transforms_json
from exporters.page import make_page
from exporters.points import ply_content, surface_points
from rendering import make_renderer
from runtime.devices import select_device
from runtime.files import sole_writer, write_atomically


def main(argv: Sequence[str] | None = None) -> int:
    run = open_run(get_config(argv, "export"))
    {"html": export_page, "ply": export_points, "cameras": export_cameras}[run.config.format](run)
    return 0


def export_page(run: Checkpoint) -> None:
    """Write `page.html` into the run folder."""
    path = run.path.parent / "page.html"
    title = f"{run.config.scene} by {run.config.model}"
    page = make_page(run.model, run.scene["train"], title)
    write_text(path, page.text)
    print(f"{len(page.text) / 1e6:.1f} MB; entries of the grid in 8 bits are "
          f"{100 * page.table_error:.1f} % off.")
    print(f"Page: {path} (open it in a browser)")


def export_points(run: Checkpoint) -> None:
    """Write `points.ply` into the run folder."""
    path, scene = run.path.parent / "points.ply", run.scene["train"]
    on_device = scene.to(select_device(run.config))
    renderer = make_renderer(run.model, on_device, num_rays=run.config.num_points)
    points = surface_points(renderer, on_device, run.config.num_points, run.config.chunk)
    content = ply_content(points, scene.world_to_scene)
    write_atomically(path, lambda file: file.write(content))
    print(f"{len(points.positions):,} points.\nPoints: {path}")


def export_cameras(run: Checkpoint) -> None:
    """Write `cameras/transforms.json` and `cameras/sparse/0` into the run folder."""
    folder = run.path.parent / "cameras"
    scenes = {split: scene for split, scene in run.scene.items() if split in ("train", "test")}
    files = {"transforms.json": transforms_json(scenes)} | {
        f"sparse/0/{name}": text for name, text in colmap_files(scenes).items()}
    with sole_writer(folder, "exporting cameras"):
        for name, text in files.items():
            write_text(folder / name, text)
    print(f"Cameras: {folder / 'transforms.json'} and {folder / 'sparse' / '0'}")


def write_text(path: Path, text: str) -> None:
    """Atomically write a text file, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(text.encode()))


if __name__ == "__main__":
    run_script(main)
