"""One function per loss term, and their weighted sum.

A term is `fn(model, outputs, batch) -> scalar`, unweighted; its weight is the flag
`--<name>_loss_mult`. `outputs` are a model's levels, coarse to fine.
"""

import torch

import stepfun

# Below it a colour error counts by its square, beyond it by itself.
CHARBONNIER_PADDING = 1e-3


def fine_loss(model, outputs, batch):
    """Squared error of the finest level's colours (mip-NeRF, eq. 17)."""
    return colour_error(outputs[-1].rgb, batch)


def coarse_loss(model, outputs, batch):
    """Squared error of the coarser levels' colours, summed over levels (mip-NeRF, eq. 17)."""
    coarser = outputs[model.first_rgb_level : -1]
    errors = (colour_error(output.rgb, batch) for output in coarser)
    return sum(errors, batch.rgb.new_zeros(()))


def charbonnier_loss(model, outputs, batch):
    """A smoothed absolute error of the finest level's colours (mip-NeRF 360, section 5)."""
    squared = (outputs[-1].rgb - batch.rgb) ** 2
    return mean_over_rays((squared + CHARBONNIER_PADDING**2).sqrt().mean(dim=-1), batch)


def interlevel_loss(model, outputs, batch):
    """How much of the finest histogram the proposals fail to cover (mip-NeRF 360, eq. 13).

    Summed over proposal rounds; of each the mean over intervals, as in the official code.
    """
    finest = outputs[-1]
    lost = (stepfun.interlevel_loss(finest.sdist, finest.weights, output.sdist, output.weights)
            for output in outputs[:-1])
    per_ray = sum(lost, torch.zeros_like(finest.acc)) / finest.weights.shape[-1]
    return mean_over_rays(per_ray, batch)


def antialiased_interlevel_loss(model, outputs, batch):
    """How much of the finest histogram, blurred, the proposals fail to cover (Zip-NeRF, eq. 7).

    Summed over proposal rounds, of which each has its own blur; of each the mean over intervals.
    """
    finest = outputs[-1]
    lost = (stepfun.antialiased_interlevel_loss(
                finest.sdist, finest.weights, output.sdist, output.weights, width
            ) / output.weights.shape[-1]
            for output, width in zip(outputs[:-1], model.pulse_widths, strict=True))
    return mean_over_rays(sum(lost, torch.zeros_like(finest.acc)), batch)


def distortion_loss(model, outputs, batch):
    """How far the mass of the finest level's rays is spread (mip-NeRF 360, eq. 15)."""
    posts = model.distortion_fenceposts(outputs[-1])
    return mean_over_rays(stepfun.distortion_loss(posts, outputs[-1].weights), batch)


def grid_decay_loss(model, outputs, batch):
    """The mean square of each level of the hash grids, summed (Zip-NeRF, section 4).

    As a share of the whole batch, so that the losses of its parts add up.
    """
    share = batch.loss_weights().sum() / batch.total_weight()
    return share * sum(field.grid_decay() for field in model.grids())


def visibility_loss(model, outputs, batch):
    """How wrong the visibility field is about the density (NeRV, section 4.3)."""
    error = outputs[-1].extras.get("visibility_error", torch.zeros_like(outputs[-1].acc))
    return mean_over_rays(error, batch)


LOSSES = {
    "fine": fine_loss, "coarse": coarse_loss, "charbonnier": charbonnier_loss,
    "interlevel": interlevel_loss, "antialiased_interlevel": antialiased_interlevel_loss,
    "distortion": distortion_loss, "grid_decay": grid_decay_loss, "visibility": visibility_loss,
}


def colour_error(rgb, batch):
    """The mean of squared errors, weighted by lossmult, over rays and channels.

    The official code sums over channels; a mean differs by a constant 3, to which Adam is all but
    indifferent, and reads as PSNR.
    """
    return mean_over_rays(((rgb - batch.rgb) ** 2).mean(dim=-1), batch)


def mean_over_rays(values, batch):
    """The mean of `values [...]`, one per ray, weighted by lossmult over the whole batch."""
    return (batch.loss_weights()[..., 0] * values).sum() / batch.total_weight()


def weighted_loss(config, model, outputs, batch):
    """The sum of all terms whose weight is not 0, and a `dict` of what to log."""
    total, scalars = 0.0, {}
    for name, fn in LOSSES.items():
        weight = getattr(config, f"{name}_loss_mult")
        if weight > 0:
            term = fn(model, outputs, batch)
            total = total + weight * term
            scalars[f"loss/{name}"] = term.detach()
    scalars["loss/total"] = torch.as_tensor(total).detach()
    return total, scalars


def level_errors(model, outputs, batch):
    """The colour errors of the levels that have colours, without gradient: `[levels]`."""
    coloured = outputs[model.first_rgb_level :]
    return torch.stack([colour_error(output.rgb.detach(), batch) for output in coloured])
