"""From pixels to rays, along rays to Gaussians, and from samples back to pixels.

Shapes: `...` is the batch, S intervals along a ray, N cameras. Fence posts `tdist [..., S+1]` are
in units of the (not normalized) ray direction: a point is `origins + t * directions`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

import coord
import stepfun
from coord import Gaussians, IsotropicGaussians
from structures import Batch, Cameras, Rays, RenderOutput, Scene  # noqa: F401  (re-exported)

# The disc whose variance is that of a square pixel: r^2 / 4 = width^2 / 12.
RADIUS_PER_PIXEL = 2 / math.sqrt(12)

# Points of a ray section that stand for its volume (Zip-NeRF's code).
NUM_MULTISAMPLES = 6

# Iterations of Newton's method: lens distortions converge to float32 in four or five.
NEWTON_STEPS = 10


class CompositeOutput(NamedTuple):
    """Composited rays: rgb `[..., 3]`, and acc, distance_mean, distance_median `[...]`."""

    rgb: Tensor
    acc: Tensor
    distance_mean: Tensor
    distance_median: Tensor


def pixels_to_rays(cameras, cam_idx, x, y):
    """Rays through the centres of pixels.

    cameras: `Cameras`; cam_idx, x, y: integer tensors of one shape `[...]`, a camera's index and
    pixel coordinates from the upper left corner, whose centre is at (0.5, 0.5).
    Returns `Rays [...]`: `directions` have z = -1 in the camera (a fisheye's are unit vectors; in
    NDC see `coord.to_ndc`), `viewdirs` are unit vectors in the world. The radius is the mean of
    the distances to the rays of the right and lower neighbours times 2 / sqrt(12) (mip-NeRF,
    section 3.1), measured between directions, or in NDC between origins; a neighbour may lie
    outside the image.
    """
    assert cam_idx.shape == x.shape == y.shape, (cam_idx.shape, x.shape, y.shape)
    dtype = cameras.camtoworlds.dtype
    # The centres of a pixel, its right and its lower neighbour: [..., 3, 2].
    columns, rows = torch.stack([x, x + 1, x], dim=-1), torch.stack([y, y, y + 1], dim=-1)
    pixels = torch.stack([columns, rows], dim=-1).to(dtype) + 0.5
    pose = cameras.camtoworlds[cam_idx]
    camera_dirs = _camera_directions(cameras, cam_idx, pixels)
    directions = matvec(pose[..., None, :, :3], camera_dirs)
    origins = pose[..., None, :, 3].expand_as(directions)
    viewdirs = directions[..., 0, :] / directions[..., 0, :].norm(dim=-1, keepdim=True)
    spread = directions
    if cameras.ndc is not None:
        origins, directions = coord.to_ndc(origins, directions, *cameras.ndc)
        spread = origins
    to_neighbours = (spread[..., 1:, :] - spread[..., :1, :]).norm(dim=-1)
    per_camera = {name: getattr(cameras, name)[cam_idx][..., None]
                  for name in ("near", "far", "lossmult")}
    return Rays(
        origins=origins[..., 0, :],
        directions=directions[..., 0, :],
        viewdirs=viewdirs,
        radii=to_neighbours.mean(dim=-1, keepdim=True) * RADIUS_PER_PIXEL,
        cam_idx=cam_idx[..., None],
        **per_camera,
    )


def _camera_directions(cameras, cam_idx, pixels):
    """Directions in the camera's axes of `pixels [..., 3, 2]`; `[..., 3, 3]`."""
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    directions = matvec(cameras.pixtocams[cam_idx][..., None, :, :], homogeneous)
    if cameras.distortion is None and cameras.fisheye is None:
        return directions
    # Lens models are written for OpenCV's axes, where y points down.
    distorted = _flip_y(directions[..., :2])
    coefficients = (directions.new_zeros(*cam_idx.shape, 6) if cameras.distortion is None
                    else cameras.distortion[cam_idx])[..., None, :]
    pinhole = torch.cat(
        [_flip_y(undistort(distorted, coefficients)), -torch.ones_like(distorted[..., :1])], dim=-1
    )
    if cameras.fisheye is None:
        return pinhole
    angles = undistort_fisheye(distorted, coefficients)
    ring = angles.norm(dim=-1, keepdim=True)
    # sinc keeps the centre, where the ring has radius 0, free of a division by zero.
    sine_over_angle = torch.sinc(ring / math.pi)
    curved = torch.cat([sine_over_angle * _flip_y(angles), -ring.cos()], dim=-1)
    return torch.where(cameras.fisheye[cam_idx][..., None, None], curved, pinhole)


