"""One function per loss term, and their weighted sum.

A term is `fn(model, outputs, batch) -> scalar`, unweighted; its weight is the flag
`--<name>_loss_mult`. `outputs` are a model's levels, coarse to fine.
"""

import torch


def fine_loss(model, outputs, batch):
    """Squared error of the finest level's colours (mip-NeRF, eq. 17)."""
    return colour_error(outputs[-1].rgb, batch)


def coarse_loss(model, outputs, batch):
    """Squared error of the coarser levels' colours, summed over levels (mip-NeRF, eq. 17)."""
    errors = (colour_error(output.rgb, batch) for output in outputs[:-1])
    return sum(errors, batch.rgb.new_zeros(()))


LOSSES = {"fine": fine_loss, "coarse": coarse_loss}


def colour_error(rgb, batch):
    """The mean of squared errors, weighted by lossmult, over rays and channels.

    The official code sums over channels; a mean differs by a constant 3, to which Adam is all but
    indifferent, and reads as PSNR.
    """
    weights = batch.loss_weights()
    squared = ((rgb - batch.rgb) ** 2).mean(dim=-1, keepdim=True)
    return (weights * squared).sum() / batch.total_weight()


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


def level_errors(outputs, batch):
    """Each level's colour error, without gradient: `[levels]`."""
    return torch.stack([colour_error(output.rgb.detach(), batch) for output in outputs])
