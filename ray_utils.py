"""Pixels to rays, rays to Gaussians, samples to composited pixels.

Shapes: `...` is the batch, S intervals along a ray, N cameras. Fenceposts `tdist [..., S+1]` are
distances t in units of the (not normalized) ray direction: a point is `origins + t * directions`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

import coord
import stepfun
from coord import Gaussians, IsotropicGaussians
from structures import Batch, Cameras, Rays, RenderOutput, Scene  # noqa: F401  (re-exported)

# Radius of a disc with the variance of a square pixel of width 1: r^2 / 4 = 1 / 12.
RADIUS_PER_PIXEL = 2 / math.sqrt(12)

# Multisamples of an interval (Zip-NeRF's code).
NUM_MULTISAMPLES = 6

# Iterations of Newton's method: lens distortions converge to float32 in four or five.
NEWTON_STEPS = 10


class CompositeOutput(NamedTuple):
    """Composited rays: rgb `[..., 3]`, and acc, distance_mean, distance_median `[...]`."""

    rgb: Tensor
    acc: Tensor
    distance_mean: Tensor
    distance_median: Tensor


# From pixels to rays.


def pixels_to_rays(cameras: Cameras, cam_idx: Tensor, x: Tensor, y: Tensor) -> Rays:
    """Rays through the centres of pixels.

    cam_idx, x, y: integer tensors of one shape `[...]`, camera index and pixel coordinates; the
    centre of the upper left pixel is at (0.5, 0.5).
    Returns `Rays [...]`: `directions` have z = -1 in the camera (a fisheye's are unit vectors; for
    NDC see `coord.to_ndc`), `viewdirs` are unit vectors in the world. The radius is the mean of
    the distances to the rays of the right and lower neighbours times 2 / sqrt(12) (mip-NeRF,
    section 3.1), measured between directions, or in NDC between origins; a neighbour may lie
    outside the image.
    """
    assert cam_idx.shape == x.shape == y.shape, (cam_idx.shape, x.shape, y.shape)
    dtype = cameras.camtoworlds.dtype
    # Centres of a pixel, its right and its lower neighbour: [..., 3, 2].
    columns, rows = torch.stack([x, x + 1, x], dim=-1), torch.stack([y, y, y + 1], dim=-1)
    pixels = torch.stack([columns, rows], dim=-1).to(dtype) + 0.5
    pose = cameras.camtoworlds[cam_idx]
    camera_dirs = _camera_directions(cameras, cam_idx, pixels)
    directions = matvec(pose[..., None, :, :3], camera_dirs)
    origins = pose[..., None, :, 3].expand_as(directions)
    viewdirs = directions[..., 0, :] / directions[..., 0, :].norm(dim=-1, keepdim=True)
    pixel_points = directions
    if cameras.ndc is not None:
        origins, directions = coord.to_ndc(origins, directions, *cameras.ndc)
        pixel_points = origins
    neighbour_distances = (pixel_points[..., 1:, :] - pixel_points[..., :1, :]).norm(dim=-1)
    per_camera = {name: getattr(cameras, name)[cam_idx][..., None]
                  for name in ("near", "far", "lossmult")}
    return Rays(
        origins=origins[..., 0, :],
        directions=directions[..., 0, :],
        viewdirs=viewdirs,
        radii=neighbour_distances.mean(dim=-1, keepdim=True) * RADIUS_PER_PIXEL,
        cam_idx=cam_idx[..., None],
        **per_camera,
    )


def _camera_directions(cameras, cam_idx, pixels):
    """Directions `[..., 3, 3]` in camera axes through `pixels [..., 3, 2]`."""
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1)
    directions = matvec(cameras.pixtocams[cam_idx][..., None, :, :], homogeneous)
    if cameras.distortion is None and cameras.fisheye is None:
        return directions
    # Lens models use OpenCV's axes, with y down.
    distorted = _flip_y(directions[..., :2])
    coefficients = (directions.new_zeros(*cam_idx.shape, 6) if cameras.distortion is None
                    else cameras.distortion[cam_idx])[..., None, :]
    is_fisheye = (torch.zeros_like(cam_idx, dtype=torch.bool) if cameras.fisheye is None
                  else cameras.fisheye[cam_idx])[..., None, None]
    # Newton's method may diverge for the other lens model, whose gradient would then be NaN.
    undistorted = undistort(distorted.where(~is_fisheye, 0.0), coefficients)
    pinhole = torch.cat([_flip_y(undistorted), -torch.ones_like(distorted[..., :1])], dim=-1)
    if cameras.fisheye is None:
        return pinhole
    angles = undistort_fisheye(distorted.where(is_fisheye, 0.0), coefficients)
    angle = angles.norm(dim=-1, keepdim=True)
    # sinc avoids a division by zero on the optical axis.
    sine_over_angle = torch.sinc(angle / math.pi)
    fisheye = torch.cat([sine_over_angle * _flip_y(angles), -angle.cos()], dim=-1)
    return torch.where(is_fisheye, fisheye, pinhole)


def _flip_y(xy):
    """`[..., 2]` with the sign of y changed."""
    return torch.stack([xy[..., 0], -xy[..., 1]], dim=-1)


def points_to_pixels(cameras: Cameras, cam_idx: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Project points into cameras: the inverse of `pixels_to_rays`.

    cam_idx: integers `[...]`; points: `[..., 3]` in the world. Returns continuous pixel coordinates
    `[..., 2]` (the centre of the first pixel is (0.5, 0.5)) and depths `[...]` along the optical
    axis; a pinhole sees only points of positive depth. Coordinates are NaN beyond the radius where
    the lens polynomial folds back, far outside the images that it was fitted to.
    """
    pose = cameras.camtoworlds[cam_idx]
    offset = points - pose[..., :, 3]
    x, y, z = (pose[..., :, :3] * offset[..., :, None]).sum(dim=-2).unbind(-1)
    depth = -z
    # Lens models use OpenCV's axes, with y down.
    plane = torch.stack([x, -y], dim=-1)
    image = plane / depth.where(depth.abs() > 1e-12, 1e-12)[..., None]
    if cameras.distortion is not None or cameras.fisheye is not None:
        image = _distorted(cameras, cam_idx, plane, depth, image)
    directions = torch.cat([_flip_y(image), -torch.ones_like(image[..., :1])], dim=-1)
    pixels = matvec(torch.linalg.inv(cameras.pixtocams)[cam_idx], directions)
    return pixels[..., :2], depth


