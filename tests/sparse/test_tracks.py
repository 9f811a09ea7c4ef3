"""Tracks: verified matches, joined."""

import itertools

import pytest
import torch

from sparse.tracks import Matches, inverse_distances, tracks_of, verified

PIXEL = 0.002


def rays_to(points, origins):
    """Origins and unit directions `[len(origins) * len(points), 3]`, camera by camera."""
    repeated = origins.repeat_interleave(len(points), dim=0)
    offset = points.repeat(len(origins), 1) - repeated
    return repeated, offset / offset.norm(dim=-1, keepdim=True), offset.norm(dim=-1)


@pytest.fixture
def seen():
    """Rays of 4 cameras to 10 points; feature 10 i + k is that of point k in camera i."""
    points = torch.rand(10, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0, 0, 4])
    origins = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0.2, 0.6, 0], [1.0, 0.3, 0.1]])
    return rays_to(points, origins)


def pairs_of(points):
    """The true matches of some points between all cameras."""
    return [(10 * i + k, 10 * j + k) for i, j in itertools.combinations(range(4), 2)
            for k in points]


def verify(pairs, origins, directions):
    matches = Matches(torch.tensor(pairs), torch.zeros(len(pairs)))
    angle = torch.full((len(origins),), PIXEL)
    return {tuple(pair) for pair in verified(matches, origins, directions, angle).index.tolist()}


def test_inverse_distances_are_those_of_the_points(seen):
    origins, directions, distances = seen
    matches = torch.tensor(pairs_of(range(10)))
    inverse, pixel = inverse_distances(matches, origins, directions,
                                       torch.full((len(origins),), PIXEL))
    torch.testing.assert_close(1 / inverse, distances[matches[:, 0]], atol=1e-4, rtol=1e-4)
    # A pixel turns the first ray by its angle.
    axis = torch.linalg.cross(directions[matches[:, 1]], origins[matches[:, 1]]
                              - origins[matches[:, 0]])
    sideways = torch.linalg.cross(axis / axis.norm(dim=-1, keepdim=True), directions[matches[:, 0]])
    turned = directions.clone()
    changes = []
    for k, (a, _) in enumerate(matches.tolist()):
        turned[a] = directions[a] + PIXEL * sideways[k]
        changes.append(inverse_distances(matches[k : k + 1], origins, turned,
                                         torch.full((len(origins),), PIXEL))[0] - inverse[k])
        turned[a] = directions[a]
    torch.testing.assert_close(torch.cat(changes).abs(), pixel, atol=0.0, rtol=0.1)


def test_wrong_matches_on_epipolar_lines_are_dropped(seen):
    origins, directions, _ = seen
    true = pairs_of(range(9))
    # The ray of point 9 is made to meet that of another point far from all true ones.
    origins, directions = origins.clone(), directions.clone()
    meeting = origins[9] + 2.0 * directions[9]
    offset = meeting - origins[19]
    directions[19] = offset / offset.norm()
    assert verify(true, origins, directions) == set(true)
    wrong = [(9, 19), (9, 29)]
    assert verify([*true, *wrong], origins, directions) == set(true)


def test_a_match_needs_another_one_and_points_lie_in_front(seen):
    origins, directions, _ = seen
    assert verify([(0, 10)], origins, directions) == set()
    assert verify([(0, 10), (10, 20)], origins, directions) == {(0, 10), (10, 20)}
    behind = verify(pairs_of([0]), origins, -directions)
    assert behind == set()
    assert verified(Matches(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0)), origins,
                    directions, origins[:, 0]).index.shape == (0, 2)


def test_tracks_join_matches_but_no_two_features_of_one_image():
    # Three images with 2 features each: 0 1 | 2 3 | 4 5. The worst match would join 0 and 1.
    matches = Matches(torch.tensor([[1, 4], [0, 2], [1, 3], [2, 4]]),
                      torch.tensor([0.9, 0.1, 0.2, 0.3]))
    track = tracks_of(matches, [0, 2, 4, 6])
    assert track[0] == track[2] == track[4] and track[1] == track[3] != track[0]
    assert track[5] == -1
    empty = Matches(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0))
    assert tracks_of(empty, [0, 2, 4]).tolist() == [-1] * 4
    assert tracks_of(empty, [0]).tolist() == []
