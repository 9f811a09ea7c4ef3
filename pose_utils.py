"""Camera poses in float64 NumPy: averages, recentring, spherifying, alignment, orbits.

`camtoworlds` are `[N, 3, 4]` with OpenGL axes (x right, y up, looking along -z). A function that
moves the world returns the moved poses and the similarity `[4, 4]` that moves points likewise.
"""

import numpy as np


def normalize(x):
    """A vector of length 1."""
    return x / np.linalg.norm(x)


def view_matrix(backward, up, position):
    """A pose `[3, 4]` at `position` whose camera looks along -`backward`."""
    z = normalize(backward)
    x = normalize(np.cross(up, z))
    return np.stack([x, np.cross(z, x), z, position], axis=1)


def average_pose(camtoworlds):
    """The mean position with the mean axes (NeRF's official code); `[3, 4]`."""
    backward, up = camtoworlds[:, :, 2].sum(axis=0), camtoworlds[:, :, 1].sum(axis=0)
    return view_matrix(backward, up, camtoworlds[:, :, 3].mean(axis=0))


def homogeneous(poses):
    """`[..., 3, 4]` with the row (0, 0, 0, 1) below: `[..., 4, 4]`."""
    last = np.broadcast_to([0.0, 0.0, 0.0, 1.0], (*poses.shape[:-2], 1, 4))
    return np.concatenate([poses, last], axis=-2)


def transform_poses(camtoworlds, transform):
    """Poses in a world moved by a similarity `[4, 4]`; rotations keep their length."""
    moved = (transform @ homogeneous(camtoworlds))[:, :3]
    scale = np.cbrt(np.linalg.det(transform[:3, :3]))
    moved[:, :, :3] /= scale
    return moved


def scaling(factor):
    """The similarity `[4, 4]` that scales about the origin."""
    return np.diag([factor, factor, factor, 1.0])


def from_opencv(worldtocams):
    """`camtoworlds [N, 3, 4]` of maps from the world to OpenCV's axes (y down, looking along z)."""
    turned = np.swapaxes(worldtocams[:, :, :3], 1, 2)
    positions = -turned @ worldtocams[:, :, 3:]
    return np.concatenate([turned * [1.0, -1.0, -1.0], positions], axis=2)


def recentre(camtoworlds):
    """Move the world so that the average pose is the identity."""
    transform = np.linalg.inv(homogeneous(average_pose(camtoworlds)))
    return transform_poses(camtoworlds, transform), transform


def focus_point(camtoworlds):
    """The point `[3]` nearest to all optical axes, in the least-squares sense."""
    directions, origins = camtoworlds[:, :, 2:3], camtoworlds[:, :, 3:4]
    across = np.eye(3) - directions * np.swapaxes(directions, 1, 2)
    normal_matrix = np.mean(np.swapaxes(across, 1, 2) @ across, axis=0)
    # Parallel axes have no single nearest point: the pseudo-inverse takes the closest to 0.
    return np.linalg.pinv(normal_matrix) @ np.mean(across @ origins, axis=0)[:, 0]


def spherify(camtoworlds):
    """Move an inward-facing capture: focus at the origin, cameras at RMS distance 1, up along z.

    As NeRF's official code does it; "up" is the mean direction from the focus to the cameras.
    """
    centre = focus_point(camtoworlds)
    z = normalize((camtoworlds[:, :, 3] - centre).mean(axis=0))
    x = normalize(np.cross([0.1, 0.2, 0.3], z))
    frame = np.stack([x, normalize(np.cross(z, x)), z, centre], axis=1)
    to_frame = np.linalg.inv(homogeneous(frame))
    moved = transform_poses(camtoworlds, to_frame)
    factor = 1 / np.sqrt(np.mean(np.sum(moved[:, :, 3] ** 2, axis=-1)))
    transform = scaling(factor) @ to_frame
    return transform_poses(camtoworlds, transform), transform


