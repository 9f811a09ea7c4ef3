"""Draw the figures of misc/Summary.md and misc/NeRV.md with the functions that they explain.

    python scripts/draw_summary.py                       writes misc/pictures/summary_*.png
    python scripts/draw_summary.py contraction --out /tmp

Each figure calls the project's own code, so it shows what the code computes. Matplotlib is needed:
`pip install matplotlib`.
"""

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.nn.functional import normalize  # noqa: E402

from coord import contract, contract_gaussians, integrated_pos_enc  # noqa: E402
from fields.hash import downweights  # noqa: E402
from image_utils import linear_to_srgb  # noqa: E402
from ray_utils import cast_rays, compute_weights, sample_along_rays  # noqa: E402
from relighting.shading import brdf  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from stepfun import max_dilate_weights, sample_intervals  # noqa: E402

PICTURES = Path(__file__).resolve().parents[1] / "misc" / "pictures"
BLUE, ORANGE, GREEN, GREY = "#2563eb", "#ea580c", "#059669", "#9ca3af"

# A cone in the plane: radius at t = 1, and the ends of a frustum.
RADIUS, FRUSTUM = 0.14, (2.0, 4.0)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"figures to draw: {', '.join(FIGURES)} (default: all)")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in sorted(set(args.names) - set(FIGURES)):
        parser.error(f"there is no figure {name}; choose of {', '.join(FIGURES)}")
    for name in args.names or FIGURES:
        path = args.out / f"summary_{name}.png"
        save(FIGURES[name](pyplot()), path)
        print(path)


def pyplot():
    """Matplotlib without a window, in the style of the figures."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        raise UserError("drawing needs Matplotlib; install it by `pip install matplotlib`."
                        ) from None
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.titlesize": 10, "figure.dpi": 100})
    return plt


def save(figure, path):
    """Write a figure as a PNG of few colours."""
    figure.canvas.draw()
    image = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    image.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    figure.clear()


# mip-NeRF.


def draw_gaussian(plt):
    """Random points of a frustum, and the Gaussian with their moments."""
    figure, ax = plt.subplots(figsize=(8, 2.4), layout="constrained")
    far = FRUSTUM[1] + 0.4
    for sign in (1, -1):
        ax.plot([0, far], [0, sign * RADIUS * far], color=GREY, lw=1)
    ax.plot([0, far], [0, 0], color=GREY, lw=1, ls="--")
    for t in FRUSTUM:
        ax.plot([t, t], [-RADIUS * t, RADIUS * t], color="black", lw=1)
    ax.scatter(*frustum_points(2000), s=1.5, color=BLUE, alpha=0.5, lw=0)
    mean, deviations = plane_gaussian(*FRUSTUM)
    for scale in (1, 2):
        ax.plot(*ellipse(mean, scale * deviations), color=ORANGE, lw=1.8)
    ax.plot(*mean, "o", color=ORANGE, ms=5)
    ax.set(aspect="equal", xlim=(-0.1, far + 0.1), xlabel="t", yticks=[],
           title="Points of a frustum; its Gaussian at one and two standard deviations")
    return figure


def frustum_points(count):
    """Uniform random points `[2, count]` of the frustum, in a plane through its axis."""
    rng = np.random.default_rng(0)
    t = np.cbrt(rng.uniform(FRUSTUM[0]**3, FRUSTUM[1]**3, count))
    turn = rng.uniform(0, 2 * np.pi, count)
    return np.stack([t, RADIUS * t * np.sqrt(rng.uniform(size=count)) * np.cos(turn)])


def plane_gaussian(t0, t1):
    """Mean and standard deviations `[2]`, along and across, of a frustum of the drawn cone."""
    direction = torch.tensor([1.0, 0.0, 0.0])
    gaussians = cast_rays(torch.tensor([t0, t1]), torch.zeros(3), direction,
                          torch.tensor([RADIUS]), "cone")
    return gaussians.means[0, :2].numpy(), gaussians.covs[0, :2].sqrt().numpy()


def ellipse(mean, deviations):
    turns = np.linspace(0, 2 * np.pi, 90)
    return mean[:, None] + deviations[:, None] * np.stack([np.cos(turns), np.sin(turns)])


def draw_encoding(plt):
    """Sines of a coordinate along a ray: averaged over the cone's Gaussians, and at points."""
    direction, radius = torch.tensor([0.5, 0.0, -1.0]), torch.tensor([0.04])
    fenceposts = sample_along_rays(torch.tensor([0.2]), torch.tensor([8.0]), 400)
    gaussians = cast_rays(fenceposts, torch.zeros(3), direction, radius, "cone")
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.5), sharey=True, layout="constrained")
    for ax, title, covs in ((axes[0], "at points", torch.zeros_like(gaussians.covs)),
                            (axes[1], "averaged over Gaussians", gaussians.covs)):
        sines = integrated_pos_enc(gaussians.means, covs, 0, 8)[:, :24].reshape(-1, 8, 3)[..., 0]
        image = ax.imshow(sines.T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1, origin="lower",
                          extent=(0.2, 8, -0.5, 7.5))
        ax.set(title=f"sin($2^l x$) {title}", xlabel="distance from the camera")
    axes[0].set_ylabel("degree $l$")
    figure.colorbar(image, ax=axes)
    return figure