def _distorted(cameras, cam_idx, plane, depth, image):
    """Distorted coordinates `[..., 2]`, by the lens models that `_camera_directions` inverts."""
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
    radius = plane.norm(dim=-1)
    angle = torch.atan2(radius, depth)
    a2 = angle * angle
    distorted_angle = angle * (1 + a2 * (k1 + a2 * (k2 + a2 * (k3 + a2 * k4))))
    fisheye = plane * (distorted_angle / radius.clamp(min=1e-12))[..., None]
    fisheye = torch.where(is_past_fold(a2, k1, k2, k3, k4)[..., None], torch.nan, fisheye)
    return torch.where(cameras.fisheye[cam_idx][..., None], fisheye, pinhole)


def is_past_fold(u: Tensor, k1: Tensor, k2: Tensor, k3: Tensor, k4: Tensor) -> Tensor:
    """Whether a lens polynomial has a falling slope between 0 and u.

    u: squared pinhole radius, or squared angle of a fisheye. The slope is tested at four radii.
    """
    slopes = [1 + v * (3 * k1 + v * (5 * k2 + v * (7 * k3 + v * 9 * k4)))
              for v in (fraction * u for fraction in (1 / 16, 1 / 4, 9 / 16, 1))]
    return ~(torch.stack(slopes).amin(dim=0) > 0)


