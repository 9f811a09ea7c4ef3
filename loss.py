"""One function per loss term, and their weighted sum.

A term is `fn(model, outputs, batch) -> scalar`, unweighted; its weight is the flag
`--<name>_loss_mult`. `outputs` holds one `RenderOutput` per level, coarse to fine.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

import stepfun
from structures import Batch, RenderOutput

Outputs = list[RenderOutput]

# Colour errors well below this are penalised quadratically, larger ones linearly.
CHARBONNIER_PADDING = 1e-3

# Light that passes a known point counts as if it came from this far behind it, in s.
PASSED = 0.1


def fine_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Squared error of the finest level's colours (mip-NeRF, eq. 17)."""
    return colour_error(outputs[-1].rgb, batch)


def coarse_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Squared error of the coarser levels' colours, summed over levels (mip-NeRF, eq. 17)."""
    coarser = outputs[model.first_rgb_level : -1]
    errors = (colour_error(output.rgb, batch) for output in coarser)
    return sum(errors, batch.rgb.new_zeros(()))


def charbonnier_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Charbonnier error of the finest level's colours (mip-NeRF 360, section 5)."""
    squared = (outputs[-1].rgb - batch.rgb) ** 2
    return mean_of_colours((squared + CHARBONNIER_PADDING**2).sqrt(), batch)


def interlevel_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Excess of the finest histogram over the proposals' bounds (mip-NeRF 360, eq. 13).

    Summed over proposal rounds and averaged over intervals, as in the official code.
    """
    finest = outputs[-1]
    excess = (stepfun.interlevel_loss(finest.sdist, finest.weights, output.sdist, output.weights)
              for output in outputs[:-1])
    per_ray = sum(excess, torch.zeros_like(finest.acc)) / finest.weights.shape[-1]
    return mean_over_rays(per_ray, batch)


def antialiased_interlevel_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Excess of the blurred finest histogram over the proposals' (Zip-NeRF, eq. 7).

    Summed over proposal rounds, each with its own blur, and averaged over its intervals.
    """
    finest = outputs[-1]
    excess = (stepfun.antialiased_interlevel_loss(
                  finest.sdist, finest.weights, output.sdist, output.weights, width
              ) / output.weights.shape[-1]
              for output, width in zip(outputs[:-1], model.pulse_widths, strict=True))
    return mean_over_rays(sum(excess, torch.zeros_like(finest.acc)), batch)


def distortion_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Spread of the finest level's weights along rays (mip-NeRF 360, eq. 15)."""
    fenceposts = model.distortion_fenceposts(outputs[-1])
    return mean_over_rays(stepfun.distortion_loss(fenceposts, outputs[-1].weights), batch)


def grid_decay_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Mean square of each level of the hash grids, summed (Zip-NeRF, section 4).

    Scaled by the rank's fraction of the global batch, so that the losses of ranks add up. It counts
    in the first micro-batch alone: its gradient fills whole tables.
    """
    weight = batch.penalty_weight
    if isinstance(weight, float):
        return batch.rgb.new_zeros(())
    weight = batch.loss_weights().sum() if weight is None else weight
    return weight / batch.total_weight() * sum(field.grid_decay() for field in model.grids())


def visibility_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Error of the visibility field against the marched density (NeRV, section 4.3)."""
    error = outputs[-1].visibility_error
    return mean_over_rays(torch.zeros_like(outputs[-1].acc) if error is None else error, batch)


def orientation_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Weight of samples whose predicted normals face away from the camera (Ref-NeRF, eq. 11).

    Of the finest level, times the squared cosine. Directions are those of rays, not `viewdirs`:
    in NDC, only they are in the coordinates of the normals.
    """
    output = outputs[-1]
    if output.predicted_normals is None:
        return mean_over_rays(torch.zeros_like(output.acc), batch)
    towards_camera = -normalize(batch.rays.directions, dim=-1)[..., None, :]
    cosine = (output.predicted_normals * towards_camera).sum(dim=-1)
    return mean_over_rays((output.weights * cosine.clamp(max=0) ** 2).sum(dim=-1), batch)


def predicted_normal_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Difference of predicted normals from those of the density (Ref-NeRF, eq. 10).

    Half the squared distance of the unit vectors, of the finest level, weighted by the samples'
    weights. As in the released code, it trains both normals and the weights.
    """
    output = outputs[-1]
    if output.predicted_normals is None or output.density_normals is None:
        return mean_over_rays(torch.zeros_like(output.acc), batch)
    cosine = (output.density_normals * output.predicted_normals).sum(dim=-1)
    return mean_over_rays((output.weights * (1 - cosine)).sum(dim=-1), batch)


