"""How well the BRDF relights photographs of one object under one light at a time: a table.

    python scripts/relight_olat.py --folder data/relight_olat --out log/relight_olat

The folder holds light_directions.txt, a unit vector towards a distant light in each row (x right,
y up, z towards the camera), and for each object a folder with <object>.<row>.png from one camera
and <object>.mask.png. Normals, albedo and roughness are fitted to the pixels under the mask for
some of the lights, and the other lights predicted; each light is held out once. Shadows that are
cast and light from other surfaces are not modelled.
"""

import argparse
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

FOLDS = 4
FEWEST_LIGHTS = 6

# Where a photograph is darker than this, something may have kept the light off: it counts little.
DARK, DARK_WEIGHT = 0.04, 0.05

# So few lights show most pixels no highlight; what is not seen is taken from the whole object.
ROUGHNESS_PRIOR = 0.01
FIRST_ROUGHNESS = 0.6


class Photographs(NamedTuple):
    """An object under K lights, at the P pixels under its mask.

    values: `[K, P, 3]` as they are stored, in [0, 1]; directions: `[K, 3]`; mask: bool `[h, w]`.
    """

    values: Tensor
    directions: Tensor
    mask: Tensor


class Surface(NamedTuple):
    """P points: normals and albedo `[P, 3]`, roughness `[P, 1]`."""

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
    print("PSNR in dB of held-out lights, of stored values under the mask; in brackets after each "
          "predicted picture was scaled to be as bright as its photograph.\n")
    print("| object | pixels | decoding | mean picture | Lambert | shading.brdf | roughness |\n|"
          + " --- |" * 7)
    for name in objects:
        photographs = read_object(args.folder, name, args.stride, device)
        for decoding in CODES:
            print(score_object(photographs, name, decoding, args), flush=True)
    print(f"\n{time.perf_counter() - begin:.0f} seconds")
    return 0


def parse(argv):
    """The command line's flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--folder", type=Path, required=True, help="the photographs")
    flag("--out", type=Path, help="for contact sheets: for a light of each fold its photograph, "
         "both predictions (shading.brdf, Lambert), normals, albedo, roughness")
    flag("--skip", nargs="*", default=["chrome"], help="objects to leave out, such as mirrors")
    flag("--stride", type=int, default=3, help="take every so many rows and columns")
    flag("--steps", type=int, default=100, help="of Adam")
    flag("--device", choices=["auto", "cpu", "cuda", "mps"], default="cpu")
    args = parser.parse_args(argv)
    if min(args.stride, args.steps) < 1:
        parser.error("--stride and --steps must be at least 1")
    return args


def find_objects(folder, skip):
    """Names of the folders that hold a mask of their own name."""
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
    if len(rows) < FEWEST_LIGHTS or rows.shape[1] != 3:
        raise UserError(f"{path} does not hold three numbers for each of {FEWEST_LIGHTS} lights or "
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
            raise UserError(f"{path} is not of the size of {paths[0]}; one camera took them all.")
    mask = torch.from_numpy(image_utils.read_mask(paths[0], width, height)[::stride, ::stride]) > 0
    if not mask.any():
        raise UserError(f"{paths[0]} is black; the object must be white in it.")
    images = [image_utils.read_image(path, 3)[::stride, ::stride] for path in paths[1:]]
    values = torch.from_numpy(np.stack(images))[:, mask].to(device) / 255
    return Photographs(values, directions.to(device), mask)


def to_srgb(radiance):
    """Radiance as sRGB stores it."""
    return torch.where(radiance < 0.0031308, 12.92 * radiance,
                       1.055 * radiance.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


def from_srgb(values):
    """What sRGB stores as radiance."""
    return torch.where(values < 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


# How radiance is stored, and how it is got back.
CODES = {"as stored": (lambda x: x, lambda x: x), "sRGB": (to_srgb, from_srgb)}


def lambert(normals, incoming, outgoing, albedo, roughness):
    """A matt surface's reflectance, with the arguments of `shading.brdf`."""
    return albedo / math.pi


def shade(brdf, surface, directions):
    """Radiance `[K, P, 3]` to the camera of a `Surface` under K lights, one at a time.

    Their strength is such that a white matt surface that faces one has radiance 1.
    """
    incoming, outgoing = directions[:, None], directions.new_tensor([0.0, 0.0, 1.0])
    arriving = math.pi * shading.dot(surface.normals, incoming).clamp(min=0)
    return arriving * brdf(surface.normals, incoming, outgoing, surface.albedo, surface.roughness)