def undistort(distorted: Tensor, coefficients: Tensor) -> Tensor:
    """Pinhole coordinates of distorted ones, by Newton's method (OpenCV's radial-tangential lens).

    distorted: `[..., 2]` normalized image coordinates, y down.
    coefficients: `[..., 6]`, k1…k4 of the polynomial in r², then p1, p2. Returns `[..., 2]`,
    undefined beyond the radius where the lens polynomial folds back.
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


def undistort_fisheye(distorted: Tensor, coefficients: Tensor) -> Tensor:
    """Image coordinates `[..., 2]` whose length is the angle to the optical axis in radians.

    distorted: `[..., 2]` normalized coordinates of OpenCV's equidistant fisheye;
    coefficients: `[..., 6]`, k1…k4 of the polynomial in the squared angle (p1, p2 are unused).
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


def matvec(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrix times vector, `[..., 3, 3] x [..., 3]`; elementwise, so that no GPU uses TF32."""
    return (matrices * vectors[..., None, :]).sum(dim=-1)


def image_rays(cameras: Cameras, index: int) -> Rays:
    """The `Rays [h, w]` of all pixels of one camera."""
    width, height = cameras.sizes[index].tolist()
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = (v.to(cameras.camtoworlds.device) for v in (y, x))
    return pixels_to_rays(cameras, torch.full_like(x, index), x, y)


def corner_rays(cameras: Cameras) -> Rays:
    """The `Rays [N, 4]` of each image's corner pixels."""
    corners = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], device=cameras.sizes.device)
    index = torch.arange(len(cameras), device=corners.device)[:, None].expand(-1, 4)
    return pixels_to_rays(cameras, index, *(corners * (cameras.sizes[:, None] - 1)).unbind(-1))


def ray_box(cameras: Cameras) -> Tensor:
    """The bounding box `[2, 3]` of all rays between near and far."""
    rays = corner_rays(cameras)
    ends = torch.cat([rays.origins + t * rays.directions for t in (rays.near, rays.far)])
    ends = ends.reshape(-1, 3)
    return torch.stack([ends.amin(dim=0), ends.amax(dim=0)])


def reached_box(scene: Scene) -> Tensor:
    """The bounding box `[2, 3]` of a scene's own box and its rays between near and far."""
    both = torch.stack([scene.box, ray_box(scene.cameras)])
    return torch.stack([both[:, 0].amin(dim=0), both[:, 1].amax(dim=0)])


def world_points(cameras: Cameras, rays: Rays, distance: Tensor) -> Tensor:
    """World points `[..., 3]` at t = `distance [...]` along rays of `cameras`, also in NDC."""
    points = rays.origins + distance[..., None] * rays.directions
    return points if cameras.ndc is None else coord.from_ndc(points, *cameras.ndc)


# Samples along rays.


def sample_along_rays(near: Tensor, far: Tensor, num_samples: int, jitter: Tensor | None = None,
                      lindisp: bool = False) -> Tensor:
    """Stratified bin edges of the coarse level (NeRF, eq. 2; mip-NeRF, section 3.1).

    near, far: `[..., 1]` in t. jitter: `[..., num_samples + 1]` in [0, 1) moves each edge between
    the midpoints to its neighbours; None leaves them evenly spaced, in t, or with `lindisp` in
    1 / t, which requires near above 0. Returns tdist `[..., num_samples + 1]`.
    """
    s = torch.linspace(0, 1, num_samples + 1, dtype=near.dtype, device=near.device)
    if lindisp:
        tdist = 1 / ((1 - s) / near + s / far)
    else:
        tdist = near * (1 - s) + far * s
    if jitter is None:
        return tdist
    t_mid = stepfun.midpoints(tdist)
    lower = torch.cat([tdist[..., :1], t_mid], dim=-1)
    upper = torch.cat([t_mid, tdist[..., -1:]], dim=-1)
    return lower + (upper - lower) * jitter


