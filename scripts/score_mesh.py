"""Textured and vertex-coloured meshes drawn from test views, against the photographs: a table.

    python scripts/score_mesh.py log/lego log/flower --faces 20000 --texture 2048

Needs the datasets. One surface is extracted from each run, by the defaults of `extract_mesh.py`.
Drawn from the same test views are: that surface decimated to `--faces`, with a texture; decimated
to four times as many, with vertex colours; with all its faces; and the model itself. PSNR and SSIM
are those of the whole image, on white, and PSNR also of the pixels that all meshes cover, beside
the photographs and beside the model's images. The images are written to `--out`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import image_utils  # noqa: E402
from checkpoint import load_checkpoint  # noqa: E402
from config import positive_int  # noqa: E402
from datasets import load_dataset  # noqa: E402
from exporters.mesh import (  # noqa: E402
    find_shape,
    find_target,
    finish,
    render_options,
)
from exporters.mesh_views import OVERSAMPLING, draw  # noqa: E402
from exporters.texture import TexturedMesh, add_texture  # noqa: E402
from ray_utils import image_rays  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_run_flags,
    environment_line,
    make_parser,
    table_head,
    table_row,
)


def main(argv=None):
    parser = make_parser(__doc__)
    add_run_flags(parser)
    parser.add_argument("--faces", type=positive_int, default=20_000,
                        help="faces of the textured mesh")
    parser.add_argument("--texture", type=positive_int, default=2048, help="texels along a side")
    parser.add_argument("--views", type=positive_int, default=3, help="number of test views")
    parser.add_argument("--out", type=Path, default=Path("log"), help="folder of the images")
    args = parser.parse_args(argv)
    device = select_device(args)
    print(f"{environment_line()}, {device}\n")
    print(table_head(["run", "drawn", "faces", "PSNR", "SSIM", "PSNR where all meshes are",
                      "there, beside the model"]))
    for folder in args.runs:
        score_run(folder, args, device)


def score_run(folder, args, device):
    """Print the table's rows of one run, and write its images."""
    run = load_checkpoint(folder, device)
    scene = run.scene["train"].to(device)
    target = find_target(run.model, scene, run.config)
    meshes = extract_meshes(run, scene, target, args)
    dataset = load_dataset(run.config, "test", read_pixels=False)
    indices = np.linspace(0, len(dataset.cameras) - 1, args.views).round().astype(int).tolist()
    images = {"photograph": [dataset.image(i).rgb.numpy() for i in indices],
              "model": [model_image(run, dataset, target, i) for i in indices]}
    drawn = {name: [draw_view(mesh, dataset.cameras, i) for i in indices]
             for name, mesh in meshes.items()}
    covered = [np.min([view[..., 3] for view in views], axis=0) > 0.5
               for views in zip(*drawn.values(), strict=True)]
    images |= {name: [view[..., :3] for view in views] for name, views in drawn.items()}
    for name in [*meshes, "model"]:
        faces = f"{num_faces(meshes[name]):,}" if name in meshes else ""
        print(table_row([folder.name, name, faces, *scores(name, images, covered)]), flush=True)
    image_utils.write_image(args.out / f"{folder.name}_meshes.png", image_utils.contact_sheet(
        [list(row) for row in zip(*images.values(), strict=True)]))


def extract_meshes(run, scene, target, args):
    """The mesh with a texture; with vertex colours, four times the faces; and with all of them."""
    config = run.config
    shape, _ = find_shape(scene, config, target)
    few = finish(shape, scene, config.replace(faces=args.faces), target)
    return {"texture": add_texture(few, target, scene, args.texture, **render_options(config)),
            "vertex colours": finish(shape, scene, config.replace(faces=4 * args.faces), target),
            "all vertices": finish(shape, scene, config.replace(faces=None), target)}


def num_faces(mesh):
    return len((mesh.mesh if isinstance(mesh, TexturedMesh) else mesh).faces)


def draw_view(mesh, cameras, index):
    """Image `[h, w, 4]` of a mesh in the resolution of a camera: colours and coverage."""
    width, height = cameras.sizes[index].tolist()
    image = draw(mesh, cameras, index, width, height)[..., [0, 1, 2, 6]]
    return image.reshape(height, OVERSAMPLING, width, OVERSAMPLING, 4).mean(axis=(1, 3))


def model_image(run, dataset, target, index):
    """The model's image `[h, w, 3]` of a test view."""
    scene = dataset.scene.to(target.survey.points.device)
    rays = scene.light_rays(image_rays(scene.cameras, index), index)
    return target.renderer.render(rays, **render_options(run.config)).rgb.cpu().numpy()


def scores(name, images, covered):
    """PSNR and SSIM beside the photographs; PSNR of covered pixels beside photographs and model."""
    values = []
    for image, photograph, model, mask in zip(images[name], images["photograph"], images["model"],
                                              covered, strict=True):
        values.append([image_utils.psnr(image, photograph), image_utils.ssim(image, photograph),
                       masked_psnr(image, photograph, mask), masked_psnr(image, model, mask)])
    psnr, ssim, silhouette, beside_model = np.mean(values, axis=0)
    return [f"{psnr:.2f}", f"{ssim:.4f}", f"{silhouette:.2f}",
            "" if name == "model" else f"{beside_model:.2f}"]


def masked_psnr(image, reference, mask):
    error = torch.as_tensor(((image - reference)[mask] ** 2).mean())
    return float(image_utils.mse_to_psnr(error.clamp(min=1e-12)))


if __name__ == "__main__":
    run_script(main)
