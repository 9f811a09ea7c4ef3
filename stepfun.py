"""Piecewise-constant functions along a ray.

Names used throughout, all along the last axis:
    t  [..., S+1]  fence posts, sorted
    w  [..., S]    weights: the mass of each interval, at least 0
    cdf [..., S+1] the integral of normalized weights at the fence posts, from 0 to 1
    u  [..., K]    numbers in [0, 1) where a cdf is inverted
"""

import math

import torch

# Rays whose weights sum to less than this are sampled nearly uniformly.
WEIGHT_SUM_MIN = 1e-5


def integrate_weights(w):
    """The CDF `[..., S+1]` at the fence posts of weights `[..., S]` that sum to 1.

    It is exactly 0 and 1 at the ends whatever rounding does.
    """
    inner = torch.cumsum(w[..., :-1], dim=-1).clamp(max=1)
    return torch.cat([torch.zeros_like(w[..., :1]), inner, torch.ones_like(w[..., :1])], dim=-1)


def invert_cdf(u, t, cdf):
    """Where a piecewise-linear `cdf` over fence posts `t` takes the values `u`; `[..., K]`.

    An interval without mass is stepped over: the answer jumps from its left to its right end.
    """
    right = torch.searchsorted(cdf.contiguous(), u.contiguous(), right=True)
    right = right.clamp(1, cdf.shape[-1] - 1)
    left = right - 1
    cdf_left, cdf_right = torch.gather(cdf, -1, left), torch.gather(cdf, -1, right)
    t_left, t_right = torch.gather(t, -1, left), torch.gather(t, -1, right)
    mass = cdf_right - cdf_left
    fraction = torch.where(mass > 0, (u - cdf_left) / mass.where(mass > 0, 1.0), 0.0)
    return t_left + fraction.clamp(0, 1) * (t_right - t_left)


def sorted_piecewise_constant_pdf(t, w, num_samples, jitter=None):
    """Sorted samples of a histogram by inverse CDF (mip-NeRF's official code).

    t: `[..., S+1]` fence posts; w: `[..., S]` weights, not necessarily normalized, of the same
        batch.
    jitter: `[..., num_samples]` in [0, 1), the place of each sample in its stratum of 1 /
        num_samples; None spreads them evenly over [0, 1).
    Returns `[..., num_samples]`.
    """
    missing = (WEIGHT_SUM_MIN - w.sum(dim=-1, keepdim=True)).clamp(min=0)
    w = w + missing / w.shape[-1]
    cdf = integrate_weights(w / w.sum(dim=-1, keepdim=True))
    last = 1 - torch.finfo(t.dtype).eps
    if jitter is None:
        u = torch.linspace(0, last, num_samples, dtype=t.dtype, device=t.device)
        u = u.expand(*cdf.shape[:-1], num_samples)
    else:
        strata = torch.arange(num_samples, dtype=t.dtype, device=t.device)
        u = ((strata + jitter) / num_samples).clamp(max=last)
    return invert_cdf(u, t, cdf)


def weighted_percentile(t, w, ps):
    """The `ps`-th percentiles (above 0, below 100) of a histogram whose weights sum to 1.

    t: `[..., S+1]`; w: `[..., S]`; returns `[..., len(ps)]`.
    """
    # Filled on the device: a copy from the host would wait for it.
    u = torch.stack([torch.full((), p / 100, dtype=t.dtype, device=t.device) for p in ps])
    return invert_cdf(u.expand(*w.shape[:-1], u.shape[-1]), t, integrate_weights(w))


def max_blur(w):
    """The mean of the maxima over the two pairs of neighbours of each bin (mip-NeRF, eq. 18).

    It widens each peak by one bin, so that the finer level also samples beside it; `[..., S]`.
    """
    padded = torch.cat([w[..., :1], w, w[..., -1:]], dim=-1)
    pair_max = torch.maximum(padded[..., :-1], padded[..., 1:])
    return 0.5 * (pair_max[..., :-1] + pair_max[..., 1:])


# mip-NeRF 360.


