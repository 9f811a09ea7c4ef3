"""Poses: invariances, and that points transform along with the cameras."""

import numpy as np
import pytest

import pose_utils
from tests.scenes import look_at


def random_poses(count, seed=0):
    rng = np.random.default_rng(seed)
    poses = []
    for _ in range(count):
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        rotation *= np.sign(np.linalg.det(rotation))
        poses.append(np.c_[rotation, rng.normal(size=3)])
    return np.stack(poses)


def forward_poses(count, seed=0):
    """Cameras in about one place that look at the origin."""
    rng = np.random.default_rng(seed)
    return np.stack([look_at(np.array([4.0, 0.5, 1.0]) + 0.4 * rng.normal(size=3))[:3]
                     for _ in range(count)])


@pytest.mark.parametrize("move", [pose_utils.recentre, pose_utils.spherify])
def test_cameras_and_points_are_transformed_alike(move):
    poses = forward_poses(7)
    moved, transform = move(poses)
    assert all(pose_utils.rigid_pose(pose)[2] is None for pose in moved)
    point = np.array([0.3, -0.2, 0.1, 1.0])
    scale = np.cbrt(np.linalg.det(transform[:3, :3]))
    for old, new in zip(poses, moved, strict=True):
        before = old[:, :3].T @ (point[:3] - old[:, 3])
        after = new[:, :3].T @ ((transform @ point)[:3] - new[:, 3])
        np.testing.assert_allclose(after, scale * before, atol=1e-9)


def test_recentring_makes_the_average_pose_the_identity():
    moved, _ = pose_utils.recentre(forward_poses(9))
    np.testing.assert_allclose(pose_utils.average_pose(moved), np.eye(4)[:3], atol=1e-9)


def test_recentring_is_independent_of_the_world_frame():
    poses = forward_poses(6)
    frame = pose_utils.homogeneous(random_poses(1, seed=5)[0])
    elsewhere = pose_utils.transform_poses(poses, frame)
    np.testing.assert_allclose(pose_utils.recentre(poses)[0], pose_utils.recentre(elsewhere)[0],
                               atol=1e-9)


def test_focus_point_is_the_point_that_all_cameras_face():
    poses = np.stack([look_at([3 * np.cos(a), 3 * np.sin(a), 1 + a])[:3] for a in range(5)])
    target = np.array([0.5, -1.0, 2.0])
    poses[:, :, 3] += target
    np.testing.assert_allclose(pose_utils.focus_point(poses), target, atol=1e-9)


def test_focus_point_of_parallel_cameras_is_finite():
    poses = np.tile(np.eye(4)[:3], (3, 1, 1))
    poses[:, 0, 3] = [-1, 0, 1]
    assert np.isfinite(pose_utils.focus_point(poses)).all()


def test_spherified_cameras_lie_about_the_origin_at_distance_1():
    angles = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    poses = np.stack([look_at([5 * np.cos(a), 5 * np.sin(a), 2])[:3] for a in angles])
    moved, _ = pose_utils.spherify(poses)
    distances = np.linalg.norm(moved[:, :, 3], axis=-1)
    assert np.sqrt(np.mean(distances**2)) == pytest.approx(1)
    np.testing.assert_allclose(pose_utils.focus_point(moved), 0, atol=1e-9)
    assert (moved[:, 2, 3] > 0).all()


def test_similarities_scale_positions_and_keep_rotations():
    poses = random_poses(3)
    moved = pose_utils.transform_poses(poses, pose_utils.scaling(2.5))
    np.testing.assert_allclose(moved[:, :, :3], poses[:, :, :3], atol=1e-12)
    np.testing.assert_allclose(moved[:, :, 3], 2.5 * poses[:, :, 3])


@pytest.mark.parametrize("change,words", [
    (lambda p: p.__setitem__((0, 0), np.nan), "not finite"),
    (lambda p: p.__setitem__((0, 3), np.inf), "not finite"),
    (lambda p: p.__imul__([1.05, 1, 1, 1]), "not a rotation"),
    (lambda p: p.__imul__(0), "not a rotation"),
    (lambda p: p.__setitem__((slice(None), 0), -p[:, 0]), "mirrored"),
])
def test_faulty_poses_are_described(change, words):
    pose = np.eye(4)[:3].copy()
    assert pose_utils.rigid_pose(pose)[2] is None
    change(pose)
    assert words in pose_utils.rigid_pose(pose)[2]


