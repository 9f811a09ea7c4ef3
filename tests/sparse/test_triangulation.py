"""Points on surfaces: features, matches, tracks and triangulation against traced scenes."""

import itertools

import numpy as np
import pytest
import torch

from ray_utils import points_to_pixels
from sparse import features, matching_numba, triangulation
from sparse.features import best_matches, choose_pairs, feature_scale, find_features
from sparse.triangulation import Tracks, triangulate, triangulate_tracks
from tests.sparse.textured import corner_scene, off_surface


def reader(images, masks=None):
    return lambda i: (images[i], None if masks is None else masks[i])


@pytest.mark.parametrize("options", [
    {}, {"distortion": (-0.1, 0.03, 0.004, -0.003)}, {"sizes": ((120, 160), (160, 120))},
], ids=["pinhole", "distorted", "sizes"])
def test_points_lie_on_the_surface(options):
    cameras, images = corner_scene(**options)
    points = triangulate(cameras, reader(images))
    points.check()
    assert len(points) > 300
    off = off_surface(points.positions.numpy())
    # A pixel is 6 mm wide at the distance of 3 units; depth is less certain than width.
    assert np.median(off) < 0.006 and np.percentile(off, 95) < 0.03
    counts = points.point_idx.bincount()
    assert counts.min() >= 3 and points.errors.max() <= 1.5
    projected, depth = points_to_pixels(cameras, points.image_idx,
                                        points.positions[points.point_idx])
    assert (depth > 0).all()
    errors = (projected - points.pixels).norm(dim=-1)
    torch.testing.assert_close(torch.zeros(len(points)).index_add(0, points.point_idx, errors)
                               / counts, points.errors, atol=1e-4, rtol=1e-4)


def test_results_do_not_depend_on_threads():
    cameras, images = corner_scene(4)
    one, two = (triangulate(cameras, reader(images), threads) for threads in (1, 2))
    assert all(torch.equal(value, vars(two)[name]) for name, value in vars(one).items())


def test_nothing_is_found_where_the_mask_is_zero():
    cameras, images = corner_scene(4)
    masks = [np.zeros_like(image) for image in images]
    for mask in masks:
        mask[:, 80:] = 1
    points = triangulate(cameras, reader(images, masks))
    assert len(points) > 50 and points.pixels[:, 0].min() >= 79


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_show_no_point(count):
    cameras, images = corner_scene(count)
    points = triangulate(cameras, reader(images))
    points.check()
    assert len(points) == 0


def test_blank_and_tiny_images_show_no_point():
    cameras, images = corner_scene(4)
    assert len(triangulate(cameras, reader([np.full_like(images[0], 99)] * 4))) == 0
    cameras, images = corner_scene(4, sizes=((2, 1),))
    assert len(triangulate(cameras, reader(images))) == 0


def test_equal_cameras_and_moved_ones_give_no_point():
    cameras, images = corner_scene(4)
    at_one_place = cameras[torch.zeros(4, dtype=torch.int64)]
    assert len(triangulate(at_one_place, reader([images[0]] * 4))) == 0
    noise = np.random.default_rng(0).integers(0, 256, (4, 120, 160), dtype=np.uint8)
    assert len(triangulate(cameras, reader(list(noise)))) < 10


def test_of_many_images_some_are_read():
    cameras, _ = corner_scene(4, sizes=((12, 8),))
    many = cameras[torch.arange(1000) % 4]
    read = []

    def blank(i):
        read.append(i)
        return np.zeros((8, 12), np.uint8), None

    assert len(triangulate(many, blank)) == 0
    assert len(set(read)) == len(read) == triangulation.MAX_IMAGES
    assert min(read) == 0 and max(read) == 999


# Features and matches.


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_features_lie_at_the_centres_of_blobs(scale):
    centres = np.array([[40.3, 30.6], [120.8, 61.1], [63.25, 90.75]])
    # Pixel centres are at halves.
    x, y = np.meshgrid(np.arange(160) + 0.5, np.arange(120) + 0.5)
    image = sum(200 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 5.0**2)) for u, v in centres)
    found = find_features(image.round().astype(np.uint8), None, scale, 50)
    distance = np.linalg.norm(found.pixels.numpy()[:, None] - centres, axis=-1)
    assert distance.min(axis=0).max() < 0.12 / scale
    torch.testing.assert_close(found.descriptors.norm(dim=-1), torch.ones(len(found.pixels)))


