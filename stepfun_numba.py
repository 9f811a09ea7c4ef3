"""CPU kernels of `stepfun`, compiled by numba when they are first called: one pass over each ray.

They compute what the functions of the same names in `stepfun` compute in PyTorch, without
gradients; tests compare the two. Each ray is one thread's, so results do not depend on threads.
"""

import numpy as np
import torch
from torch import Tensor

from runtime.compiled import compiled, run_on_threads

# In float32: with Python numbers numba would continue in 64 bits.
ZERO, ONE = np.float32(0), np.float32(1)
EPS, TINY = np.finfo(np.float32).eps, np.finfo(np.float32).tiny


def sampled_points(u: Tensor, t: Tensor, w_logits: Tensor) -> Tensor:
    """Positions where the CDF of a histogram equals `u [R, K]`; see `stepfun.sampled_points`."""
    points = torch.empty(u.shape)
    run_on_threads(_sampled_points, len(u), *_arrays(u, t, w_logits), points.numpy())
    return points


def blurred_weights(t: Tensor, w: Tensor, t_env: Tensor, half_width: float) -> Tensor:
    """Mass `[R, P]` of a blurred histogram in other intervals; see `stepfun.blurred_weights`."""
    masses = torch.empty(len(t_env), t_env.shape[1] - 1)
    run_on_threads(_blurred_weights, len(t), *_arrays(t, w, t_env), float(half_width),
                   masses.numpy())
    return masses


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


@compiled(forceinline=True)
def _cdf(logits, cdf):
    """Fill the CDF `[S+1]` of a softmax, exactly 0 and 1 at the ends."""
    count = len(logits)
    largest, total = logits[0], ZERO
    for i in range(1, count):
        largest = max(largest, logits[i])
    for i in range(count):
        cdf[i + 1] = np.exp(logits[i] - largest)
        total += cdf[i + 1]
    cdf[0] = ZERO
    for i in range(1, count):
        cdf[i] = min(cdf[i - 1] + cdf[i] / total, ONE)
    cdf[count] = ONE


@compiled()
def _sampled_points(first, last, u, t, logits, points):
    count = logits.shape[1]
    cdf = np.empty(count + 1, np.float32)
    for ray in range(first, last):
        _cdf(logits[ray], cdf)
        right, before = 1, -np.float32(np.inf)
        for k in range(u.shape[1]):
            x = u[ray, k]
            right = right if x >= before else 1  # Jitter beyond its stratum.
            before = x
            while right < count and cdf[right] <= x:
                right += 1
            left = right - 1
            mass, fraction = cdf[right] - cdf[left], ZERO
            if mass > ZERO:
                fraction = min(max((x - cdf[left]) / mass, ZERO), ONE)
            points[ray, k] = t[ray, left] + fraction * (t[ray, right] - t[ray, left])


@compiled(forceinline=True)
def _bend(t, w, i, half_width):
    """Change of the blurred density's slope where fencepost `i` minus `half_width` lies."""
    after = w[i] / max(t[i + 1] - t[i], EPS) if i < len(w) else 0.0
    before = w[i - 1] / max(t[i] - t[i - 1], EPS) if i > 0 else 0.0
    return (after - before) / (2 * half_width)


@compiled(forceinline=True)
def _blur(t, w, half_width, fenceposts, values, integral):
    """Fill the blurred density's fenceposts, its values and its integral there, `[2S+2]` each."""
    count = len(t)
    i, j, slope, rise = 0, 0, 0.0, 0.0
    for n in range(2 * count):
        # The sorted fenceposts are merged from those where ramps begin and where they end.
        begins = i < count and (j == count or t[i] - half_width <= t[j] + half_width)
        fenceposts[n] = t[i] - half_width if begins else t[j] + half_width
        if n == 0:
            values[0], integral[0] = 0.0, 0.0
        else:
            width = fenceposts[n] - fenceposts[n - 1]
            rise += width * slope
            values[n] = max(rise, 0.0)
            integral[n] = integral[n - 1] + 0.5 * (values[n] + values[n - 1]) * width
        if begins:
            slope += _bend(t, w, i, half_width)
            i += 1
        else:
            slope -= _bend(t, w, j, half_width)
            j += 1


@compiled()
def _blurred_weights(first, last, t, w, t_env, half_width, masses):
    end = 2 * t.shape[1] - 1
    scratch = np.empty((3, end + 1))  # Sums of large slopes: in float64.
    fenceposts, values, integral = scratch[0], scratch[1], scratch[2]
    for ray in range(first, last):
        _blur(t[ray], w[ray], half_width, fenceposts, values, integral)
        right, before = 1, 0.0
        for k in range(t_env.shape[1]):
            x = t_env[ray, k]
            while right < end and fenceposts[right] <= x:
                right += 1
            left = right - 1
            width = fenceposts[right] - fenceposts[left]
            part = min(max(x - fenceposts[left], 0.0), width)
            slope = (values[right] - values[left]) / max(width, TINY)
            here = integral[left] + part * (values[left] + 0.5 * slope * part)
            if k > 0:
                masses[ray, k - 1] = here - before
            before = here
