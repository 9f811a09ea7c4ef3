"""Maps of space and distance: Gaussians, encodings, contraction, warps of t, and NDC."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Zip-NeRF's curve of distances: P(2 t, -1.5).
POWER_LAMBDA = -1.5
POWER_PREMULT = 2.0


class Gaussians(NamedTuple):
    """Gaussians of ray sections, in world units (or NDC).

    means: `[..., S, 3]`; covs: `[..., S, 3]` (the diagonal) or `[..., S, 3, 3]`.
    """

    means: Tensor
    covs: Tensor


class IsotropicGaussians(NamedTuple):
    """J round Gaussians of each ray section (Zip-NeRF), in world units (or NDC).

    means: `[..., S, J, 3]`; stds: `[..., S, J]`.
    """

    means: Tensor
    stds: Tensor


class LineBundle(NamedTuple):
    """Half lines `origins + t * directions`; both `[..., 3]`."""

    origins: Tensor
    directions: Tensor


class RayWarps(NamedTuple):
    """Maps of tensors between distances t in [near, far] and normalized s in [0, 1]."""

    t_to_s: Callable
    s_to_t: Callable


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


def contract(x):
    """Points `[..., 3]` of all space into a ball of radius 2 (mip-NeRF 360, eq. 10).

    The unit ball stays as it is; |x| > 1 becomes 2 - 1 / |x| in the same direction.
    """
    norm = _norm_outside(x)
    return (2 - 1 / norm) / norm * x


def inv_contract(z):
    """The inverse of `contract`, for points `[..., 3]` with |z| < 2."""
    # A norm of 0 would have no gradient.
    norm = (z**2).sum(dim=-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny).sqrt()
    outside = 1 / (norm * (2 - norm).clamp(min=torch.finfo(z.dtype).eps))
    return torch.where(norm <= 1, z, outside * z)


def contract_gaussians(means, covs):
    """`Gaussians` through `contract`, linearized at their means (mip-NeRF 360, eq. 9).

    means: `[..., 3]`; covs: `[..., 3]` (the diagonal) or `[..., 3, 3]`. Covariances come out full.
    """
    if covs.dim() == means.dim():
        covs = torch.diag_embed(covs)
    norm = _norm_outside(means)
    # The Jacobian is `across` at right angles to the radius and `across + extra` along it. Written
    # out, J C J^T takes a few products of vectors, and no device rounds these as it may products
    # of matrices.
    across, extra = (2 - 1 / norm) / norm, 2 * (1 - norm) / norm**2
    radial = means / norm
    pulled = (covs * radial[..., None, :]).sum(dim=-1)
    mixed = radial[..., :, None] * pulled[..., None, :]
    stretch = (radial * pulled).sum(dim=-1, keepdim=True)[..., None]
    outer = radial[..., :, None] * radial[..., None, :]
    across_, extra_ = across[..., None], extra[..., None]
    contracted = across_**2 * covs + across_ * extra_ * (mixed + mixed.mT)
    return Gaussians(across * means, contracted + extra_**2 * stretch * outer)


def contract_isotropic(means, stds):
    """`IsotropicGaussians` through `contract` (Zip-NeRF, section 2): they stay as round.

    means: `[..., 3]`; stds: `[...]`, scaled as the volume is, by the cube root of the Jacobian's
    determinant.
    """
    norm = _norm_outside(means)
    # The Jacobian is `across` twice at right angles to the radius, and 1 / norm^2 along it.
    across = (2 - 1 / norm) / norm
    volume = (across / norm)[..., 0] ** 2
    return IsotropicGaussians(across * means, stds * volume ** (1 / 3))


def _norm_outside(x):
    """The length `[..., 1]` of vectors, and 1 inside the unit ball."""
    return (x**2).sum(dim=-1, keepdim=True).clamp(min=1).sqrt()


def construct_ray_warps(fn, near, far):
    """The `RayWarps` of a curve g: s = (g(t) - g(near)) / (g(far) - g(near)).

    fn: "linear"; "reciprocal", linear in 1 / t, for near > 0; "piecewise", t / 2 up to 1 and
    linear in 1 / t beyond, for near = 0 (mip-NeRF 360, eq. 11 and its code); or "power" (Zip-NeRF).
    near, far: tensors that broadcast against t, or numbers.
    """
    forward, inverse = CURVES[fn]
    near, far = (torch.as_tensor(x, dtype=torch.get_default_dtype()) if not isinstance(x, Tensor)
                 else x for x in (near, far))
    g_near, g_far = forward(near), forward(far)

    def t_to_s(t):
        return (forward(t) - g_near) / (g_far - g_near)

    def s_to_t(s):
        return inverse(s * g_far + (1 - s) * g_near)

    return RayWarps(t_to_s, s_to_t)


def _piecewise(t):
    return torch.where(t < 1, 0.5 * t, 1 - 0.5 / t.clamp(min=1))


def _inverse_piecewise(g):
    return torch.where(g < 0.5, 2 * g, 0.5 / (1 - g.clamp(min=0.5)))


def power_ladder(x, power):
    """The curve P(x, power) of distances x >= 0, for a power below 1 and not 0 (Zip-NeRF, eq. 9).

    Near 0 it rises as x does; far out it flattens the more, the lower the power.
    """
    room = abs(power - 1)
    return room / power * ((x / room + 1) ** power - 1)


def inverse_power_ladder(y, power):
    """The inverse of `power_ladder`."""
    room = abs(power - 1)
    return room * ((power * y / room + 1) ** (1 / power) - 1)


def _power(t):
    return power_ladder(POWER_PREMULT * t, POWER_LAMBDA)


def _inverse_power(g):
    return inverse_power_ladder(g, POWER_LAMBDA) / POWER_PREMULT


CURVES = {
    "linear": (lambda t: t, lambda g: g),
    "reciprocal": (torch.reciprocal, torch.reciprocal),
    "piecewise": (_piecewise, _inverse_piecewise),
    "power": (_power, _inverse_power),
}


def icosahedron_basis():
    """Unit directions `[3, 21]`, one of each antipodal pair of an icosahedron's subdivision.

    The vertices of the icosahedron and the middles of its edges, evenly over the sphere
    (mip-NeRF 360, section 3.1: off-axis encoding).
    """
    golden = (1 + math.sqrt(5)) / 2
    corners = torch.tensor(
        [[sign * v for v in vertex] for vertex in ((0.0, 1.0, golden), (0.0, -1.0, golden))
         for sign in (1, -1)], dtype=torch.float64)
    corners = torch.cat([corners.roll(shift, dims=-1) for shift in range(3)])
    distance = torch.cdist(corners, corners)
    first, second = torch.nonzero((distance - 2).abs() < 1e-6, as_tuple=True)
    directions = torch.nn.functional.normalize(
        torch.cat([corners, (corners[first] + corners[second])[first < second]]), dim=-1)
    # Of two opposite directions, the one whose last coordinate that is not 0 is positive.
    kept = [d for d in directions if d[d.abs() > 1e-9][-1] > 0]
    return torch.stack(kept, dim=-1).to(torch.get_default_dtype())


def project_gaussians(gaussians, basis):
    """Means and variances `[..., K]` of `Gaussians` along the columns of `basis [3, K]`."""
    means, covs = gaussians
    if covs.dim() == means.dim():
        covs = torch.diag_embed(covs)
    # The six products of two coordinates of each direction, once, instead of a matrix a sample.
    first, second = torch.triu_indices(3, 3, device=basis.device)
    twice = torch.where(first == second, 1.0, 2.0).to(basis)
    squares = basis[first] * basis[second] * twice[:, None]
    return Gaussians(means @ basis, covs[..., first, second] @ squares)


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