def resample_along_rays(tdist: Tensor, weights: Tensor, num_samples: int,
                        jitter: Tensor | None = None, resample_padding: float = 0.01) -> Tensor:
    """Bin edges of a finer level, sampled from a coarser level's weights (mip-NeRF, section 3.2).

    tdist: `[..., S+1]`; weights: `[..., S]`; jitter: `[..., num_samples + 1]` in [0, 1) or None.
    The weights are blurred, and `resample_padding` is added so that empty space is still sampled.
    Returns tdist `[..., num_samples + 1]`; no gradient flows through it.
    """
    with torch.no_grad():
        blurred = stepfun.max_blur(weights) + resample_padding
        return stepfun.sorted_piecewise_constant_pdf(tdist, blurred, num_samples + 1, jitter)


# From rays to Gaussians.


def footprint_radius(radii: Tensor | float, t: Tensor, ray_shape: str) -> Tensor:
    """Radius of a pixel's cone or cylinder at t; radii (at t = 1) and t broadcast."""
    return radii * (t if ray_shape == "cone" else torch.ones_like(t))


def conical_frustum_to_gaussian(directions: Tensor, t0: Tensor, t1: Tensor, radii: Tensor,
                                diag: bool = True) -> Gaussians:
    """Mean and covariance of a conical frustum, relative to the ray's origin.

    mip-NeRF, eqs. 7, 8 and 16, in the form that does not cancel for thin frustums.
    directions: `[..., 3]`; t0, t1: `[..., S]` ends in t; radii: `[..., 1]` at t = 1.
    Returns `Gaussians` with diagonal (`diag`) or full covariances.
    """
    t_mid, t_half = (t0 + t1) / 2, (t1 - t0) / 2
    ratio = _frustum_ratio(t_mid, t_half)
    t_mean = t_mid + 2 * t_mid * ratio
    t_var = t_half**2 / 3 - 4 / 15 * ratio**2 * (12 * t_mid**2 - t_half**2)
    r_var = radii**2 * (t_mid**2 / 4 + t_half**2 * (5 / 12 - 4 / 15 * ratio))
    return _lift_gaussian(directions, t_mean, t_var, r_var, diag)


def _frustum_ratio(t_mid, t_half):
    # It is 0/0 for an empty frustum at t = 0, whose moments are all 0.
    return t_half**2 / (3 * t_mid**2 + t_half**2).clamp(min=torch.finfo(t_mid.dtype).tiny)


def _mean_distance(t0, t1, ray_shape):
    """Mean t `[..., S]` of each interval's volume, as of the Gaussians of `cast_rays`."""
    t_mid, t_half = (t0 + t1) / 2, (t1 - t0) / 2
    if ray_shape == "cylinder":
        return t_mid
    return t_mid + 2 * t_mid * _frustum_ratio(t_mid, t_half)


def cylinder_to_gaussian(directions: Tensor, t0: Tensor, t1: Tensor, radii: Tensor,
                         diag: bool = True) -> Gaussians:
    """Mean and covariance of a cylinder of radius `radii`, relative to the ray's origin.

    Arguments as in `conical_frustum_to_gaussian` (mip-NeRF's official code, for NDC).
    """
    t_var = (t1 - t0) ** 2 / 12
    r_var = (radii**2 / 4).expand_as(t_var)
    return _lift_gaussian(directions, (t0 + t1) / 2, t_var, r_var, diag)


def _lift_gaussian(directions, t_mean, t_var, r_var, diag):
    """Gaussians in space from moments along and across a ray, `[..., S]` (mip-NeRF, eq. 8)."""
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


def cast_rays(tdist: Tensor, origins: Tensor, directions: Tensor, radii: Tensor, ray_shape: str,
              diag: bool = True) -> Gaussians:
    """Gaussians `[..., S]` of all intervals of rays, in the coordinates of the rays.

    tdist: `[..., S+1]`; origins, directions: `[..., 3]`; radii: `[..., 1]`;
    ray_shape: "cone" or "cylinder".
    """
    shapes = {"cone": conical_frustum_to_gaussian, "cylinder": cylinder_to_gaussian}
    means, covs = shapes[ray_shape](directions, tdist[..., :-1], tdist[..., 1:], radii, diag)
    return Gaussians(means + origins[..., None, :], covs)