def test_the_kernel_finds_the_matches_of_its_plain_twin():
    rng = torch.Generator().manual_seed(0)
    normalize = torch.nn.functional.normalize
    normals, directions = (normalize(torch.randn(n, 3, generator=rng), dim=-1) for n in (50, 40))
    a, b = (normalize(torch.rand(n, 128, generator=rng), dim=-1) for n in (50, 40))
    for limit in (0.02, 0.3, 0.0):
        expected = best_matches(normals, directions, a, b, limit)
        found = matching_numba.best_matches(normals, directions, a, b, limit)
        for x, y in zip(found[:2], expected[:2], strict=True):
            torch.testing.assert_close(x, y)
        matched = expected[0] > 0
        assert torch.equal(found[2][matched], expected[2][matched])
        seen = torch.zeros(len(b), dtype=torch.bool)
        seen[expected[2][matched]] = True
        assert torch.equal(found[3][seen], expected[3][seen])
        assert bool(matched.any()) == (limit > 0)


def test_pairs_are_all_or_those_of_neighbours():
    cameras, _ = corner_scene(6, sizes=((4, 4),))
    poses = cameras.camtoworlds
    assert choose_pairs(poses, 15) == list(itertools.combinations(range(6), 2))
    neighbours = choose_pairs(poses, 12)
    assert {(i, i + 1) for i in range(5)} <= set(neighbours) and (0, 5) not in neighbours
    assert choose_pairs(poses[:1], 15) == []


def test_images_and_features_are_limited():
    assert feature_scale(400, 300, 10) == 1
    assert feature_scale(4000, 3000, 10) == pytest.approx(features.MAX_SIDE / 4000)
    scale = feature_scale(1600, 1200, 200)
    assert 200 * (1600 * 1200) * scale**2 == pytest.approx(features.MAX_PIXELS)
    assert feature_scale(4000, 3000, 1_000_000) == features.MIN_SIDE / 4000
    assert features.features_per_image(10) == features.MAX_FEATURES
    assert features.features_per_image(10**9) == features.MIN_FEATURES
    assert features.features_per_image(0) == features.MAX_FEATURES


# Known tracks.


def known_tracks(cameras, positions):
    count = len(cameras)
    image_idx = torch.arange(count).repeat_interleave(len(positions))
    point_idx = torch.arange(len(positions)).repeat(count)
    pixels, _ = points_to_pixels(cameras, image_idx, positions[point_idx])
    return Tracks(image_idx, pixels, 7 * point_idx + 3)


def test_known_tracks_are_triangulated_and_outliers_dropped():
    cameras, _ = corner_scene(6, sizes=((160, 120),))
    positions = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    tracks = known_tracks(cameras, positions)
    points = triangulate_tracks(cameras, tracks)
    torch.testing.assert_close(points.positions, positions, atol=1e-4, rtol=0)
    assert len(points.point_idx) == 120 and points.errors.max() < 0.01
    # One observation of point 0 is far off, those of point 1 contradict one another.
    pixels = tracks.pixels.clone()
    pixels[0] += 60
    pixels[1::20] += 40 * torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    points = triangulate_tracks(cameras, tracks._replace(pixels=pixels))
    torch.testing.assert_close(points.positions, positions[[0, *range(2, 20)]], atol=1e-3, rtol=0)
    assert (points.point_idx == 0).sum() == 5


def test_points_need_parallax_and_lie_in_front():
    cameras, _ = corner_scene(6, sizes=((160, 120),))
    far = torch.tensor([[0.0, 400.0, -100.0]])
    assert len(triangulate_tracks(cameras, known_tracks(cameras, far))) == 0
    behind = torch.tensor([[0.0, -6.0, 4.0]])
    assert len(triangulate_tracks(cameras, known_tracks(cameras, behind))) == 0


def test_no_tracks_and_tracks_of_two_views_give_no_point():
    cameras, _ = corner_scene(6, sizes=((160, 120),))
    tracks = known_tracks(cameras[:2], torch.rand(3, 3))
    assert len(triangulate_tracks(cameras, tracks)) == 0
    empty = Tracks(tracks.image_idx[:0], tracks.pixels[:0], tracks.point_idx[:0])
    assert len(triangulate_tracks(cameras, empty)) == 0
    not_finite = tracks._replace(pixels=tracks.pixels * torch.nan)
    assert len(triangulate_tracks(cameras, not_finite)) == 0