@pytest.mark.parametrize("seed", [0, 7, 9])  # Before the flip: up is up, down and down.
def test_alignment_by_principal_axes(seed):
    poses = random_poses(12, seed)
    moved, transform = pose_utils.align_pca(poses)
    assert all(pose_utils.rigid_pose(pose)[2] is None for pose in moved)
    positions = moved[:, :, 3]
    assert np.abs(positions).max() == pytest.approx(1)
    np.testing.assert_allclose(positions.mean(axis=0), 0, atol=1e-12)
    covariance = positions.T @ positions
    variances = np.diag(covariance)
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-12)
    assert (np.diff(variances) < 0).all()
    assert moved[:, 2, 1].mean() > 0
    assert np.linalg.det(transform[:3, :3]) > 0
    np.testing.assert_allclose(poses[:, :, 3] @ transform[:3, :3].T + transform[:3, 3], positions,
                               atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_alignment_undoes_any_similarity_up_to_half_turns(scale):
    poses = random_poses(12)
    frame = pose_utils.homogeneous(random_poses(1, seed=5)[0]) @ pose_utils.scaling(scale)
    one, other = (pose_utils.align_pca(p)[0]
                  for p in (poses, pose_utils.transform_poses(poses, frame)))
    # The signs of the first two axes depend on the frame; that of the third follows.
    signs = np.sign(one[0, :2, 3] * other[0, :2, 3])
    turn = np.diag([signs[0], signs[1], signs[0] * signs[1]])
    assert signs[0] * signs[1] == 1
    np.testing.assert_allclose(other, turn @ one, atol=1e-9)


def test_cameras_with_opencv_axes_are_converted():
    poses = random_poses(5)
    opencv = np.linalg.inv(pose_utils.homogeneous(poses) @ np.diag([1, -1, -1, 1]))[:, :3]
    np.testing.assert_allclose(pose_utils.from_opencv(opencv), poses, atol=1e-12)


def random_similarity(seed):
    rng = np.random.default_rng(seed)
    transform = np.eye(4)
    transform[:3, :3] = rng.uniform(0.3, 3) * random_poses(1, seed)[0, :, :3]
    transform[:3, 3] = rng.normal(size=3)
    return transform


@pytest.mark.parametrize("arrangement", ["all around", "in a row", "in one place", "one camera"])
def test_a_similarity_between_poses_is_recovered(arrangement):
    poses, transform = random_poses(6, seed=1), random_similarity(2)
    if arrangement == "in a row":
        poses[:, 1:, 3] = 0.5
    if arrangement in ("in one place", "one camera"):
        poses[:, :, 3] = [1.0, -2.0, 0.5]
        transform[:3, :3] /= np.cbrt(np.linalg.det(transform[:3, :3]))
    poses = poses[:1] if arrangement == "one camera" else poses
    found = pose_utils.fit_similarity(poses, pose_utils.transform_poses(poses, transform))
    np.testing.assert_allclose(found, transform, atol=1e-9)


def test_a_similarity_between_noisy_poses_is_as_exact_as_their_number_allows():
    """100 positions with noise of 1%: errors of a tenth of it, and never a mirrored world."""
    poses, transform = random_poses(100, seed=3), random_similarity(4)
    moved = pose_utils.transform_poses(poses, transform)
    scale = np.cbrt(np.linalg.det(transform[:3, :3]))
    moved[:, :, 3] += 0.01 * scale * np.random.default_rng(5).normal(size=(100, 3))
    found = pose_utils.fit_similarity(poses, moved)
    np.testing.assert_allclose(found / scale, transform / scale, atol=0.004)
    assert np.linalg.det(found[:3, :3]) > 0


def test_no_similarity_mirrors_the_world():
    """Also not for positions whose best orthogonal map is a mirror."""
    source = random_poses(8, seed=6)
    target = random_poses(8, seed=7)
    target[:, :, 3] = source[:, :, 3] * [1.0, 1.0, -1.0]
    assert np.linalg.det(pose_utils.fit_similarity(source, target)[:3, :3]) > 0