def matt_surface(radiance, weight, directions):
    """Normals and albedo `[P, 3]` by least squares, as if matt, of radiance `[K, P, 3]`.

    weight: `[K, P]`.
    """
    squares = torch.einsum("kp,ki,kj->pij", weight, directions, directions)
    squares = squares + 1e-3 * torch.eye(3).to(squares)
    sums = torch.einsum("kp,ki->pi", weight * radiance.mean(dim=-1), directions)
    normals = torch.linalg.solve(squares, sums)
    normals[:, 2].clamp_(min=1e-3)  # What the camera sees is turned towards it.
    normals = normalize(normals, dim=-1)
    cosine = shading.dot(normals, directions[:, None]).clamp(min=0)
    weight = weight[..., None]
    albedo = (weight * cosine * radiance).sum(dim=0) / (weight * cosine**2).sum(dim=0).clamp(1e-3)
    return normals, albedo.clamp(min=1e-3)


def fit(brdf, photographs, decoding, steps):
    """The `Surface` that explains `Photographs`, by weighted squares of stored values."""
    values, directions, _ = photographs
    encode, decode = CODES[decoding]
    weight = torch.where(values.amax(dim=-1) < DARK, DARK_WEIGHT, 1.0)
    normals, albedo = matt_surface(decode(values), weight, directions)
    low, high = shading.MIN_ROUGHNESS, 1
    common = albedo.new_tensor((FIRST_ROUGHNESS - low) / (high - low)).logit()
    logarithm, own = albedo.log(), torch.zeros_like(albedo[:, :1])
    free = [x.requires_grad_() for x in (normals, logarithm, common, own)]

    def surface():
        return Surface(normalize(normals, dim=-1), logarithm.exp(),
                       low + (high - low) * (common + own).sigmoid())

    # Early steps are the largest, and are soon to be forgotten.
    adam = torch.optim.Adam(free, lr=0.05, betas=(0.9, 0.95))
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        adam.zero_grad()
        error = encode(shade(brdf, surface(), directions)) - values
        loss = (weight[..., None] * error**2).sum() + ROUGHNESS_PRIOR * (own**2).sum()
        loss.backward()
        adam.step()
        slower.step()
    return Surface(*(x.detach() for x in surface()))


def score_object(photographs, name, decoding, args):
    """The table's row of an object; with `--out` its contact sheet is written too."""
    values, directions, mask = photographs
    encode, models = CODES[decoding][0], {"Lambert": lambert, "shading.brdf": shading.brdf}
    predicted = {key: torch.empty_like(values) for key in ("mean", *models)}
    rows, roughness = [], []
    for fold in range(FOLDS):
        held = torch.arange(len(values), device=values.device) % FOLDS == fold
        predicted["mean"][held] = values[~held].mean(dim=0)
        training = Photographs(values[~held], directions[~held], mask)
        for key, brdf in models.items():
            surface = fit(brdf, training, decoding, args.steps)
            predicted[key][held] = encode(shade(brdf, surface, directions[held]))
        roughness.append(surface.roughness.median())
        columns = (values[fold], predicted["shading.brdf"][fold], predicted["Lambert"][fold],
                   0.5 + 0.5 * surface.normals, encode(surface.albedo),
                   surface.roughness.expand(-1, 3))
        rows.append([picture(x, mask) for x in columns])
    if args.out:
        sheet = image_utils.contact_sheet(rows)
        image_utils.write_image(args.out / f"{name}_{decoding.replace(' ', '_')}.png", sheet)
    scores = " | ".join(score(x, values) for x in predicted.values())
    return (f"| {name} | {values.shape[1]:,} | {decoding} | {scores} "
            f"| {torch.stack(roughness).mean():.2f} |")


def score(predicted, values):
    """PSNR of pictures `[K, P, 3]`, as text; in brackets after a factor for each."""
    product, square = ((predicted * x).sum(dim=(1, 2), keepdim=True) for x in (values, predicted))
    scaled = product / square.clamp(min=1e-12) * predicted
    plain, scaled = (image_utils.psnr(x.clamp(0, 1), values) for x in (predicted, scaled))
    return f"{plain:.2f} ({scaled:.2f})"


def picture(values, mask):
    """Values `[P, 3]` where they were seen, on white `[h, w, 3]`, cut to the mask."""
    image = torch.ones(*mask.shape, 3)
    image[mask] = values.cpu()
    ys, xs = mask.nonzero().unbind(-1)
    return image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


if __name__ == "__main__":
    run_script(main)
