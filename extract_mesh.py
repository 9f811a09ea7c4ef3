"""Extract a coloured mesh from a trained scene.

    python extract_mesh.py --run log/blender_lego_mipnerf
    python extract_mesh.py --scene lego --grid_size 128 --mesh_format glb
    python extract_mesh.py --scene lego --sigma_threshold 20 --x_range -1 1 --keep_unseen

Needs a run folder and nothing else (the photograph beside the picture of the mesh is left out where
the data are not there). The mesh is in the coordinates of the scene's own files. Where the surface
lies, how dense it is, and what was never seen, is found out by looking from the training cameras.
"""

import json
import time

from config import early_config, get_config
from runtime.errors import run_script

if __name__ == "__main__":
    early_config("extract_mesh")

import image_utils
from checkpoint import open_run
from exporters.mesh import draw_beside_photograph, extract, folder_name, write_mesh
from runtime.devices import select_device
from runtime.files import sole_writer, write_atomically


def main(argv=None):
    run = open_run(get_config(argv, "extract_mesh"))
    config = run.config
    folder = run.path.parent / folder_name(run)
    with sole_writer(folder, "extracting a mesh"):
        begin = time.perf_counter()
        mesh, facts = extract(run.model, run.scene["train"].to(select_device(config)), config)
        print(f"{len(mesh.vertices):,} vertices and {len(mesh.faces):,} faces, after "
              f"{time.perf_counter() - begin:.0f} s.", flush=True)
        file = folder / f"mesh.{config.mesh_format}"
        write_mesh(file, mesh, run.scene["train"].world_to_scene)
        note = json.dumps({"step": run.step} | facts).encode()
        write_atomically(folder / "mesh.json", lambda file: file.write(note))
        print(f"Mesh: {file}", flush=True)
        image_utils.write_image(folder / "view.png", draw_beside_photograph(mesh, run, config))
        print(f"Its picture: {folder / 'view.png'}")
    return 0


if __name__ == "__main__":
    run_script(main)