def multisample_rays(
    tdist: Tensor, origins: Tensor, directions: Tensor, radii: Tensor, ray_shape: str,
    num_multisamples: int, rotations: Tensor | None = None,
) -> IsotropicGaussians:
    """Isotropic multisamples of each conical frustum (Zip-NeRF, section 2), or cylinder.

    num_multisamples: 6, on a helix, with the mean and (averaged over rotations) the covariance of
    the frustum; or 1, at the mean and as wide as the frustum is across. rotations: `[..., S]` in
    [0, 1), the rotation of each interval's helix about the ray: [0, 0.5) is a full turn, [0.5, 1)
    another of the mirrored helix; None rotates none. Other arguments as in `cast_rays`.
    Returns `IsotropicGaussians [..., S, num_multisamples]`. Raises ValueError for other numbers.
    """
    if num_multisamples not in (1, NUM_MULTISAMPLES):
        raise ValueError(f"num_multisamples is {num_multisamples}; 1 or {NUM_MULTISAMPLES} is "
                         "expected")
    t0, t1 = tdist[..., :-1], tdist[..., 1:]
    if num_multisamples == 1:
        t_mean = _mean_distance(t0, t1, ray_shape)[..., None]
        means = origins[..., None, :] + t_mean * directions[..., None, :]
        stds = 0.5 * footprint_radius(radii, 0.5 * (t0 + t1), ray_shape)
        return IsotropicGaussians(means[..., None, :], stds[..., None])
    along = _helix_distances(t0, t1, ray_shape)
    across = footprint_radius(radii[..., None], along, ray_shape)
    # Angles in sixths of a turn: 0, 2, 4, then 3, 5, 1.
    order = torch.arange(NUM_MULTISAMPLES, device=tdist.device)
    hexagon = ((2 * order - 3 * (order >= 3)) % NUM_MULTISAMPLES).to(tdist) / NUM_MULTISAMPLES
    rotations = torch.zeros_like(t0) if rotations is None else rotations
    handedness, phase = torch.where(rotations < 0.5, 1, -1), 2 * rotations
    angles = 2 * math.pi * (handedness[..., None] * hexagon + phase[..., None])
    side, up = orthonormal_frame(directions)
    offsets = (angles.cos()[..., None] * side[..., None, None, :]
               + angles.sin()[..., None] * up[..., None, None, :])
    means = (origins[..., None, None, :] + along[..., None] * directions[..., None, None, :]
             + across[..., None] / math.sqrt(2) * offsets)
    return IsotropicGaussians(means, across / math.sqrt(8))


def _helix_distances(t0, t1, ray_shape):
    """Six distances `[..., S, 6]` with the mean and variance in t of each interval's volume."""
    steps = torch.linspace(-1, 1, NUM_MULTISAMPLES, dtype=t0.dtype, device=t0.device)
    t0, t1 = t0[..., None], t1[..., None]
    t_mid, t_half = 0.5 * (t0 + t1), 0.5 * (t1 - t0)
    if ray_shape == "cylinder":
        return t_mid + math.sqrt(5 / 7) * t_half * steps
    spread = ((t_half**2 - t_mid**2) ** 2 + 4 * t_mid**4).sqrt()
    mean = t1**2 + 2 * t_mid**2
    # The scale is 0/0 for an empty frustum at t = 0.
    scale = t_half / (t_half**2 + 3 * t_mid**2).clamp(min=torch.finfo(t0.dtype).tiny)
    return t0 + scale * (mean + 3 / math.sqrt(7) * spread * steps)