def _flip_y(xy):
    """`[..., 2]` with the sign of y changed."""
    return torch.stack([xy[..., 0], -xy[..., 1]], dim=-1)


def points_to_pixels(cameras, cam_idx, points):
    """Where cameras see points: the inverse of `pixels_to_rays`.

    cam_idx: integers `[...]`; points: `[..., 3]` in the world. Returns continuous pixel coordinates
    `[..., 2]` (the centre of the first pixel is (0.5, 0.5)) and depths `[...]` along the optical
    axis; where a depth is not above 0, a pinhole does not see the point. Coordinates are NaN where
    a lens model, far outside of the pictures that it was fitted to, folds back.
    """
    pose = cameras.camtoworlds[cam_idx]
    offset = points - pose[..., :, 3]
    x, y, z = (pose[..., :, :3] * offset[..., :, None]).sum(dim=-2).unbind(-1)
    depth = -z
    # Lens models are written for OpenCV's axes, where y points down.
    plane = torch.stack([x, -y], dim=-1)
    image = plane / depth.where(depth.abs() > 1e-12, 1e-12)[..., None]
    if cameras.distortion is not None or cameras.fisheye is not None:
        image = _distorted(cameras, cam_idx, plane, depth, image)
    directions = torch.cat([_flip_y(image), -torch.ones_like(image[..., :1])], dim=-1)
    pixels = matvec(torch.linalg.inv(cameras.pixtocams)[cam_idx], directions)
    return pixels[..., :2], depth


def _distorted(cameras, cam_idx, plane, depth, image):
    """The lens models that `_camera_directions` inverts."""
    k1, k2, k3, k4, p1, p2 = (
        plane.new_zeros(*cam_idx.shape, 6) if cameras.distortion is None
        else cameras.distortion[cam_idx]
    ).unbind(-1)
    x, y = image.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    pinhole = torch.stack([
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y),
    ], dim=-1)
    pinhole = torch.where(is_past_fold(r2, k1, k2, k3, k4)[..., None], torch.nan, pinhole)
    if cameras.fisheye is None:
        return pinhole
    ring = plane.norm(dim=-1)
    angle = torch.atan2(ring, depth)
    a2 = angle * angle
    stretched = angle * (1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4))))
    curved = plane * (stretched / ring.clamp(min=1e-12))[..., None]
    curved = torch.where(is_past_fold(a2, k1, k2, k3, k4)[..., None], torch.nan, curved)
    return torch.where(cameras.fisheye[cam_idx][..., None], curved, pinhole)


def is_past_fold(u, k1, k2, k3, k4):
    """Whether a lens's radius falls somewhere on the way to a squared pinhole radius (or angle) u.

    Looked for at four places on that way.
    """
    slopes = [1 + v * (3 * k1 + v * (5 * k2 + v * (7 * k3 + v * 9 * k4)))
              for v in (share * u for share in (1 / 16, 1 / 4, 9 / 16, 1))]
    return ~(torch.stack(slopes).amin(dim=0) > 0)


def undistort(distorted, coefficients):
    """Pinhole coordinates of distorted ones, by Newton's method (OpenCV's radial-tangential lens).

    distorted: `[..., 2]` normalized image coordinates, y down.
    coefficients: `[..., 6]`, k1…k4 of the polynomial in r², then p1, p2. Returns `[..., 2]`,
    which mean nothing beyond the radius where the lens model folds back on itself.
    """
    k1, k2, k3, k4, p1, p2 = coefficients.unbind(-1)
    goal_x, goal_y = distorted.unbind(-1)
    x, y = goal_x, goal_y
    for _ in range(NEWTON_STEPS):
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
        slope = 2 * (k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4)))
        error_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) - goal_x
        error_y = y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y * y) - goal_y
        dxx = radial + x * x * slope + 2 * p1 * y + 6 * p2 * x
        dyy = radial + y * y * slope + 2 * p2 * x + 6 * p1 * y
        dxy = x * y * slope + 2 * p1 * x + 2 * p2 * y
        determinant = dxx * dyy - dxy * dxy
        x = x - (dyy * error_x - dxy * error_y) / determinant
        y = y - (dxx * error_y - dxy * error_x) / determinant
    return torch.stack([x, y], dim=-1)


