"""Scenes for cameras that do not look inward, against the sizes of their boxes."""

import numpy as np
import pytest
import torch

from procedural.arrangements import ARRANGEMENTS
from procedural.tracing import distance_to_surface
from scripts.bench_ranges import write_scene
from tests.scenes import open_scene

# Nearest and farthest depth that a camera can see, from the boxes' corners, in world units.
RANGES = {"track": (2.45, 12.01), "facade": (1.849, 2.001), "flight": (21.99, 30.01),
          "panorama": (3.4, 14.0)}


@pytest.mark.parametrize("kind", ARRANGEMENTS)
def test_cameras_see_the_boxes_at_their_distances(kind):
    arrangement = ARRANGEMENTS[kind]()
    points, depths = arrangement.surface()
    low, high = RANGES[kind]
    assert low < depths.min() < depths.max() < high
    off = distance_to_surface(torch.from_numpy(points), arrangement.parts)
    assert float(off.abs().max()) < 1e-9
    rotations = arrangement.camtoworlds[:, :3, :3]
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1),
                               np.broadcast_to(np.eye(3), rotations.shape), atol=1e-12)
    assert (np.linalg.det(rotations) > 0.99).all()


def test_a_written_scene_has_the_cameras_of_its_arrangement(tmp_path):
    arrangement = ARRANGEMENTS["facade"]()
    few = arrangement._replace(camtoworlds=arrangement.camtoworlds[:2])
    write_scene(tmp_path / "scene", few)
    dataset = open_scene(tmp_path / "scene", "nerfstudio", "train", read_pixels=False)
    # The first camera's corner ray meets the wall's plane y = 2 where the focal length says.
    inverse = torch.linalg.inv(dataset.scene.world_to_scene.double())
    cameras = dataset.loader.aligned[0]
    corner = cameras.pixtocams[0].double() @ torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    direction = inverse[:3, :3] @ (cameras.camtoworlds[0, :, :3].double() @ corner)
    position = (inverse @ torch.cat([cameras.camtoworlds[0, :, 3].double(),
                                     torch.ones(1, dtype=torch.float64)]))[:3]
    hit = position + direction * ((2 - position[1]) / direction[1])
    expected = few.camtoworlds[0, :3, 3] + [-2 * 100 / 180, 2, 2 * 75 / 180]
    np.testing.assert_allclose(hit.numpy(), expected, atol=1e-4)