def orthonormal_frame(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors `[..., 3]` orthogonal to directions and to each other (Zip-NeRF's code)."""
    up = torch.tensor([0.0, 0.0, 1.0]).to(directions)
    side = torch.linalg.cross(directions, up.expand_as(directions))
    # A direction parallel to the z axis.
    other = torch.linalg.cross(directions, torch.ones_like(directions))
    side = torch.where((side == 0).all(dim=-1, keepdim=True), other, side)
    side = torch.nn.functional.normalize(side, dim=-1)
    return side, torch.nn.functional.normalize(torch.linalg.cross(directions, side), dim=-1)


# From samples to pixels.


def compute_weights(density: Tensor, tdist: Tensor, directions: Tensor,
                    opaque_background: bool = False) -> Tensor:
    """Volume-rendering weights: transmittance times alpha of each interval (NeRF, eq. 3).

    density: `[..., S]` per unit of the rays' coordinates; tdist: `[..., S+1]`; directions:
    `[..., 3]`, whose length converts t to these units; opaque_background: whether the last interval
    is opaque (mip-NeRF 360's code). Returns weights `[..., S]`, which sum to at most 1.
    """
    length = (tdist[..., 1:] - tdist[..., :-1]) * directions.norm(dim=-1, keepdim=True)
    density_delta = density * length
    cumulative = density_delta[..., :-1].cumsum(dim=-1)
    optical_depth = torch.cat([torch.zeros_like(density_delta[..., :1]), cumulative], dim=-1)
    alpha = -torch.expm1(-density_delta)
    if opaque_background:
        alpha = torch.cat([alpha[..., :-1], torch.ones_like(alpha[..., -1:])], dim=-1)
    return alpha * torch.exp(-optical_depth)


def volumetric_rendering(rgb: Tensor, weights: Tensor, tdist: Tensor, bg_rgb: float | Tensor,
                         log_distance: bool = False) -> CompositeOutput:
    """Composite samples into pixels (mip-NeRF, eq. 3).

    rgb: `[..., S, 3]`; weights: `[..., S]`; tdist: `[..., S+1]`; bg_rgb: a number or `[..., 3]`.
    `distance_mean` is the mean of the midpoints, of their logarithms with `log_distance` (mip-NeRF
    360's code); `distance_median` is where the transmittance falls to a half. Both are the far end
    for an empty ray.
    """
    acc = weights.sum(dim=-1)
    colour = (weights[..., None] * rgb).sum(dim=-2) + (1 - acc)[..., None] * bg_rgb
    near, far = tdist[..., 0], tdist[..., -1]
    # An opacity below eps is lost in 1 - acc: such a ray counts as empty.
    mean = expected_distance(
        weights, acc, tdist, torch.finfo(acc.dtype).eps, empty=far, log_distance=log_distance)
    mean = torch.minimum(torch.maximum(mean, near), far)
    with_background = torch.cat([weights, (1 - acc).clamp(min=0)[..., None]], dim=-1)
    fenceposts = torch.cat([tdist, far[..., None]], dim=-1)
    median = stepfun.weighted_percentile(fenceposts, with_background, [50])[..., 0]
    return CompositeOutput(colour, acc, mean, median)


def expected_distance(weights: Tensor, acc: Tensor, tdist: Tensor, min_acc: float,
                      empty: Tensor | None = None, log_distance: bool = False) -> Tensor:
    """Mean t `[...]` of the interval midpoints of rays, weighted by their `weights`.

    weights: `[..., S]`; acc: `[...]`, their sum; tdist: `[..., S+1]`. min_acc: the smallest opacity
    that is divided by; rays of at most this opacity get `empty [...]`, or if None a mean that
    falls to 0 with their opacity. log_distance: whether the mean is that of logarithms.
    """
    t = stepfun.midpoints(tdist)
    if log_distance:
        t = t.clamp(min=torch.finfo(t.dtype).tiny).log()
    mean = (weights * t).sum(dim=-1) / acc.clamp(min=min_acc)
    mean = mean.exp() if log_distance else mean
    return mean if empty is None else torch.where(acc > min_acc, mean, empty)
