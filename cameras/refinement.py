"""Camera refinement: small changes of cameras, learnt with the scene (CamP, SIGGRAPH Asia 2023).

A change has the columns of `PARAMETERS`. What is learnt is a preconditioned change: a unit of each
of its numbers moves the projected points of a camera's frustum by about one image width, and
different numbers move them in uncorrelated ways (CamP, section 4).
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from coord import inverse_power_ladder, power_ladder
from ray_utils import pixels_to_rays, points_to_pixels
from structures import Batch, Cameras

# Rotation vector in radians and translation in world units, both along the camera's axes; log of
# the focal length's factor; shift of the principal point in focal lengths; radial distortion.
PARAMETERS = ("turn_x", "turn_y", "turn_z", "move_x", "move_y", "move_z",
              "log_focal", "centre_x", "centre_y", "k1", "k2")
NUM_POSE, FOCAL, CENTRE, RADIAL = 6, 6, slice(7, 9), slice(9, 11)

# Points of the preconditioner: number per camera, range of distances, and the power of the curve
# along which distances are spaced.
NUM_POINTS, NEAREST, FARTHEST, POINT_POWER = 5000, 0.4, 1000.0, -1.5

# Damping of the preconditioner: a multiple of the diagonal, and its least value (CamP, eq. 6).
DIAGONAL_PADDING, LEAST_PADDING = 0.1, 1e-8

# Weights of the variances over cameras of the changes of log focal length, principal point (in
# pixels) and radial distortion.
FOCAL_WEIGHT, CENTRE_WEIGHT, RADIAL_WEIGHT = 0.1, 0.1, 0.01

# Cameras whose Jacobians are evaluated at once.
CAMERAS_AT_ONCE = 4


class CameraRefinement(nn.Module):
    """Maps the cameras of N photographs to refined ones; at first to themselves.

    A photograph used at several scales has a camera for each, and one change for all of them.
    Cameras are those of all photographs at the first scale, then at the next one, and so on.
    pose_only: leave focal length, principal point and distortion as they are. The preconditioner is
    the identity until it is loaded, or computed by `for_cameras`.
    """

    preconditioner: Tensor

    def __init__(self, num_cameras: int, pose_only: bool = False):
        super().__init__()
        size = NUM_POSE if pose_only else len(PARAMETERS)
        self.latent = nn.Parameter(torch.zeros(num_cameras, size))
        self.register_buffer("preconditioner", torch.eye(size).repeat(num_cameras, 1, 1))

    @classmethod
    def for_cameras(cls, cameras: Cameras, pose_only: bool = False) -> "CameraRefinement":
        """The refinement of some cameras, with its preconditioner, on their device."""
        refinement = cls(len(cameras), pose_only).to(cameras.camtoworlds.device)
        refinement.preconditioner.copy_(preconditioners(cameras, refinement.latent.shape[1]))
        return refinement

    def forward(self, cameras: Cameras) -> Cameras:
        """The refined cameras."""
        changes = self.changes()
        return change_cameras(cameras, changes.repeat(len(cameras) // len(changes), 1))

    def changes(self) -> Tensor:
        """The change of each photograph's cameras, `[N, K]`: the first K of `PARAMETERS`."""
        return (self.preconditioner * self.latent[:, None, :]).sum(dim=-1)

    def cast(self, cameras: Cameras, batch: Batch) -> Batch:
        """A batch of pixels of `cameras` with the rays of the refined cameras."""
        assert batch.pixels is not None
        cam_idx = batch.rays.cam_idx[..., 0]
        rays = pixels_to_rays(self(cameras), cam_idx, *batch.pixels.unbind(-1))
        rays = replace(rays, lights=batch.rays.lights, image_idx=batch.rays.image_idx)
        return replace(batch, rays=rays)

    def variance_loss(self, cameras: Cameras) -> Tensor:
        """Weighted variances over photographs of the changes of their intrinsics, a scalar.

        The official code takes those of the intrinsics themselves, which differs if the original
        ones do: cameras of different lenses are not drawn to each other here.
        """
        changes = self.changes()
        pixel_sizes = cameras.pixtocams[: len(changes), [0, 1], [0, 1]].abs()
        in_pixels = changes[:, CENTRE] / pixel_sizes

        def variance(x):
            return x.var(dim=0, correction=0).mean()

        return (FOCAL_WEIGHT * variance(changes[:, FOCAL]) + CENTRE_WEIGHT * variance(in_pixels)
                + RADIAL_WEIGHT * variance(changes[:, RADIAL]))


def change_cameras(cameras: Cameras, changes: Tensor) -> Cameras:
    """Cameras changed by `changes [N, K]`; K = 6 changes only their poses."""
    rotations, positions = cameras.camtoworlds.split([3, 1], dim=-1)
    turns = rotation_matrices(changes[:, :3])
    # Elementwise, so that no GPU uses TF32.
    turned = (rotations[..., None] * turns[:, None]).sum(dim=-2)
    moved = positions + (rotations * changes[:, None, 3:6]).sum(dim=-1, keepdim=True)
    cameras = replace(cameras, camtoworlds=torch.cat([turned, moved], dim=-1))
    return cameras if changes.shape[-1] == NUM_POSE else _change_intrinsics(cameras, changes)


