"""Accuracy of the BRDF in relighting photographs under one light at a time (OLAT): a table.

    python scripts/relight_olat.py --folder data/relight_olat --out log/relight_olat

The folder holds light_directions.txt, a unit vector towards a distant light in each row (x right,
y up, z towards the camera), and for each object a folder with <object>.<row>.png from one camera
and <object>.mask.png. Normals, albedo and roughness are fitted to the pixels inside the mask under
some of the lights, and images under the other lights are predicted; each light is held out once.
Cast shadows and indirect light are not modelled.
"""

import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

import image_utils  # noqa: E402
from relighting import shading  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, first_line, run_script  # noqa: E402
from runtime.provenance import git_commit  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_device_flag,
    make_parser,
    table_head,
    table_row,
)

# Folds of the cross-validation, and fewest lights.
FOLDS = 4
MIN_LIGHTS = 6

# Pixels darker than this may be in a cast shadow and get a small weight.
DARK, DARK_WEIGHT = 0.04, 0.05

# With so few lights most pixels show no highlight: a prior pulls their roughness towards that of
# the whole object, which starts at INITIAL_ROUGHNESS.
ROUGHNESS_PRIOR = 0.01
INITIAL_ROUGHNESS = 0.6


class Photographs(NamedTuple):
    """An object under K lights, at the P pixels inside its mask.

    values: `[K, P, 3]`, as stored, in [0, 1]; directions: `[K, 3]` to the lights; mask: bool
    `[h, w]`.
    """

    values: Tensor
    directions: Tensor
    mask: Tensor


class Surface(NamedTuple):
    """P surface points: normals and albedo `[P, 3]`, roughness `[P, 1]`."""

    normals: Tensor
    albedo: Tensor
    roughness: Tensor


def main(argv=None):
    args = parse(argv)
    device, begin = select_device(args), time.perf_counter()
    objects = find_objects(args.folder, args.skip)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
    print(f"commit {git_commit()}, {device}, torch {torch.__version__}, {torch.get_num_threads()} "
          f"threads; {args.steps} steps, every {args.stride} pixels\n")
    print("PSNR in dB of held-out lights, of stored values inside the mask; in brackets, after "
          "scaling each predicted image to the brightness of its photograph.\n")
    print(table_head(["object", "pixels", "decoding", "mean image", "Lambert", "shading.brdf",
                      "roughness"]))
    for name in objects:
        photographs = read_object(args.folder, name, args.stride, device)
        for decoding in ENCODINGS:
            print(score_object(photographs, name, decoding, args), flush=True)
    print(f"\n{time.perf_counter() - begin:.0f} seconds")
    return 0


def parse(argv):
    """The parsed command line."""
    parser = make_parser(__doc__)
    flag = parser.add_argument
    flag("--folder", type=Path, required=True, help="the photographs")
    flag("--out", type=Path, help="folder for contact sheets: for one light of each fold the "
         "photograph, both predictions (shading.brdf, Lambert), normals, albedo, roughness")
    flag("--skip", nargs="*", default=["chrome"], help="objects to skip, such as mirrors")
    flag("--stride", type=int, default=3, help="use every n-th row and column")
    flag("--steps", type=int, default=100, help="steps of Adam")
    add_device_flag(parser, "cpu")
    args = parser.parse_args(argv)
    if min(args.stride, args.steps) < 1:
        parser.error("--stride and --steps must be at least 1")
    return args


def find_objects(folder, skip):
    """The names of the folders that hold a mask of the same name."""
    names = {path.name for path in folder.glob("*") if (path / f"{path.name}.mask.png").exists()}
    if not names - set(skip):
        raise UserError(f"--folder {folder} holds no <object>/<object>.mask.png; give a folder of "
                        "photographs under one light at a time.")
    return sorted(names - set(skip))


def read_directions(path):
    """Unit vectors `[K, 3]` towards the lights."""
    try:
        lines = [line.split("#")[0].split() for line in path.read_text().splitlines()]
        rows = torch.tensor([[float(number) for number in line] for line in lines if line])
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); it needs three numbers per "
                        "light.") from None
    if len(rows) < MIN_LIGHTS or rows.shape[1] != 3:
        raise UserError(f"{path} does not hold three numbers for each of {MIN_LIGHTS} lights or "
                        "more; write a row per light.")
    if not ((rows.norm(dim=-1) - 1).abs() < 0.01).all():
        raise UserError(f"{path} holds vectors that are not of length 1; scale them.")
    return normalize(rows, dim=-1)


def read_object(folder, name, stride, device):
    """The `Photographs` of an object, with every `stride`th row and column."""
    directions = read_directions(folder / "light_directions.txt")
    paths = [folder / name / f"{name}.{word}.png" for word in ("mask", *range(len(directions)))]
    width, height = image_utils.image_size(paths[0])
    for path in paths[1:]:
        if image_utils.image_size(path) != (width, height):
            raise UserError(f"{path} and {paths[0]} differ in size; all images must be from one "
                            "camera.")
    mask = torch.from_numpy(image_utils.read_mask(paths[0], width, height)[::stride, ::stride]) > 0
    if not mask.any():
        raise UserError(f"{paths[0]} is black; the object must be white in it.")
    images = [image_utils.read_image(path, 3)[::stride, ::stride] for path in paths[1:]]
    values = torch.from_numpy(np.stack(images))[:, mask].to(device) / 255
    return Photographs(values, directions.to(device), mask)