# mip-NeRF 360.


def draw_contraction(plt):
    """Circles, lines and Gaussians of unbounded space, before and after contraction."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for ax, limit, contracted in ((axes[0], 6.5, False), (axes[1], 2.15, True)):
        for offset in range(-6, 7):
            along = np.linspace(-300, 300, 20001)
            line = np.stack([along, np.full_like(along, offset)])
            for points in (line, line[::-1]):
                ax.plot(*placed(points, contracted), color=GREY, lw=0.5)
        for radius, colour in ((1, "black"), (2, BLUE), (4, GREEN)):
            circle = ellipse(np.zeros(2), np.full(2, float(radius)))
            ax.plot(*placed(circle, contracted), color=colour, lw=1.5)
        for distance in (0.6, 1.8, 3.2, 5.4):
            ax.plot(*cone_gaussian(distance, contracted), color=ORANGE, lw=1.5)
        ax.set(aspect="equal", xlim=(-limit, limit), ylim=(-limit, limit))
    axes[0].set_title("space: circles of radius 1, 2 and 4")
    axes[1].set_title("contracted into radius 2")
    return figure


def placed(points, contracted):
    """Points `[2, N]` of a plane through the origin, contracted or not."""
    if not contracted:
        return points
    flat = np.concatenate([points, np.zeros_like(points[:1])]).T
    return contract(torch.from_numpy(flat)).numpy().T[:2]


def cone_gaussian(distance, contracted):
    """The outline `[2, N]` of a Gaussian that grows with its distance, two deviations wide."""
    mean = distance * torch.tensor([math.cos(0.45), math.sin(0.45), 0.0])
    cov = (0.1 * distance) ** 2 * torch.eye(3)
    if contracted:
        mean, cov = contract_gaussians(mean, cov)
    values, vectors = np.linalg.eigh(cov[:2, :2].numpy())
    return mean[:2, None].numpy() + vectors @ ellipse(np.zeros(2), 2 * np.sqrt(values))


def draw_proposals(plt):
    """A density along a ray, its weights in coarse intervals, and the intervals sampled there."""
    figure, (ax, ticks) = plt.subplots(2, 1, figsize=(8, 3.2), sharex=True, layout="constrained",
                                       height_ratios=(3, 1))
    edges = torch.linspace(0, 1, 25)
    weights = weights_of(edges)
    dilated_edges, dilated = max_dilate_weights(edges, weights, 0.0025 + 0.5 / 24, (0.0, 1.0),
                                                renormalize=True)
    dilated_edges, dilated = dilated_edges[1:-1], dilated[1:-1]
    fine = sample_intervals(dilated_edges, dilated.clamp(min=1e-9).log(), 32, domain=(0.0, 1.0))
    ax.stairs(per_length(weights, edges), edges, color=BLUE, fill=True, alpha=0.25,
              label="24 even intervals")
    ax.stairs(per_length(dilated, dilated_edges), dilated_edges, color=ORANGE, label="dilated")
    ax.stairs(per_length(weights_of(fine), fine), fine, color=GREEN, label="32 sampled intervals")
    ax.set(ylabel="weight per length")
    ax.legend(fontsize=8, loc="upper left")
    ticks.vlines(edges, 1.1, 1.9, color=BLUE, lw=0.8)
    ticks.vlines(fine, 0.1, 0.9, color=GREEN, lw=0.8)
    ticks.set(yticks=[0.5, 1.5], yticklabels=["sampled", "coarse"], xlabel="s")
    return figure


def per_length(weights, edges):
    return weights / (edges[1:] - edges[:-1])


def weights_of(edges):
    """Weights `[S]` of intervals in a haze before a wall at 0.62."""
    middle = (edges[1:] + edges[:-1]) / 2
    density = 14 * torch.exp(-((middle - 0.3) / 0.03) ** 2) + 90 * ((middle > 0.62).float())
    return compute_weights(density, edges, torch.tensor([0.0, 0.0, 1.0]))


# Zip-NeRF.


def draw_levels(plt):
    """Cells of three levels under a Gaussian, and the factor of each level by distance."""
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.5), layout="constrained",
                                width_ratios=(1, 1, 1, 1.9))
    deviation = 1 / 24
    for ax, cells in zip(axes, (8, 16, 32), strict=False):
        for line in np.arange(cells + 1) / cells:
            ax.plot([line, line], [0, 1], color=GREY, lw=0.6)
            ax.plot([0, 1], [line, line], color=GREY, lw=0.6)
        for scale in (1, 2):
            ax.plot(*ellipse(np.full(2, 0.47), np.full(2, scale * deviation)), color=ORANGE, lw=1.6)
        factor = downweights(torch.tensor(cells * deviation)).item()
        ax.set(aspect="equal", xticks=[], yticks=[], title=f"{cells} cells: {factor:.2f}")
        ax.spines[:].set_visible(False)
    distance = torch.logspace(-1, 2, 200)
    for cells, colour in ((16, BLUE), (64, GREEN), (256, ORANGE), (1024, "black")):
        axes[3].plot(distance, downweights(cells * distance * 0.002), color=colour,
                     label=f"{cells} cells")
    axes[3].set(xscale="log", xlabel="distance from the camera", ylabel="factor")
    axes[3].legend(fontsize=7)
    return figure


# NeRV.


def draw_shading(plt):
    """Spheres of four roughnesses under one distant light."""
    roughnesses = (0.15, 0.3, 0.5, 0.9)
    figure, axes = plt.subplots(1, 4, figsize=(8, 2.3), layout="constrained")
    for ax, roughness in zip(axes, roughnesses, strict=True):
        ax.imshow(lit_sphere(roughness))
        ax.set_title(f"roughness {roughness:g}")
        ax.axis("off")
    return figure


def lit_sphere(roughness, size=180):
    """sRGB `[size, size, 3]` of a sphere under a light from the upper left; white around it."""
    axis = (torch.arange(size) + 0.5) / size * 2.1 - 1.05
    y, x = torch.meshgrid(-axis, axis, indexing="ij")
    inside = x**2 + y**2 < 1
    normals = torch.stack([x, y, (1 - x**2 - y**2).clamp(min=0).sqrt()], dim=-1)
    light = normalize(torch.tensor([-1.0, 1.0, 1.3]), dim=0).expand_as(normals)
    view = torch.tensor([0.0, 0.0, 1.0]).expand_as(normals)
    albedo = torch.tensor([0.75, 0.2, 0.12]).expand_as(normals)
    reflected = brdf(normals, light, view, albedo, torch.full_like(x, roughness)[..., None])
    cosine = (normals * light).sum(dim=-1, keepdim=True).clamp(min=0)
    radiance = 2.5 * reflected * cosine + 0.04 * albedo
    return torch.where(inside[..., None], linear_to_srgb(radiance.clamp(0, 1)), 1.0).numpy()


FIGURES = {"gaussian": draw_gaussian, "encoding": draw_encoding, "contraction": draw_contraction,
           "proposals": draw_proposals, "levels": draw_levels, "shading": draw_shading}


if __name__ == "__main__":
    run_script(main)