def _change_intrinsics(cameras, changes):
    """Cameras with changed focal length, principal point and radial distortion."""
    x_row, y_row, z_row = cameras.pixtocams.unbind(dim=-2)
    factor = torch.exp(-changes[:, FOCAL, None])
    # z_row gives -1; the principal point moves right and down, camera axes point right and up.
    right, down = changes[:, CENTRE, None].unbind(dim=1)
    rows = [factor * x_row + right * z_row, factor * y_row - down * z_row, z_row]
    distortion = changes.new_zeros(len(cameras), 6)
    if cameras.distortion is not None:
        distortion = distortion + cameras.distortion
    radial = torch.nn.functional.pad(changes[:, RADIAL], (0, 4))
    return replace(cameras, pixtocams=torch.stack(rows, dim=-2), distortion=distortion + radial)


def rotation_matrices(vectors: Tensor) -> Tensor:
    """Rotations `[N, 3, 3]` about axes by angles in radians: `vectors [N, 3]` are their products.

    Rodrigues' formula, with finite derivatives at 0.
    """
    # The root of 0 would have no derivative.
    angles = ((vectors**2).sum(dim=-1) + 1e-24).sqrt()[:, None, None]
    x, y, z = vectors.unbind(dim=-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(-1, 3, 3)
    squared = (cross[..., None] * cross[:, None]).sum(dim=-2)
    sine = torch.sinc(angles / math.pi)
    cosine = 0.5 * torch.sinc(0.5 * angles / math.pi) ** 2
    return torch.eye(3).to(vectors) + sine * cross + cosine * squared


# The preconditioner.


def preconditioners(cameras: Cameras, size: int = len(PARAMETERS)) -> Tensor:
    """Inverse roots `[N, size, size]` of J^T J, averaged over points and damped (CamP, section 4).

    J: Jacobian of a point's place in the image, in units of the image's longer side, with respect
    to the first `size` of `PARAMETERS`, over random points in the camera's frustum.
    """
    found = []
    for i in range(0, len(cameras), CAMERAS_AT_ONCE):
        part = cameras[i : i + CAMERAS_AT_ONCE]
        jacobians = projection_jacobians(part, frustum_points(part, NUM_POINTS), size)
        found.append(damped_inverse_roots(mean_squares(jacobians)))
    return torch.cat(found)


def frustum_points(cameras: Cameras, count: int) -> Tensor:
    """Random points `[N, count, 3]` of the world inside each camera's image; the same each time.

    Distances are spaced evenly on the curve P(t, -1.5) from 0.4 to 1000 (CamP's code).
    """
    device, dtype = cameras.camtoworlds.device, cameras.camtoworlds.dtype
    random = torch.rand(count, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    x, y, s = random.to(device).expand(len(cameras), -1, -1).unbind(dim=-1)
    width, height = cameras.sizes[:, None].to(dtype).unbind(dim=-1)
    # `pixels_to_rays` adds half a pixel.
    index = torch.arange(len(cameras), device=device)[:, None].expand_as(x)
    rays = pixels_to_rays(replace(cameras, ndc=None), index, x * width - 0.5, y * height - 0.5)
    first, last = (power_ladder(torch.as_tensor(t).to(s), POINT_POWER)
                   for t in (NEAREST, FARTHEST))
    t = inverse_power_ladder(first + s * (last - first), POINT_POWER)
    return rays.origins + t[..., None] * rays.viewdirs


def projection_jacobians(cameras: Cameras, points: Tensor, size: int = len(PARAMETERS)) -> Tensor:
    """Derivatives `[N, P, 2, size]` of projected points by the first `size` of `PARAMETERS`.

    points: `[N, P, 3]`, for each camera. Places in the image are in units of its longer side. NaN
    for points outside of the image.
    """
    count, num_points = points.shape[:2]
    index = torch.arange(count, device=points.device).repeat_interleave(num_points)
    # Each point has a copy of its camera, so two backward passes give all derivatives.
    copies = cameras[index]
    changes = points.new_zeros(len(index), size, requires_grad=True)
    each = torch.arange(len(index), device=points.device)
    pixels, _ = points_to_pixels(change_cameras(copies, changes), each, points.flatten(0, 1))
    sizes = copies.sizes.to(points)
    places = pixels / sizes.amax(dim=-1, keepdim=True)
    rows = [torch.autograd.grad(row.sum(), changes, retain_graph=True)[0]
            for row in places.unbind(dim=-1)]
    inside = ((pixels >= 0) & (pixels <= sizes)).all(dim=-1)
    jacobians = torch.stack(rows, dim=1).where(inside[:, None, None], torch.nan)
    return jacobians.reshape(count, num_points, 2, size)


def mean_squares(jacobians: Tensor) -> Tensor:
    """J^T J `[N, K, K]`, averaged over those of the points `[N, P, 2, K]` that are finite."""
    valid = jacobians.isfinite().flatten(2).all(dim=-1)
    jacobians = jacobians.where(valid[..., None, None], 0.0).flatten(1, 2)
    return jacobians.mT @ jacobians / valid.sum(dim=1).clamp(min=1)[:, None, None]


def damped_inverse_roots(matrices: Tensor) -> Tensor:
    """Inverse square roots of symmetric matrices `[N, K, K]` whose diagonals are padded.

    In float64 on the CPU, since MPS has neither float64 nor eigenvalues.
    """
    matrices = matrices.double().cpu()
    padding = DIAGONAL_PADDING * matrices.diagonal(dim1=-2, dim2=-1)
    padded = matrices + torch.diag_embed(padding.clamp(min=LEAST_PADDING))
    values, vectors = torch.linalg.eigh(padded)
    return vectors * values.rsqrt()[:, None, :] @ vectors.mT
