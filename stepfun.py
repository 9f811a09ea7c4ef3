"""Piecewise-constant functions along a ray.

Names used throughout, all along the last axis:
    t  [..., S+1]  fence posts, sorted
    w  [..., S]    weights: the mass of each interval, at least 0
    cdf [..., S+1] the integral of normalized weights at the fence posts, from 0 to 1
    u  [..., K]    numbers in [0, 1) where a cdf is inverted
"""

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
