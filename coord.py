"""Maps of space: Gaussians, positional encodings, and normalized device coordinates (NDC)."""

from typing import NamedTuple

import torch
from torch import Tensor


class Gaussians(NamedTuple):
    """Gaussians of ray sections, in world units (or NDC).

    means: `[..., S, 3]`; covs: `[..., S, 3]` (the diagonal) or `[..., S, 3, 3]`.
    """

    means: Tensor
    covs: Tensor


class LineBundle(NamedTuple):
    """Half lines `origins + t * directions`; both `[..., 3]`."""

    origins: Tensor
    directions: Tensor


def pos_enc(x, min_deg, max_deg, append_identity=True):
    """sin and cos of `2^l x` for l = min_deg … max_deg - 1 (NeRF, eq. 4).

    x: `[..., D]`. Returns `[..., 2 * D * (max_deg - min_deg)]`: the sines of all scales (D inside
    each scale), then the cosines; with `append_identity`, x itself stands before them.
    """
    angles = _scaled(x, _scales(min_deg, max_deg, x))
    features = torch.cat([angles.sin(), angles.cos()], dim=-1)
    return torch.cat([x, features], dim=-1) if append_identity else features


def integrated_pos_enc(means, covs, min_deg, max_deg):
    """The expectation of `pos_enc` under a Gaussian (mip-NeRF, eq. 14): IPE.

    means: `[..., D]`; covs: `[..., D]` (the diagonal) or `[..., D, D]`.
    Returns `[..., 2 * D * (max_deg - min_deg)]`, ordered as `pos_enc` without identity.
    """
    variances = covs if covs.dim() == means.dim() else covs.diagonal(dim1=-2, dim2=-1)
    scales = _scales(min_deg, max_deg, means)
    angles = _scaled(means, scales)
    damping = _scaled(variances, -0.5 * scales**2).exp()
    return torch.cat([damping * angles.sin(), damping * angles.cos()], dim=-1)


def to_ndc(origins, directions, focal, width, height, near=1.0):
    """Rays in NDC, where t = 0 is the plane z = -near and t = 1 is infinity (NeRF, appendix C).

    origins, directions: `[..., 3]` in world units, OpenGL axes, looking along -z (z < 0).
    focal, width, height: in pixels.
    Returns the rays as a `LineBundle`; a ray with z >= 0 cannot be expressed and is not finite or
    points backwards.
    """
    # Only from the near plane on is NDC's t confined to [0, 1].
    t_near = -(near + origins[..., 2:]) / directions[..., 2:]
    on_plane = origins + t_near * directions
    x_over_z, y_over_z = (on_plane[..., :2] / on_plane[..., 2:]).unbind(-1)
    slope_x, slope_y = (directions[..., :2] / directions[..., 2:]).unbind(-1)
    scale_x, scale_y = -2 * focal / width, -2 * focal / height
    inverse_z = 2 * near / on_plane[..., 2]
    ndc_origins = torch.stack([scale_x * x_over_z, scale_y * y_over_z, 1 + inverse_z], dim=-1)
    ndc_directions = torch.stack(
        [scale_x * (slope_x - x_over_z), scale_y * (slope_y - y_over_z), -inverse_z], dim=-1
    )
    return LineBundle(ndc_origins, ndc_directions)


def points_to_ndc(points, focal, width, height, near=1.0):
    """World points `[..., 3]` with z < 0 in NDC (NeRF, appendix C)."""
    x, y, z = points.unbind(-1)
    return torch.stack(
        [-2 * focal / width * x / z, -2 * focal / height * y / z, 1 + 2 * near / z], dim=-1
    )


def from_ndc(points, focal, width, height, near=1.0):
    """World points `[..., 3]` of NDC points with z < 1: the inverse of `points_to_ndc`.

    NDC's far plane z = 1 is infinitely far; points are kept a little before it to stay finite.
    """
    x, y, z = points.unbind(-1)
    world_z = 2 * near / (z - 1).clamp(max=-1e-6)
    return torch.stack(
        [-0.5 * width / focal * x * world_z, -0.5 * height / focal * y * world_z, world_z], dim=-1
    )


def _scales(min_deg, max_deg, like):
    """2^l as a column, `[max_deg - min_deg, 1]`."""
    degrees = torch.arange(min_deg, max_deg, dtype=like.dtype, device=like.device)
    return torch.exp2(degrees)[:, None]


def _scaled(x, factors):
    """x `[..., D]` times each of `factors [L, 1]`, as `[..., L * D]`."""
    return (x[..., None, :] * factors).flatten(-2)
