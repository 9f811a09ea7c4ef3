"""Extract a coloured mesh from a trained scene.

    python extract_mesh.py --run log/blender_lego_mipnerf
    python extract_mesh.py --scene lego --grid_size 128 --mesh_format glb
    python extract_mesh.py --scene lego --texture 2048 --faces 50000
    python extract_mesh.py --scene lego --sigma_threshold 20 --x_range -1 1 --keep_unseen

Needs only the run folder, not the dataset. The mesh is in the coordinates of the scene's files. Its
bounding box is estimated by rendering from the training cameras. `--method density` is the surface
of a density, and surfaces that no training view sees are removed (`--keep_unseen` keeps them);
`--method tsdf`, the default for photographs, fuses rendered distances.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from config import early_config, get_config
from runtime.errors import UserError, run_script

if __name__ == "__main__":
    early_config("extract_mesh")

from torch import Tensor

import image_utils
from checkpoint import Checkpoint, open_run
from datasets import load_dataset
from exporters.mesh import Mesh, extract, find_target, folder_name, render_options
from exporters.mesh_files import write_mesh, write_textured_mesh
from exporters.mesh_views import mesh_sheet, representative_view
from exporters.texture import TexturedMesh, add_texture, check_packages
from ray_utils import image_rays
from rendering import render_image
from runtime.devices import select_device
from runtime.files import sole_writer, write_atomically


def main(argv: Sequence[str] | None = None) -> int:
    run = open_run(get_config(argv, "extract_mesh"), also={"units"})
    check_packages(run.config)
    folder = run.path.parent / folder_name(run)
    with sole_writer(folder, "extracting a mesh"):
        mesh, stats = extract_and_report(run)
        path = write_files(folder, mesh, run)
        text = json.dumps({"step": run.step} | stats)
        write_atomically(folder / "mesh.json", lambda file: file.write(text.encode()))
        print(f"Mesh: {path}", flush=True)
        index = representative_view(run.scene["train"].cameras)
        sheet = mesh_sheet(mesh, run.scene["train"].cameras, index, reference_image(run, index))
        image_utils.write_image(folder / "view.png", sheet)
        print(f"Image: {folder / 'view.png'}")
    return 0


def write_files(folder: Path, mesh: Mesh | TexturedMesh, run: Checkpoint) -> Path:
    """Write the mesh files that the flags request; returns the path of the main one."""
    to_scene = run.scene["train"].world_to_scene
    if isinstance(mesh, TexturedMesh):
        write_textured_mesh(folder, mesh, to_scene)
        return folder / "mesh.glb"
    path = folder / f"mesh.{run.config.mesh_format}"
    write_mesh(path, mesh, to_scene)
    return path


def extract_and_report(run: Checkpoint) -> tuple[Mesh | TexturedMesh, dict]:
    """The mesh and the content of `mesh.json`; prints the progress."""
    begin = time.perf_counter()
    scene = run.scene["train"].to(select_device(run.config))
    target = find_target(run.model, scene, run.config)
    grid = target.grid
    surface = (f"Surface of density {target.threshold:.3g}" if target.method == "density"
               else "Surface of fused distances")
    print(f"{surface} between {target.low.round(3)} and "
          f"{target.high.round(3)}, on {'x'.join(map(str, grid.shape))} points "
          f"{grid.cell_size:.3g} apart.", flush=True)
    mesh, stats = extract(scene, run.config, target)
    textured = run.config.texture and add_texture(
        mesh, target, scene, run.config.texture, **render_options(run.config))
    print(f"{stats['evaluated']:,} points evaluated, {stats['evaluated_share']:.1%} of the grid.\n"
          f"{stats['vertices']:,} vertices and {stats['faces']:,} faces, after "
          f"{time.perf_counter() - begin:.0f} s.", flush=True)
    return textured or mesh, stats


def reference_image(run: Checkpoint, index: int) -> Tensor:
    """A training image `[h, w, 3]`; the model's rendering of it if the dataset is not available."""
    try:
        dataset = load_dataset(run.config, "train", read_pixels=False)
        dataset.check_same_scene(run.original_scene)
        return dataset.image(index).rgb
    except UserError as error:
        print(f"The image of the mesh is shown beside a rendering, not the photograph: {error}")
    scene = run.scene["train"].to(select_device(run.config))
    rays = scene.light_rays(image_rays(scene.cameras, index), index)
    return render_image(run.model, rays, run.config.chunk, shading=run.shading).rgb


if __name__ == "__main__":
    run_script(main)