def sample_intervals(
    t, w_logits, num_samples, jitter=None, single_jitter=True, domain=(-math.inf, math.inf)
):
    """Fence posts of `num_samples` intervals drawn from a histogram (mip-NeRF 360's code).

    t: `[..., S+1]`; w_logits: `[..., S]`, logarithms of weights up to a constant, -inf for none;
    jitter: `[..., num_samples]` or `[..., 1]` in [0, 1), of which `single_jitter` takes the first
    for all samples of a ray; None is deterministic. Points are drawn by inverse CDF; the posts are
    their midpoints, and beyond the ends their reflections, kept inside `domain`.
    Returns `[..., num_samples + 1]`. Raises ValueError for fewer than two samples.
    """
    if num_samples < 2:
        raise ValueError(f"{num_samples} samples were asked for; at least 2 are wanted")
    eps = torch.finfo(t.dtype).eps
    if jitter is None:
        half = 0.5 / num_samples
        u = torch.linspace(half, 1 - half - eps, num_samples, dtype=t.dtype, device=t.device)
        u = u.expand(*w_logits.shape[:-1], num_samples)
    else:
        u_max = eps + (1 - eps) / num_samples
        room = (1 - u_max) / (num_samples - 1) - eps
        u = torch.linspace(0, 1 - u_max, num_samples, dtype=t.dtype, device=t.device)
        u = u + room * (jitter[..., :1] if single_jitter else jitter)
    points = invert_cdf(u, t, integrate_weights(torch.softmax(w_logits, dim=-1)))
    middle = 0.5 * (points[..., 1:] + points[..., :-1])
    first = (2 * points[..., :1] - middle[..., :1]).clamp(min=domain[0])
    last = (2 * points[..., -1:] - middle[..., -1:]).clamp(max=domain[1])
    return torch.cat([first, middle, last], dim=-1)


def max_dilate_weights(t, w, dilation, domain=(-math.inf, math.inf), renormalize=False):
    """A histogram whose density is the largest within `dilation` of each place (mip-NeRF 360).

    It covers where a surface may lie that the coarser level met just beside. t: `[..., S+1]`; w:
    `[..., S]`. Returns fence posts `[..., 3S+1]`, kept inside `domain`, and weights `[..., 3S]`,
    which sum to 1 if `renormalize`.
    """
    eps = torch.finfo(t.dtype).eps
    density = w / (t[..., 1:] - t[..., :-1]).clamp(min=eps**2)
    left, right = t[..., :-1] - dilation, t[..., 1:] + dilation
    posts = torch.sort(torch.cat([t, left, right], dim=-1), dim=-1).values
    posts = posts.clamp(*domain)
    place = posts[..., :-1, None]
    within = (left[..., None, :] <= place) & (place < right[..., None, :])
    largest = torch.where(within, density[..., None, :], 0.0).amax(dim=-1)
    weights = largest * (posts[..., 1:] - posts[..., :-1])
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=eps**2)
    return posts, weights


def distortion_loss(sdist, weights):
    """How far the mass of a ray is spread, `[...]` (mip-NeRF 360, eq. 15), in O(S).

    sdist: `[..., S+1]`; weights: `[..., S]`. The sum over pairs of w_i w_j |m_i - m_j| plus a third
    of w_i^2 times the width of interval i.
    """
    middle = 0.5 * (sdist[..., 1:] + sdist[..., :-1])
    width = sdist[..., 1:] - sdist[..., :-1]
    # Of sorted middles, those before j add w_j (m_j W - M), with W and M their sums of w and w m.
    mass = torch.cumsum(weights, dim=-1) - weights
    moment = torch.cumsum(weights * middle, dim=-1) - weights * middle
    between = 2 * (weights * (middle * mass - moment)).sum(dim=-1)
    return between + (weights**2 * width).sum(dim=-1) / 3


def interlevel_loss(t, w, t_env, w_env):
    """How much of a histogram another one fails to cover, `[...]` (mip-NeRF 360, eqs. 12 and 13).

    t, w: the finest level's, `[..., S+1]` and `[..., S]`, through which no gradient flows; t_env,
    w_env: a proposal's, `[..., P+1]` and `[..., P]`. The bound of an interval is the mass of all
    proposal intervals that it touches; what exceeds the bound is penalized, relative to w.
    """
    t, w = t.detach(), w.detach()
    excess = (w - outer_measure(t, t_env, w_env)).clamp(min=0)
    return (excess**2 / (w + torch.finfo(w.dtype).eps)).sum(dim=-1)


def outer_measure(t, t_env, w_env):
    """The mass `[..., S]` of all intervals of (t_env, w_env) that those of `t [..., S+1]` touch."""
    before = torch.cat([torch.zeros_like(w_env[..., :1]), w_env.cumsum(dim=-1)], dim=-1)
    count = t_env.shape[-1]
    upper = torch.searchsorted(t_env.contiguous(), t.contiguous(), right=True)
    lower = (upper - 1).clamp(0, count - 1)
    upper = upper.clamp(0, count - 1)
    return before.gather(-1, upper[..., 1:]) - before.gather(-1, lower[..., :-1])