def align_pca(camtoworlds):
    """Move the cameras' mean to the origin, their principal axes to x, y, z, and all into a cube.

    As mip-NeRF 360's code does it: variance falls from x to z, the mean upward axis has z above 0
    (a mean of 0 is left as it is), and the largest coordinate of a camera is 1. Signs that this
    leaves open are chosen by the axes' largest components. Cameras must not all be in one place.
    """
    positions = camtoworlds[:, :, 3]
    mean = positions.mean(axis=0)
    _, axes = np.linalg.eigh((positions - mean).T @ (positions - mean))
    rotation = axes[:, ::-1].T
    largest = np.abs(rotation).argmax(axis=1)
    rotation = rotation * np.sign(rotation[[0, 1, 2], largest])[:, None]
    rotation[2] *= np.sign(np.linalg.det(rotation))
    if rotation[2] @ camtoworlds[:, :, 1].mean(axis=0) < 0:
        rotation = rotation * np.array([[1.0], [-1.0], [-1.0]])
    factor = 1 / np.abs((positions - mean) @ rotation.T).max()
    transform = np.eye(4)
    transform[:3] = factor * np.c_[rotation, -rotation @ mean]
    return transform_poses(camtoworlds, transform), transform


def ahead_of(camtoworld, depth):
    """The point `[3]` on the optical axis of a pose `[3, 4]` at a depth."""
    return camtoworld[:, 3] - depth * camtoworld[:, 2]


def up_direction(camtoworlds):
    """The unit vector `[3]` that upright cameras agree on: their x axes are horizontal.

    Where they do not tell (one camera, or all in a row), their mean upward axis.
    """
    mean_up = camtoworlds[:, :, 1].mean(axis=0)
    spread, axes = np.linalg.eigh(camtoworlds[:, :, 0].T @ camtoworlds[:, :, 0] / len(camtoworlds))
    if spread[1] < 0.05:
        return normalize(mean_up)
    # Cameras that look straight down may have any roll; what is behind them is up.
    hint = mean_up if abs(axes[:, 0] @ mean_up) > 0.05 else camtoworlds[:, :, 2].mean(axis=0)
    return axes[:, 0] * (1 if axes[:, 0] @ hint > 0 else -1)


def horizontal_axes(up):
    """Two unit vectors `[2, 3]` that make a right-handed frame with `up [3]`."""
    helper = np.eye(3)[np.argmin(np.abs(up))]
    first = normalize(np.cross(helper, up))
    return np.stack([first, np.cross(up, first)])


def angles_about(camtoworlds, centre, up):
    """Azimuths and elevations `[N]` in radians of cameras about a point."""
    outward = camtoworlds[:, :, 3] - centre
    x, y = horizontal_axes(up) @ outward.T
    return np.arctan2(y, x), np.arctan2(outward @ up, np.hypot(x, y))


def orbit(centre, up, radius, azimuths, elevations):
    """Poses `[F, 3, 4]` on a sphere that look at its centre; angles `[F]` in radians.

    The horizontal axis is the sphere's tangent, so that the poles are no special case.
    """
    x, y = horizontal_axes(up)
    outward_flat = np.cos(azimuths)[:, None] * x + np.sin(azimuths)[:, None] * y
    right = np.cos(azimuths)[:, None] * y - np.sin(azimuths)[:, None] * x
    outward = np.cos(elevations)[:, None] * outward_flat + np.sin(elevations)[:, None] * up
    return np.stack([right, np.cross(outward, right), outward, centre + radius * outward], axis=2)


def pose_fault(camtoworld):
    """What is wrong with a pose `[3, 4]`, in words, or None."""
    if not np.isfinite(camtoworld).all():
        return "holds values that are not finite"
    rotation = camtoworld[:, :3]
    error = np.abs(rotation.T @ rotation - np.eye(3)).max()
    if error > 1e-3:
        return f"is no rotation (its columns differ from orthonormal ones by {error:.2g})"
    if np.linalg.det(rotation) < 0:
        return "is mirrored (its rotation has determinant -1)"
    return None