def undistort_fisheye(distorted, coefficients):
    """Image coordinates `[..., 2]` whose length is the angle to the optical axis in radians.

    distorted: `[..., 2]` normalized coordinates of OpenCV's equidistant fisheye;
    coefficients: `[..., 6]`, k1…k4 of the polynomial in the squared angle (p1, p2 have no use).
    """
    k1, k2, k3, k4 = coefficients[..., :4].unbind(-1)
    goal = distorted.norm(dim=-1)
    angle = goal
    for _ in range(NEWTON_STEPS):
        a2 = angle * angle
        value = angle * (1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4))))
        slope = 1 + a2 * (3 * k1 + a2 * (5 * k2 + a2 * (7 * k3 + a2 * 9 * k4)))
        angle = angle - (value - goal) / slope
    ratio = torch.where(goal > 0, angle / goal.where(goal > 0, 1.0), 1.0)
    return distorted * ratio[..., None]


def matvec(matrices, vectors):
    """Matrix products `[..., 3, 3] x [..., 3]`, elementwise: no device rounds them to TF32."""
    return (matrices * vectors[..., None, :]).sum(dim=-1)


def image_rays(cameras, index):
    """The `Rays [h, w]` of all pixels of one camera."""
    width, height = cameras.sizes[index].tolist()
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = (v.to(cameras.camtoworlds.device) for v in (y, x))
    return pixels_to_rays(cameras, torch.full_like(x, index), x, y)


def corner_rays(cameras):
    """The `Rays [N, 4]` of each image's corner pixels."""
    corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=cameras.sizes.device)
    index = torch.arange(len(cameras), device=corners.device)[:, None].expand(-1, 4)
    return pixels_to_rays(cameras, index, *(corners * (cameras.sizes[:, None] - 1)).unbind(-1))


def ray_box(cameras):
    """The corners `[2, 3]` of the box around all rays between near and far."""
    rays = corner_rays(cameras)
    ends = torch.cat([rays.origins + t * rays.directions for t in (rays.near, rays.far)])
    ends = ends.reshape(-1, 3)
    return torch.stack([ends.amin(dim=0), ends.amax(dim=0)])


def reached_box(scene):
    """The corners `[2, 3]` of the box around a `Scene` and all that its rays pass."""
    both = torch.stack([scene.box, ray_box(scene.cameras)])
    return torch.stack([both[:, 0].amin(dim=0), both[:, 1].amax(dim=0)])


def world_points(cameras, rays, distance):
    """World points `[..., 3]` at `distance [...]` in t along rays of `cameras`, also in NDC."""
    points = rays.origins + distance[..., None] * rays.directions
    return points if cameras.ndc is None else coord.from_ndc(points, *cameras.ndc)


def sample_along_rays(near, far, num_samples, jitter=None, lindisp=False):
    """Fence posts of the coarse level (mip-NeRF, section 3.1; NeRF, eq. 2).

    near, far: `[..., 1]` in t. jitter: `[..., num_samples + 1]` in [0, 1) moves each post between
    the midpoints to its neighbours; None leaves them evenly spaced, in t, or with `lindisp` in
    1 / t, for which near must be above 0. Returns tdist `[..., num_samples + 1]`.
    """
    s = torch.linspace(0, 1, num_samples + 1, dtype=near.dtype, device=near.device)
    if lindisp:
        tdist = 1 / ((1 - s) / near + s / far)
    else:
        tdist = near * (1 - s) + far * s
    if jitter is None:
        return tdist
    middle = 0.5 * (tdist[..., 1:] + tdist[..., :-1])
    lower = torch.cat([tdist[..., :1], middle], dim=-1)
    upper = torch.cat([middle, tdist[..., -1:]], dim=-1)
    return lower + (upper - lower) * jitter


def resample_along_rays(tdist, weights, num_samples, jitter=None, resample_padding=0.01):
    """Fence posts of a finer level, drawn from a coarser level's weights (mip-NeRF, section 3.2).

    tdist: `[..., S+1]`; weights: `[..., S]`; jitter: `[..., num_samples + 1]` in [0, 1) or None.
    The weights are blurred, and `resample_padding` is added so that empty space is still visited.
    Returns `[..., num_samples + 1]`; no gradient flows through it.
    """
    with torch.no_grad():
        blurred = stepfun.max_blur(weights) + resample_padding
        return stepfun.sorted_piecewise_constant_pdf(tdist, blurred, num_samples + 1, jitter)