# Functions that encode radiance as stored values, and decode it.
ENCODINGS = {"as stored": (lambda x: x, lambda x: x),
             "sRGB": (image_utils.linear_to_srgb, image_utils.srgb_to_linear)}


def lambert(normals, light_dirs, view_dirs, albedo, roughness):
    """Lambertian reflectance, with the arguments of `shading.brdf`."""
    return albedo / math.pi


def shade(brdf, surface, directions):
    """Radiance `[K, P, 3]` to the camera of a `Surface` under each of K lights.

    A white Lambertian surface that faces a light has radiance 1.
    """
    light_dirs, view_dir = directions[:, None], directions.new_tensor([0.0, 0.0, 1.0])
    irradiance = math.pi * shading.dot(surface.normals, light_dirs).clamp(min=0)
    return irradiance * brdf(surface.normals, light_dirs, view_dir, surface.albedo,
                             surface.roughness)


def lambertian_fit(radiance, weight, directions):
    """Normals and albedo `[P, 3]` of a Lambertian surface: weighted least-squares fit.

    radiance: `[K, P, 3]`; weight: `[K, P]`.
    """
    squares = torch.einsum("kp,ki,kj->pij", weight, directions, directions)
    squares = squares + 1e-3 * torch.eye(3).to(squares)
    sums = torch.einsum("kp,ki->pi", weight * radiance.mean(dim=-1), directions)
    normals = torch.linalg.solve(squares, sums)
    normals[:, 2].clamp_(min=1e-3)  # Visible surfaces face the camera.
    normals = normalize(normals, dim=-1)
    cosine = shading.dot(normals, directions[:, None]).clamp(min=0)
    weight = weight[..., None]
    albedo = (weight * cosine * radiance).sum(dim=0) / (weight * cosine**2).sum(dim=0).clamp(1e-3)
    return normals, albedo.clamp(min=1e-3)


def fit(brdf, photographs, decoding, steps):
    """The `Surface` that fits `Photographs`, by weighted least squares of stored values."""
    values, directions, _ = photographs
    encode, decode = ENCODINGS[decoding]
    weight = torch.where(values.amax(dim=-1) < DARK, DARK_WEIGHT, 1.0)
    normals, albedo = lambertian_fit(decode(values), weight, directions)
    low, high = shading.MIN_ROUGHNESS, 1
    common = albedo.new_tensor((INITIAL_ROUGHNESS - low) / (high - low)).logit()
    log_albedo, offset = albedo.log(), torch.zeros_like(albedo[:, :1])
    parameters = [x.requires_grad_() for x in (normals, log_albedo, common, offset)]

    def surface():
        return Surface(normalize(normals, dim=-1), log_albedo.exp(),
                       low + (high - low) * (common + offset).sigmoid())

    # Early steps are the largest; a short memory forgets them soon.
    adam = torch.optim.Adam(parameters, lr=0.05, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        adam.zero_grad()
        error = encode(shade(brdf, surface(), directions)) - values
        loss = (weight[..., None] * error**2).sum() + ROUGHNESS_PRIOR * (offset**2).sum()
        loss.backward()
        adam.step()
        schedule.step()
    return Surface(*(x.detach() for x in surface()))


def score_object(photographs, name, decoding, args):
    """The table's row of an object; with `--out`, also writes its contact sheet."""
    values, directions, mask = photographs
    encode, models = ENCODINGS[decoding][0], {"Lambert": lambert, "shading.brdf": shading.brdf}
    predicted = {key: torch.empty_like(values) for key in ("mean", *models)}
    rows, roughness = [], []
    for fold in range(FOLDS):
        held_out = torch.arange(len(values), device=values.device) % FOLDS == fold
        predicted["mean"][held_out] = values[~held_out].mean(dim=0)
        training = Photographs(values[~held_out], directions[~held_out], mask)
        for key, brdf in models.items():
            surface = fit(brdf, training, decoding, args.steps)
            predicted[key][held_out] = encode(shade(brdf, surface, directions[held_out]))
        roughness.append(surface.roughness.median())
        columns = (values[fold], predicted["shading.brdf"][fold], predicted["Lambert"][fold],
                   0.5 + 0.5 * surface.normals, encode(surface.albedo),
                   surface.roughness.expand(-1, 3))
        rows.append([masked_image(x, mask) for x in columns])
    if args.out:
        sheet = image_utils.contact_sheet(rows)
        image_utils.write_image(args.out / f"{name}_{decoding.replace(' ', '_')}.png", sheet)
    scores = [score(x, values) for x in predicted.values()]
    return table_row([name, f"{values.shape[1]:,}", decoding, *scores,
                      f"{torch.stack(roughness).mean():.2f}"])


def score(predicted, values):
    """PSNR of images `[K, P, 3]` as text; in brackets, after the best scale of each image."""
    product, square = ((predicted * x).sum(dim=(1, 2), keepdim=True) for x in (values, predicted))
    scaled = product / square.clamp(min=1e-12) * predicted
    plain, scaled = (image_utils.psnr(x.clamp(0, 1), values) for x in (predicted, scaled))
    return f"{plain:.2f} ({scaled:.2f})"


def masked_image(values, mask):
    """Values `[P, 3]` inside the mask on a white image `[h, w, 3]`, cropped to the mask."""
    image = torch.ones(*mask.shape, 3)
    image[mask] = values.cpu()
    ys, xs = mask.nonzero().unbind(-1)
    return image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


if __name__ == "__main__":
    run_script(main)
