"""Fusion of distances that are known by geometry."""

import numpy as np
import torch

from exporters.tsdf import DistanceMaps, fused_occupancy, interpolated
from ray_utils import image_rays
from structures import Cameras

CELL = 0.02
POSITIONS = np.array([[0.0, 0, 0], [0.3, 0, 0], [0, 0.3, 0], [-0.3, -0.2, 0]])


def wall_cameras():
    """Cameras of 40 x 30 pixels that look along -z."""
    camtoworlds = torch.eye(4)[:3].repeat(len(POSITIONS), 1, 1)
    camtoworlds[:, :, 3] = torch.as_tensor(POSITIONS)
    pixtocam = torch.tensor([[1 / 40, 0, -0.5], [0, -1 / 40, 0.375], [0, 0, -1.0]])
    return Cameras(camtoworlds=camtoworlds, pixtocams=pixtocam.repeat(len(POSITIONS), 1, 1),
                   sizes=torch.tensor([[40, 30]] * len(POSITIONS)), near=0.1, far=10.0)


def wall_maps(noise=0.0):
    """Distances to the wall z = -2."""
    cameras, generator = wall_cameras(), torch.Generator().manual_seed(0)
    distances = []
    for index in range(len(cameras)):
        directions = image_rays(cameras, index).viewdirs
        distances.append(-2 / directions[..., 2]
                         + noise * torch.randn(30, 40, generator=generator))
    return DistanceMaps(cameras, 1, distances)


def test_occupancy_of_a_wall_crosses_one_half_on_it():
    occupancy = fused_occupancy(wall_maps(), CELL, None)
    xy = np.random.default_rng(0).uniform(-0.3, 0.3, (200, 2))
    for z, low, high in ((-2.0, 0.495, 0.505), (-1.5, 0, 0), (-1.9, 0.2, 0.28), (-2.1, 0.7, 0.78)):
        values = occupancy(np.concatenate([xy, np.full((200, 1), z)], axis=1))
        assert low <= values.min() and values.max() <= high, (z, values.min(), values.max())


def test_points_behind_the_wall_or_seen_by_two_views_are_unknown():
    occupancy = fused_occupancy(wall_maps(), CELL, None)
    assert (occupancy(np.array([[0, 0, -2.3], [0, 0, 1], [1.2, 0, -2]])) == -np.inf).all()
    assert len(occupancy(np.zeros((0, 3)))) == 0


def test_noise_of_distances_is_averaged():
    points = np.concatenate([np.random.default_rng(0).uniform(-0.3, 0.3, (500, 2)),
                             np.full((500, 1), -2)], axis=1)
    # A standard deviation of two cells, of four views.
    values = fused_occupancy(wall_maps(noise=2 * CELL), CELL, None)(points)
    offset_in_cells = 20 * (values - 0.5)
    assert 0.3 < offset_in_cells.std() < 1.1 and abs(offset_in_cells.mean()) < 0.2


def test_distances_are_not_interpolated_across_an_edge():
    surface = torch.tensor([[1.0, 1.02, 3.0], [1.0, 1.02, 3.0], [1.0, 1.02, torch.inf]])
    cells = torch.tensor([[0.5, 0.5], [1.4, 0.0], [1.6, 0.0], [1.6, 2.0]])
    found = interpolated(surface, cells)
    torch.testing.assert_close(found, torch.tensor([1.01, 1.02, 3.0, torch.inf]))