def conical_frustum_to_gaussian(directions, t0, t1, radii, diag=True):
    """The mean and covariance of a conical frustum, relative to the ray's origin.

    mip-NeRF, eqs. 7, 8 and 16, in the form that does not cancel for thin frustums.
    directions: `[..., 3]`; t0, t1: `[..., S]` ends in t; radii: `[..., 1]` at t = 1.
    Returns `Gaussians` with diagonal (`diag`) or full covariances.
    """
    middle, half = (t0 + t1) / 2, (t1 - t0) / 2
    # The share is 0/0 for an empty frustum at t = 0, whose moments are all 0.
    share = half**2 / (3 * middle**2 + half**2).clamp(min=torch.finfo(t0.dtype).tiny)
    t_mean = middle + 2 * middle * share
    t_var = half**2 / 3 - 4 / 15 * share**2 * (12 * middle**2 - half**2)
    r_var = radii**2 * (middle**2 / 4 + half**2 * (5 / 12 - 4 / 15 * share))
    return _lift_gaussian(directions, t_mean, t_var, r_var, diag)


def cylinder_to_gaussian(directions, t0, t1, radii, diag=True):
    """The mean and covariance of a cylinder of radius `radii`, relative to the ray's origin.

    Arguments as in `conical_frustum_to_gaussian` (mip-NeRF's official code, for NDC).
    """
    t_var = (t1 - t0) ** 2 / 12
    r_var = (radii**2 / 4).expand_as(t_var)
    return _lift_gaussian(directions, (t0 + t1) / 2, t_var, r_var, diag)


def _lift_gaussian(directions, t_mean, t_var, r_var, diag):
    """Moments along and across a ray `[..., S]` as Gaussians in space (mip-NeRF, eq. 8)."""
    means = directions[..., None, :] * t_mean[..., None]
    smallest = torch.finfo(directions.dtype).tiny
    norm_squared = (directions**2).sum(dim=-1, keepdim=True).clamp(min=smallest)
    if diag:
        along = directions**2
        across = 1 - along / norm_squared
        along, across = along[..., None, :], across[..., None, :]
        return Gaussians(means, t_var[..., None] * along + r_var[..., None] * across)
    along = directions[..., :, None] * directions[..., None, :]
    identity = torch.eye(3, dtype=directions.dtype, device=directions.device)
    across = identity - along / norm_squared[..., None]
    along, across = along[..., None, :, :], across[..., None, :, :]
    return Gaussians(
        means, t_var[..., None, None] * along + r_var[..., None, None] * across
    )


def cast_rays(tdist, origins, directions, radii, ray_shape, diag=True):
    """Gaussians of all intervals of rays, in the coordinates of the rays.

    tdist: `[..., S+1]`; origins, directions: `[..., 3]`; radii: `[..., 1]`;
    ray_shape: "cone" or "cylinder".
    """
    shapes = {"cone": conical_frustum_to_gaussian, "cylinder": cylinder_to_gaussian}
    means, covs = shapes[ray_shape](directions, tdist[..., :-1], tdist[..., 1:], radii, diag)
    return Gaussians(means + origins[..., None, :], covs)


def multisample_rays(
    tdist, origins, directions, radii, ray_shape, num_multisamples, rotations=None
):
    """Round Gaussians within the intervals of rays (Zip-NeRF, section 2).

    num_multisamples: 6 points on a helix, whose mean and, over all ways to turn them, covariance
    are the section's own; or 1, at the mean and as wide as the section is across. rotations:
    `[..., S]` in [0, 1), how a section's points are turned about the ray: up to 0.5 once round,
    from there on once more in the other sense; None turns none. Other arguments as in `cast_rays`.
    Returns `IsotropicGaussians` `[..., S, num_multisamples]`. Raises ValueError for another number.
    """
    if num_multisamples not in (1, NUM_MULTISAMPLES):
        raise ValueError(f"{num_multisamples} multisamples were asked for; 1 or {NUM_MULTISAMPLES} "
                         "are possible")
    t0, t1 = tdist[..., :-1], tdist[..., 1:]
    if num_multisamples == 1:
        means, covs = cast_rays(tdist, origins, directions, radii, ray_shape)
        middle = 0.5 * (t0 + t1) if ray_shape == "cone" else torch.ones_like(t0)
        return IsotropicGaussians(means[..., None, :], (0.5 * radii * middle)[..., None])
    along = _helix_distances(t0, t1, ray_shape)
    across = radii[..., None] * (along if ray_shape == "cone" else torch.ones_like(along))
    # In sixths: 0, 2, 4, then 3, 5, 1.
    order = torch.arange(NUM_MULTISAMPLES, device=tdist.device)
    turns = ((2 * order - 3 * (order >= 3)) % NUM_MULTISAMPLES).to(tdist) / NUM_MULTISAMPLES
    rotations = torch.zeros_like(t0) if rotations is None else rotations
    sense, begin = torch.where(rotations < 0.5, 1, -1), 2 * rotations
    angles = 2 * math.pi * (sense[..., None] * turns + begin[..., None])
    side, up = orthonormal_frame(directions)
    offsets = (angles.cos()[..., None] * side[..., None, None, :]
               + angles.sin()[..., None] * up[..., None, None, :])
    means = (origins[..., None, None, :] + along[..., None] * directions[..., None, None, :]
             + across[..., None] / math.sqrt(2) * offsets)
    return IsotropicGaussians(means, across / math.sqrt(8))


