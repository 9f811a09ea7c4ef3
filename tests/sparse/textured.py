"""Images of two textured planes, traced without the project's own rays, and the true surface."""

import functools

import cv2
import numpy as np
import torch

from loaders.lenses import make_cameras

# The corner of two walls: the floor z = 0, and the wall y = 1.
WALL_Y = 1.0


@functools.cache
def texture(seed):
    noise = np.random.default_rng(seed).uniform(0, 255, (512, 512)).astype(np.float32)
    blurred = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (1.5, 3.0, 6.0))
    return cv2.normalize(blurred, None, 0, 255, cv2.NORM_MINMAX)


def camera_poses(count):
    """Poses `[N, 4, 4]` on an arc in front of the corner, OpenGL axes."""
    poses = []
    for angle in np.linspace(-0.35, 0.35, count):
        height = 1.6 + 0.3 * np.cos(5 * angle)
        position = np.array([3 * np.sin(angle), 1 - 3 * np.cos(angle), height])
        back = position - (0, 0.6, 0.3)
        back /= np.linalg.norm(back)
        right = np.cross((0, 0, 1), back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3] = np.stack([right, np.cross(back, right), back, position], axis=1)
        poses.append(pose)
    return np.stack(poses)


def render(pose, size, matrix, distortion):
    """The uint8 image `[h, w]` of OpenCV's camera, by intersecting each pixel's ray."""
    width, height = size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([x, y], -1).reshape(-1, 1, 2)
    criteria = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 100, 1e-12)
    plane = cv2.undistortPoints(pixels, matrix, np.array(distortion, dtype=float),
                                criteria=criteria)[:, 0]
    directions = np.c_[plane[:, 0], -plane[:, 1], -np.ones(len(plane))] @ pose[:3, :3].T
    origin = pose[:3, 3]
    to_floor = -origin[2] / np.minimum(directions[:, 2], -1e-9)
    to_wall = (WALL_Y - origin[1]) / np.maximum(directions[:, 1], 1e-9)
    hits = origin + np.minimum(to_floor, to_wall)[:, None] * directions
    on_floor = to_floor < to_wall
    image = np.where(on_floor, sample(0, hits[:, [0, 1]]), sample(1, hits[:, [0, 2]]))
    return image.reshape(height, width).round().astype(np.uint8)


def sample(seed, places):
    """Values of a repeating texture, 100 cells to a unit."""
    u, v = ((100 * places + 256) % 511).astype(np.float32).T
    return cv2.remap(texture(seed), u[None], v[None], cv2.INTER_LINEAR)[0]


def corner_scene(count=6, sizes=((160, 120),), distortion=(0, 0, 0, 0)):
    """`Cameras` and images of the corner; sizes: of the images, in turn."""
    poses, images, matrices = camera_poses(count), [], []
    used = [sizes[i % len(sizes)] for i in range(count)]
    for pose, (width, height) in zip(poses, used, strict=True):
        focal = 1.1 * max(width, height)
        matrix = np.array([[focal, 0, 0.52 * width], [0, 1.05 * focal, 0.47 * height], [0, 0, 1.0]])
        images.append(render(pose, (width, height), matrix, distortion))
        matrices.append(np.linalg.inv(matrix))
    k1, k2, p1, p2 = distortion
    coefficients = torch.tensor([[k1, k2, 0.0, 0.0, p1, p2]] * count) if any(distortion) else None
    cameras = make_cameras(poses[:, :3], np.stack(matrices), np.array(used), near=0.1, far=10.0,
                           distortion=coefficients)
    return cameras, images


def off_surface(positions):
    """Distance `[M]` of points from the nearer of the two planes."""
    return np.minimum(np.abs(positions[:, 2]), np.abs(positions[:, 1] - WALL_Y))