def depth_points_loss(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Mean distance in s of the weights from known points, summed over all levels.

    Unlike a mean over rays it is a sum weighted by `distance_weight`.
    """
    total = batch.rgb.new_zeros(())
    if batch.distance is None or batch.distance_weight is None:
        return total
    rows = (batch.distance_weight[..., 0] > 0).nonzero(as_tuple=True)
    known = model.normalized_distance(batch.rays[rows], batch.distance[rows])
    for output in outputs:
        weights, s = output.weights[rows], stepfun.midpoints(output.sdist[rows])
        off = ((s - known).abs() * weights).sum(dim=-1) + PASSED * (1 - output.acc[rows])
        total = total + (batch.distance_weight[rows][..., 0] * off).sum()
    return total


LOSSES = {
    "fine": fine_loss, "coarse": coarse_loss, "charbonnier": charbonnier_loss,
    "interlevel": interlevel_loss, "antialiased_interlevel": antialiased_interlevel_loss,
    "distortion": distortion_loss, "grid_decay": grid_decay_loss, "visibility": visibility_loss,
    "orientation": orientation_loss, "predicted_normal": predicted_normal_loss,
}


def colour_error(rgb: Tensor, batch: Batch) -> Tensor:
    """Squared error, averaged over channels and, weighted by lossmult, over rays.

    The official code sums over channels. The mean differs by a factor of 3, which Adam's step size
    hardly depends on, and converts to PSNR.
    """
    return mean_of_colours((rgb - batch.rgb) ** 2, batch)


def mean_of_colours(errors: Tensor, batch: Batch) -> Tensor:
    """Mean of `errors [..., 3]` over channels and rays; those of outliers count as 0."""
    per_ray = errors.mean(dim=-1)
    return mean_over_rays(per_ray if batch.inliers is None else batch.inliers * per_ray, batch)


def mean_over_rays(values: Tensor, batch: Batch) -> Tensor:
    """Mean of per-ray `values [...]`, weighted by lossmult over the global batch."""
    return (batch.loss_weights()[..., 0] * values).sum() / batch.total_weight()


def weighted_loss(config, model, outputs: Outputs, batch: Batch) -> tuple[Tensor, dict]:
    """Weighted sum of all terms whose weight is not 0, and a `dict` of scalars to log."""
    total: Any = 0.0
    scalars = {}
    if config.robust:
        batch, scalars["cells"] = without_outliers(model.outliers, outputs[-1], batch)
    for name, fn in LOSSES.items():
        weight = getattr(config, f"{name}_loss_mult")
        if weight > 0:
            term = fn(model, outputs, batch)
            total = total + weight * term
            scalars[f"loss/{name}"] = term.detach()
    if config.depth_points > 0:
        term = depth_points_loss(model, outputs, batch)
        total = total + config.depth_points * term
        scalars["loss/depth_points"] = term.detach()
    scalars["loss/total"] = torch.as_tensor(total).detach()
    return total, scalars


def without_outliers(outliers, output: RenderOutput, batch: Batch) -> tuple[Batch, Tensor]:
    """The batch with its inliers, by the errors of the finest `output` (RobustNeRF).

    Also returns what the `OutlierMap` counts of it. No gradient flows through either.
    """
    errors = ((output.rgb.detach() - batch.rgb) ** 2).mean(dim=-1)
    is_low, is_valid = errors <= outliers.threshold, batch.loss_weights()[..., 0] > 0
    inliers = outliers.inliers(is_low, batch.cells)
    return replace(batch, inliers=inliers), outliers.count(is_low, is_valid, batch.cells)


def level_errors(model, outputs: Outputs, batch: Batch) -> Tensor:
    """Colour error of each level with colours, without gradient: `[levels]`."""
    levels = outputs[model.first_rgb_level :]
    return torch.stack([colour_error(output.rgb.detach(), batch) for output in levels])