def _helix_distances(t0, t1, ray_shape):
    """Six distances `[..., S, 6]` with the mean and variance of a section's own."""
    steps = torch.linspace(-1, 1, NUM_MULTISAMPLES, dtype=t0.dtype, device=t0.device)
    t0, t1 = t0[..., None], t1[..., None]
    middle, half = 0.5 * (t0 + t1), 0.5 * (t1 - t0)
    if ray_shape == "cylinder":
        return middle + math.sqrt(5 / 7) * half * steps
    spread = ((half**2 - middle**2) ** 2 + 4 * middle**4).sqrt()
    mean = t1**2 + 2 * middle**2
    # The share is 0/0 for an empty section at t = 0.
    share = half / (half**2 + 3 * middle**2).clamp(min=torch.finfo(t0.dtype).tiny)
    return t0 + share * (mean + 3 / math.sqrt(7) * spread * steps)


def orthonormal_frame(directions):
    """Two unit vectors `[..., 3]` at right angles to directions and to each other."""
    # Crossed with the axis that is least along them.
    axis = torch.nn.functional.one_hot(directions.abs().argmin(dim=-1), 3).to(directions)
    side = torch.nn.functional.normalize(torch.linalg.cross(directions, axis), dim=-1)
    up = torch.nn.functional.normalize(torch.linalg.cross(directions, side), dim=-1)
    return side, up


def compute_weights(density, tdist, directions, opaque_background=False):
    """How much each interval contributes to its pixel (mip-NeRF, eq. 3; NeRF, eq. 3).

    density: `[..., S]` per unit of the rays' coordinates; tdist: `[..., S+1]`; directions:
    `[..., 3]`, whose length turns t into these units; opaque_background: whether the last interval
    lets nothing pass (mip-NeRF 360's code). Returns weights `[..., S]`, which sum to at most 1.
    """
    length = (tdist[..., 1:] - tdist[..., :-1]) * directions.norm(dim=-1, keepdim=True)
    optical = density * length
    passed = optical[..., :-1].cumsum(dim=-1)
    before = torch.cat([torch.zeros_like(optical[..., :1]), passed], dim=-1)
    alpha = -torch.expm1(-optical)
    if opaque_background:
        alpha = torch.cat([alpha[..., :-1], torch.ones_like(alpha[..., -1:])], dim=-1)
    return alpha * torch.exp(-before)


def volumetric_rendering(rgb, weights, tdist, bg_rgb):
    """Composite samples into pixels.

    rgb: `[..., S, 3]`; weights: `[..., S]`; tdist: `[..., S+1]`; bg_rgb: a number or `[..., 3]`.
    Returns a `CompositeOutput`. `distance_mean` is the weights' mean of the interval middles, and
    the far end for a ray that meets nothing; `distance_median` is where half of a ray has ended,
    the far end when more than half of it passes.
    """
    acc = weights.sum(dim=-1)
    colour = (weights[..., None] * rgb).sum(dim=-2) + (1 - acc)[..., None] * bg_rgb
    middle = 0.5 * (tdist[..., 1:] + tdist[..., :-1])
    # An opacity that 1 - acc cannot show is none.
    eps = torch.finfo(acc.dtype).eps
    mean = (weights * middle).sum(dim=-1) / acc.clamp(min=eps)
    near, far = tdist[..., 0], tdist[..., -1]
    mean = torch.where(acc > eps, torch.minimum(torch.maximum(mean, near), far), far)
    with_background = torch.cat([weights, (1 - acc).clamp(min=0)[..., None]], dim=-1)
    posts = torch.cat([tdist, far[..., None]], dim=-1)
    median = stepfun.weighted_percentile(posts, with_background, [50])[..., 0]
    return CompositeOutput(colour, acc, mean, median)


def expected_distance(output):
    """The mean t `[...]` of a level's weights, with their gradient; the far end of empty rays."""
    middle = 0.5 * (output.tdist[..., 1:] + output.tdist[..., :-1])
    mean = (output.weights * middle).sum(dim=-1) / output.acc.clamp(min=1e-3)
    return torch.where(output.acc > 1e-3, mean, output.tdist[..., -1])
