"""COLMAP and nerfstudio captures against OpenCV's cameras and image features; bad data."""

import shutil
import struct
import sys
from dataclasses import replace

import cv2
import numpy as np
import pycolmap
import pytest
import torch
from imageio.v3 import imread, imwrite

from evaluate import score_image
from image_utils import read_mask
from loaders.lenses import LENSES
from loss import colour_error
from procedural import scene as demo_scene
from procedural import tracing
from procedural.still_life import ROOM
from ray_utils import pixels_to_rays
from runtime.errors import UserError
from tests.scenes import (
    NERFSTUDIO_LENS,
    change_json,
    open_scene,
    random_images,
    to_opencv,
    walk_poses,
    write_colmap,
    write_nerfstudio,
)

CAPTURES = ["colmap", "nerfstudio"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo scene in both formats: `demo / "colmap"` and `demo / "nerfstudio"`."""
    folder = tmp_path_factory.mktemp("captures")
    demo_scene.write_colmap(folder / "colmap")
    demo_scene.write_nerfstudio(folder / "nerfstudio")
    return folder


def rays_through(cameras, cam_idx, pixels):
    """Origins and directions `[K, 3]`, float64, through continuous pixel coordinates `[K, 2]`.

    The loader's cameras are shifted in the image plane so that each point is a pixel centre.
    """
    count = len(pixels)
    shift = torch.eye(3).repeat(count, 1, 1)
    shift[:, :2, 2] = torch.as_tensor(pixels, dtype=torch.float32) - 0.5
    cameras = cameras[torch.full((count,), cam_idx)]
    cameras = replace(cameras, pixtocams=cameras.pixtocams @ shift)
    zero = torch.zeros(count, dtype=torch.long)
    rays = pixels_to_rays(cameras, torch.arange(count), zero, zero)
    return rays.origins.double().numpy(), rays.viewdirs.double().numpy()


def to_scene(scene, points):
    """Points `[M, 3]` from the files' coordinates to the scene's."""
    transform = scene.world_to_scene.double().numpy()
    return points @ transform[:3, :3].T + transform[:3, 3]


def angular_errors(rays, points):
    """The angles `[M]` in radians between rays and the directions to points `[M, 3]`."""
    origins, viewdirs = rays
    to_points = points - origins
    along = (to_points * viewdirs).sum(-1)
    assert (along > 0).all()
    return np.linalg.norm(to_points - along[:, None] * viewdirs, axis=-1) / along


def epipolar_distances(dataset, first, second, enlarge=1):
    """Distances in pixels of SIFT matches of two images from each other's epipolar planes."""
    sift, found = cv2.SIFT_create(), []
    for index in (first, second):
        image = (255 * dataset.image(index).rgb.numpy()).round().astype(np.uint8)
        image = cv2.resize(image, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
        points, descriptors = sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
        # OpenCV's pixel centres are whole numbers.
        found.append((np.array([(np.array(p.pt) + 0.5) / enlarge for p in points]), descriptors))
    (a, da), (b, db) = found
    pairs = cv2.BFMatcher().knnMatch(da, db, k=2)
    good = [m for m, other in pairs if m.distance < 0.7 * other.distance]
    a, b = (points[[getattr(m, name) for m in good]]
            for points, name in ((a, "queryIdx"), (b, "trainIdx")))
    cameras = dataset.cameras
    (o1, d1), (o2, d2) = rays_through(cameras, first, a), rays_through(cameras, second, b)
    normals = np.cross(o2 - o1, d1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    focal = 1 / float(cameras.pixtocams[second, 0, 0])
    return focal * np.abs((normals * d2).sum(-1))


# Rays against OpenCV's cameras.


def project(points, pose, matrix, distortion, fisheye=False):
    """OpenCV's pixels `[M, 2]` of world points, for a camera-to-world `pose [4, 4]`."""
    opencv = to_opencv(pose)
    turn, _ = cv2.Rodrigues(opencv[:3, :3])
    function = cv2.fisheye.projectPoints if fisheye else cv2.projectPoints
    pixels, _ = function(points.reshape(-1, 1, 3), turn, opencv[:3, 3], matrix,
                         np.array(distortion))
    return pixels.reshape(-1, 2)


@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("dataset_name", CAPTURES)
def test_rays_of_the_demo_pass_through_its_points(dataset_name, factor, demo, tmp_path):
    """Tests distortion, off-centre principal points, alignment and scale together."""
    shutil.copytree(demo / dataset_name, tmp_path / "scene")
    stored = demo_scene.CAPTURE_FACTOR if dataset_name == "colmap" else 1
    dataset = open_scene(tmp_path / "scene", dataset_name, "test", "--factor",
                         str(stored * factor))
    lens = demo_scene.CAPTURE_LENS
    poses = demo_scene.capture_cameras()[::8]
    assert len(dataset) == len(poses)
    points = demo_scene.capture_points()[0]
    for i, pose in enumerate(poses):
        near = np.linalg.norm(points, axis=-1) < 1.5
        pixels = project(points[near], pose, demo_scene.capture_matrix(),
                         [lens[k] for k in ("k1", "k2", "p1", "p2")])
        rays = rays_through(dataset.cameras, i, pixels / factor)
        angle = angular_errors(rays, to_scene(dataset.scene, points[near]))
        assert angle.max() * lens["fl_x"] < 2e-3  # pixels


# Parameters in COLMAP's order, then the same as fx, fy and OpenCV's coefficients.
MODELS = {
    "SIMPLE_PINHOLE": ([50.0, 25.5, 14.5], 50.0, 50.0, [0.0] * 4),
    "PINHOLE": ([50.0, 54.0, 25.5, 14.5], 50.0, 54.0, [0.0] * 4),
    "SIMPLE_RADIAL": ([50.0, 25.5, 14.5, -0.04], 50.0, 50.0, [-0.04, 0.0, 0.0, 0.0]),
    "RADIAL": ([50.0, 25.5, 14.5, -0.04, 0.1], 50.0, 50.0, [-0.04, 0.1, 0.0, 0.0]),
    "OPENCV": ([50.0, 54.0, 25.5, 14.5, -0.04, 0.1, 0.004, -0.003], 50.0, 54.0,
               [-0.04, 0.1, 0.004, -0.003]),
    "OPENCV_FISHEYE": ([50.0, 54.0, 25.5, 14.5, -0.04, 0.1, -0.2, 0.3], 50.0, 54.0,
                       [-0.04, 0.1, -0.2, 0.3]),
    "SIMPLE_RADIAL_FISHEYE": ([50.0, 25.5, 14.5, -0.04], 50.0, 50.0, [-0.04, 0.0, 0.0, 0.0]),
    "RADIAL_FISHEYE": ([50.0, 25.5, 14.5, -0.04, 0.1], 50.0, 50.0, [-0.04, 0.1, 0.0, 0.0]),
}


@pytest.mark.parametrize("model", sorted(LENSES))
def test_every_lens_model_is_opencvs(model, tmp_path):
    params, focal_x, focal_y, coefficients = MODELS[model]
    write_colmap(tmp_path / "scene", model=model, params=params)
    dataset = open_scene(tmp_path / "scene", "colmap", "test", read_pixels=False)
    points = np.random.default_rng(0).uniform(-0.8, 0.8, (40, 3))
    matrix = np.array([[focal_x, 0, 25.5], [0, focal_y, 14.5], [0, 0, 1]])
    for i, pose in enumerate(walk_poses(9)[::8]):
        pixels = project(points, pose, matrix, coefficients, model.endswith("FISHEYE"))
        rays = rays_through(dataset.cameras, i, pixels / 4)
        angle = angular_errors(rays, to_scene(dataset.scene, points))
        assert angle.max() < 5e-6  # radians


def test_views_keep_their_own_intrinsics(tmp_path):
    params = [[40.0 + i, 24.0, 16.0] for i in range(9)]
    write_colmap(tmp_path / "scene", model="SIMPLE_PINHOLE", params=params)
    dataset = open_scene(tmp_path / "scene", "colmap")
    focal = 1 / dataset.cameras.pixtocams[:, 0, 0]
    np.testing.assert_allclose(focal, [(40.0 + i) / 4 for i in range(1, 8)], rtol=1e-6)
    assert dataset.cameras.distortion is None and dataset.cameras.fisheye is None


def test_frames_keep_their_own_intrinsics(tmp_path):
    write_nerfstudio(tmp_path / "scene")
    change_json(tmp_path / "scene" / "transforms.json",
                lambda v: v["frames"][3].update(fl_x=20.0, k1=0.1, cx=7.0))
    cameras = open_scene(tmp_path / "scene", "nerfstudio").cameras
    focal = 1 / cameras.pixtocams[:, 0, 0]
    np.testing.assert_allclose(focal, [14, 14, 20, 14, 14, 14, 14], rtol=1e-6)
    np.testing.assert_allclose(cameras.distortion[1:3, 0], [-0.05, 0.1], rtol=1e-6)
    assert float(cameras.pixtocams[2, 0, 2]) == pytest.approx(-7 / 20)


@pytest.mark.parametrize("lens,focal", [
    ({"camera_angle_x": 0.8}, (6 / np.tan(0.4), 6 / np.tan(0.4))),
    ({"camera_angle_x": 0.8, "camera_angle_y": 0.5}, (6 / np.tan(0.4), 4 / np.tan(0.25))),
    ({"fl_x": 9.0}, (9.0, 9.0)),
    ({"fl_x": 9.0, "camera_angle_x": 0.8, "camera_angle_y": 0.5}, (9.0, 9.0)),
    ({"fl_x": 18.0, "fl_y": 20.0, "w": 24, "h": 16}, (9.0, 10.0)),
])
def test_focal_lengths_are_given_in_pixels_or_as_angles(lens, focal, tmp_path):
    write_nerfstudio(tmp_path / "scene", lens=lens)
    pixtocam = open_scene(tmp_path / "scene", "nerfstudio").cameras.pixtocams[0]
    assert float(1 / pixtocam[0, 0]) == pytest.approx(focal[0], rel=1e-6)
    assert float(-1 / pixtocam[1, 1]) == pytest.approx(focal[1], rel=1e-6)
    centre = torch.linalg.solve(pixtocam, torch.tensor([0.0, 0.0, -1.0]))
    torch.testing.assert_close(centre, torch.tensor([6.0, 4.0, 1.0]))


@pytest.mark.parametrize("switch", [{"camera_model": "OPENCV_FISHEYE"}, {"is_fisheye": True}])
def test_both_keys_for_fisheye_are_read(switch, tmp_path):
    write_nerfstudio(tmp_path / "scene", lens={"fl_x": 9.0, "k1": 0.1} | switch)
    cameras = open_scene(tmp_path / "scene", "nerfstudio").cameras
    assert cameras.fisheye.all() and (cameras.distortion[:, 0] - 0.1).abs().max() < 1e-6


def test_feature_matches_of_the_demo_lie_on_epipolar_lines(demo):
    """Images and cameras belong together: matches satisfy the epipolar constraint."""
    dataset = open_scene(demo / "nerfstudio", "nerfstudio", "train", "--llffhold", "1000")
    distances = np.concatenate([epipolar_distances(dataset, i, i + 1, enlarge=3)
                                for i in (2, 7, 25, 30)])
    assert len(distances) > 40
    assert np.median(distances) < 0.6
    others = dataset.cameras.camtoworlds[torch.randperm(len(dataset))]
    dataset.cameras = replace(dataset.cameras, camtoworlds=others)
    wrong = np.concatenate([epipolar_distances(dataset, i, i + 1, enlarge=3) for i in (2, 25)])
    assert np.median(wrong) > 3


def test_demo_images_are_equal_in_both_formats_and_opaque(demo):
    one, other = (open_scene(demo / name, name, "test") for name in CAPTURES)
    assert torch.equal(one.scene.pixels, other.scene.pixels)
    torch.testing.assert_close(one.cameras.camtoworlds, other.cameras.camtoworlds, atol=1e-5,
                               rtol=0)
    rgba = tracing.render(
        demo_scene.capture_cameras()[0], np.diag([1, -1, -1]) @ np.linalg.inv(
            demo_scene.capture_matrix()), *demo_scene.CAPTURE_SIZE, supersample=1,
        parts=ROOM, undistort=demo_scene.undistort_capture)
    assert (rgba[..., 3] == 255).all()


# The aligned world.


@pytest.mark.parametrize("dataset_name", CAPTURES)
def test_aligned_cameras_fill_the_cube_and_are_upright(dataset_name, demo):
    scenes = [open_scene(demo / dataset_name, dataset_name, split, read_pixels=False).scene
              for split in ("train", "test")]
    camtoworlds = torch.cat([scene.cameras.camtoworlds for scene in scenes]).double()
    positions = camtoworlds[:, :, 3]
    assert float(positions.abs().max()) == pytest.approx(1, abs=1e-6)
    assert positions.mean(dim=0).abs().max() < 1e-6
    covariance = positions.T @ positions
    variances = covariance.diagonal()
    assert (covariance - variances.diag()).abs().max() < 1e-5 * variances.max()
    assert variances[0] > variances[1] > variances[2]
    assert camtoworlds[:, 2, 1].mean() > 0.5  # The demo's cameras are upright.
    assert torch.equal(scenes[0].world_to_scene, scenes[1].world_to_scene)
    up = scenes[0].world_to_scene[:3, 2]
    assert up[2] > 0.99 * up.norm()


def test_range_and_box_come_from_the_visible_points(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.4, 0.4, (400, 3))
    behind = np.array([[0.0, 0.0, 100.0]])  # No view sees it.
    write_colmap(tmp_path / "scene", points=np.concatenate([points, behind]),
                 model="SIMPLE_PINHOLE", params=[50.0, 24.0, 16.0])
    scene = open_scene(tmp_path / "scene", "colmap").scene
    depths = np.concatenate([
        (points @ to_opencv(pose)[:3, :3].T + to_opencv(pose)[:3, 3])[:, 2]
        for pose in walk_poses(9)
    ])
    low, high = np.percentile(depths, [0.1, 99.9]) * scene.scale
    assert float(scene.cameras.near[0]) == pytest.approx(0.9 * low, rel=1e-4)
    assert float(scene.cameras.far[0]) == pytest.approx(1.1 * high, rel=1e-4)
    inside = to_scene(scene, np.concatenate([points, [p[:3, 3] for p in walk_poses(9)]]))
    low, high = scene.box.double().numpy()
    held = ((inside >= low - 1e-6) & (inside <= high + 1e-6)).all(-1)
    assert held.mean() > 0.95 and held[-9:].all()
    assert np.abs(scene.box.numpy()).max() < 100 * scene.scale / 4


@pytest.mark.parametrize("sideways,upward", [(2.34, 0.0), (0.0, 0.27)])
def test_points_outside_the_image_do_not_count_as_visible(sideways, upward, tmp_path):
    """The lens model would fold the first back into the image; the second is just above the image.

    Both are closer to their camera than all other points.
    """
    beside = np.array([p[:3, 3] + sideways * p[:3, 0] + upward * p[:3, 1] - 0.6 * p[:3, 2]
                       for p in walk_poses(9)])
    middle = np.random.default_rng(0).uniform(-0.3, 0.3, (200, 3))
    nears = []
    for name, points in (("with", np.concatenate([middle, beside])), ("without", middle)):
        write_colmap(tmp_path / name, points=points, model="SIMPLE_RADIAL",
                     params=[50.0, 24.0, 16.0, -0.06])
        cameras = open_scene(tmp_path / name, "colmap", read_pixels=False).scene.cameras
        nears.append(float(cameras.near[0]))
    assert nears[0] == pytest.approx(nears[1], rel=0.02)


def test_flags_override_the_range_of_the_points(tmp_path):
    write_colmap(tmp_path / "scene")
    cameras = open_scene(tmp_path / "scene", "colmap", "train", "--near", "0.3", "--far",
                         "7").scene.cameras
    assert (float(cameras.near[0]), float(cameras.far[0])) == (pytest.approx(0.3), 7.0)


def test_a_range_in_the_units_of_the_files_grows_with_the_scene(tmp_path):
    """A point 0.5 units of the files before a camera lies at the near end of its rays."""
    write_colmap(tmp_path / "scene")
    scene = open_scene(tmp_path / "scene", "colmap", "train", "--near", "0.5", "--far", "7",
                       "--units", "file").scene
    transform, pose = scene.world_to_scene.numpy(), scene.cameras.camtoworlds[0].numpy()
    position = (np.linalg.inv(transform) @ [*pose[:, 3], 1])[:3]
    rotation = transform[:3, :3] / np.linalg.norm(transform[:3, 0])
    point = position - 0.5 * rotation.T @ pose[:, 2]
    depth = (pose[:, 3] - (transform @ [*point, 1])[:3]) @ pose[:, 2]
    assert float(scene.cameras.near[0]) == pytest.approx(depth, rel=1e-5)
    assert float(scene.cameras.far[0]) == pytest.approx(14 * depth, rel=1e-5)
    assert not 0.49 < depth < 0.51


@pytest.mark.parametrize("dataset_name,write", [("colmap", write_colmap),
                                                ("nerfstudio", write_nerfstudio)])
def test_without_points_the_range_is_a_multiple_of_the_distance_to_the_focus(
    dataset_name, write, tmp_path
):
    write(tmp_path / "scene", **({"points": []} if dataset_name == "colmap" else {}))
    scene = open_scene(tmp_path / "scene", dataset_name).scene
    # All cameras look at the origin of the files' world.
    distance = np.median([np.linalg.norm(p[:3, 3]) for p in walk_poses(9)]) * scene.scale
    assert float(scene.cameras.near[0]) == pytest.approx(0.2 * distance, rel=1e-4)
    assert float(scene.cameras.far[0]) == pytest.approx(10 * distance, rel=1e-4)
    low, high = scene.box.numpy()
    assert (to_scene(scene, np.zeros((1, 3)))[0] > low).all() and (high - low).max() < 4


# Images and splits.


def test_images_without_a_pose_and_poses_without_an_image_are_left_out_and_logged(
    tmp_path, caplog
):
    caplog.set_level("INFO")
    write_colmap(tmp_path / "scene")
    images = tmp_path / "scene" / "images_4"
    (images / "002.png").rename(images / "stranger.png")
    dataset = open_scene(tmp_path / "scene", "colmap", "train", "--llffhold", "100")
    assert dataset.scene.names == ("001.png", *(f"{i:03d}.png" for i in range(3, 9)))
    out = caplog.text
    assert "1 image(s)" in out and "stranger.png" in out
    assert "1 view(s) without an image" in out and "002.png" in out


def test_frames_without_an_image_are_left_out_and_logged(tmp_path, caplog):
    caplog.set_level("INFO")
    write_nerfstudio(tmp_path / "scene")
    (tmp_path / "scene" / "images" / "004.png").unlink()
    dataset = open_scene(tmp_path / "scene", "nerfstudio")
    assert dataset.scene.names == tuple(FILES[i] for i in (1, 2, 3, 5, 6, 7, 8))
    out = caplog.text
    assert "left out 1 frame(s) without an image: images/004.png" in out


def test_colmap_images_may_be_in_folders_and_have_other_suffixes(tmp_path):
    names = [f"cam{i % 2}/{i}.JPG" for i in range(9)]
    write_colmap(tmp_path / "scene", names=[name.replace("JPG", "png") for name in names],
                 factor=2, size=(24, 16))
    path = tmp_path / "scene" / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().replace(".png", ".JPG"))
    dataset = open_scene(tmp_path / "scene", "colmap", "train", "--factor", "4")
    assert dataset.scene.names == tuple(sorted(names)[1:8])
    assert dataset.scene.cameras.sizes[0].tolist() == [12, 8]
    assert (tmp_path / "scene" / "images_4" / "cam0" / "0.png").exists()
    source = imread(tmp_path / "scene" / "images_2" / "cam0" / "2.png").astype(float)
    expected = source.reshape(8, 2, 12, 2, 3).mean((1, 3))
    np.testing.assert_allclose(255 * dataset.image(0).rgb, expected, atol=0.51)


def test_colmap_rejects_a_factor_finer_than_what_is_shipped(tmp_path):
    write_colmap(tmp_path / "scene")
    with pytest.raises(UserError, match="it has: 4"):
        open_scene(tmp_path / "scene", "colmap", "train", "--factor", "2")


def test_models_may_be_in_sparse_itself(tmp_path):
    write_colmap(tmp_path / "scene")
    before = open_scene(tmp_path / "scene", "colmap").scene
    for file in (tmp_path / "scene" / "sparse" / "0").iterdir():
        file.rename(file.parents[1] / file.name)
    (tmp_path / "scene" / "sparse" / "0").rmdir()
    after = open_scene(tmp_path / "scene", "colmap").scene
    assert torch.equal(before.cameras.camtoworlds, after.cameras.camtoworlds)


@pytest.mark.parametrize("shipped", [False, True])
def test_nerfstudio_reads_shipped_images_or_averages(shipped, tmp_path):
    write_nerfstudio(tmp_path / "scene", size=(24, 16))
    if shipped:
        (tmp_path / "scene" / "images_2").mkdir()
        for i in range(9):
            imwrite(tmp_path / "scene" / "images_2" / f"{i:03d}.png",
                    np.full((8, 12, 3), 77, np.uint8))
    dataset = open_scene(tmp_path / "scene", "nerfstudio", "train", "--factor", "2")
    assert dataset.scene.cameras.sizes[0].tolist() == [12, 8]
    assert float(1 / dataset.cameras.pixtocams[0, 0, 0]) == pytest.approx(7)
    source = imread(tmp_path / "scene" / "images" / "001.png").astype(float)
    expected = 77 if shipped else source.reshape(8, 2, 12, 2, 3).mean((1, 3))
    np.testing.assert_allclose(255 * dataset.image(0).rgb, np.broadcast_to(expected, (8, 12, 3)),
                               atol=0.51)


def test_file_paths_may_lack_a_suffix(tmp_path):
    write_nerfstudio(tmp_path / "scene")
    before = open_scene(tmp_path / "scene", "nerfstudio").scene.pixels
    change_json(tmp_path / "scene" / "transforms.json", lambda v: [
        frame.update(file_path="./" + frame["file_path"][:-4]) for frame in v["frames"]])
    assert torch.equal(open_scene(tmp_path / "scene", "nerfstudio").scene.pixels, before)


FILES = [f"images/{i:03d}.png" for i in range(9)]


@pytest.mark.parametrize("lists,expected", [
    ({}, {"train": [1, 2, 3, 4, 5, 6, 7], "val": [0, 8], "test": [0, 8]}),
    ({"train": [3, 4], "val": [0], "test": [8, 1]}, {"train": [3, 4], "val": [0], "test": [1, 8]}),
    ({"train": [3, 4], "val": [0]}, {"train": [3, 4], "val": [0], "test": [0]}),
    ({"test": [0, 1]}, {"train": [2, 3, 4, 5, 6, 7, 8], "val": [0, 1], "test": [0, 1]}),
])
def test_splits_are_listed_in_the_file_or_every_nth(lists, expected, tmp_path):
    listed = {f"{s}_filenames": [FILES[i] for i in index] for s, index in lists.items()}
    write_nerfstudio(tmp_path / "scene", **listed)
    # The order of frames in the file must not matter.
    change_json(tmp_path / "scene" / "transforms.json", lambda v: v["frames"].reverse())
    for split, index in expected.items():
        dataset = open_scene(tmp_path / "scene", "nerfstudio", split)
        assert dataset.split == split
        assert dataset.scene.names == tuple(FILES[i] for i in index)


# Alpha and masks.


def test_images_are_composited_if_one_has_alpha(tmp_path):
    write_nerfstudio(tmp_path / "scene", channels=4)
    image = random_images(9, (12, 8), 4)[1] / 255
    imwrite(tmp_path / "scene" / "images" / "002.png", np.zeros((8, 12, 3), np.uint8))
    dataset = open_scene(tmp_path / "scene", "nerfstudio", "train", "--bg_range", "1", "1")
    expected = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    np.testing.assert_allclose(dataset.image(0).rgb, expected, atol=1e-6)
    assert dataset.image(1).rgb.abs().max() == 0 and dataset.is_transparent


def write_masked(folder):
    """Frames 1 and 2 have masks: a black left half; two black rows and a pixel."""
    write_nerfstudio(folder)
    masks = np.full((2, 8, 12), 255, np.uint8)
    masks[0, :, :6] = 0
    masks[1, :2] = 0
    masks[1, 5, 5] = 0
    (folder / "masks").mkdir()
    for i, mask in enumerate(masks):
        imwrite(folder / "masks" / f"{i}.png", mask)
    change_json(folder / "transforms.json", lambda v: [
        v["frames"][i + 1].update(mask_path=f"masks/{i}.png") for i in range(2)])
    return masks


def test_masks_reach_batches_and_images(tmp_path):
    masks = write_masked(tmp_path / "scene")
    for read_pixels in (True, False):
        dataset = open_scene(tmp_path / "scene", "nerfstudio", read_pixels=read_pixels)
        for i in range(2):
            np.testing.assert_array_equal(dataset.image(i).mask[..., 0], masks[i] / 255)
        assert dataset.image(2).mask.min() == 1
    dataset = open_scene(tmp_path / "scene", "nerfstudio")
    assert dataset.scene.masks.shape == dataset.scene.pixels.shape[:1]
    batch = dataset.batch(500, torch.Generator().manual_seed(0))
    images = [dataset.image(i) for i in range(len(dataset))]
    assert 0 < batch.mask.mean() < 1
    for k in range(200):
        image = images[batch.rays.cam_idx[k]]
        same = (image.rays.directions - batch.rays.directions[k]).abs().amax(-1) < 1e-6
        assert same.sum() == 1 and image.mask[same] == batch.mask[k]
    torch.testing.assert_close(batch.loss_weights(), batch.mask)
    scene = dataset.scenes()["train"]
    assert scene.masks is None and scene.mask_files == () and scene.files == ()


def test_masks_of_smaller_images_keep_only_fully_valid_pixels(tmp_path):
    masks = write_masked(tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "nerfstudio", "train", "--factor", "2")
    for i in range(2):
        expected = masks[i].reshape(4, 2, 6, 2).min((1, 3)) / 255
        np.testing.assert_array_equal(dataset.image(i).mask[..., 0], expected)


def test_masked_pixels_do_not_count_in_scores(tmp_path):
    write_nerfstudio(tmp_path / "scene", size=(24, 16))
    mask = np.full((16, 24), 255, np.uint8)
    mask[:, :6] = 0
    imwrite(tmp_path / "scene" / "mask.png", mask)
    change_json(tmp_path / "scene" / "transforms.json",
                lambda v: v["frames"][0].update(mask_path="mask.png"))
    dataset = open_scene(tmp_path / "scene", "nerfstudio", "test")
    ground_truth = dataset.image(0).rgb.numpy()
    wrong = 0.7 * ground_truth + 0.1
    wrong[mask == 0] = np.random.default_rng(0).random((16 * 6, 3))
    scores = score_image({"ground_truth": ground_truth, "rgb": wrong}, dataset, 0)
    kept = mask > 0
    assert scores["psnr"] == pytest.approx(
        -10 * np.log10(np.mean((wrong[kept] - ground_truth[kept]) ** 2)), rel=1e-5)
    assert scores["blank_psnr"] == pytest.approx(-10 * np.log10(np.mean(ground_truth[kept] ** 2)),
                                                 rel=1e-5)
    assert scores["psnr_corrected"] > 50 and scores["ssim_corrected"] > 0.99
    only_masked = np.where(kept[..., None], ground_truth, wrong)
    scores = score_image({"ground_truth": ground_truth, "rgb": only_masked}, dataset, 0)
    assert scores["psnr"] == np.inf and scores["ssim"] == pytest.approx(1)
    imwrite(tmp_path / "scene" / "mask.png", 0 * mask)
    dataset = open_scene(tmp_path / "scene", "nerfstudio", "test")
    with pytest.raises(UserError, match="mask.png leaves no pixel to score"):
        score_image({"ground_truth": ground_truth, "rgb": wrong}, dataset, 0)


@pytest.mark.parametrize("mask", [
    np.array([[[0, 0, 0], [9, 0, 0]]], np.uint8), np.array([[0, 1]], np.uint8),
    np.array([[False, True]]), np.array([[[0, 0, 0, 255], [9, 9, 9, 255]]], np.uint8),
    np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8), np.array([[0, 65535]], np.uint16),
])
def test_masked_pixels_are_black_or_transparent(mask, tmp_path):
    imwrite(tmp_path / "mask.png", mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", 2, 1), [[0, 1]])


def test_a_batch_of_only_masked_pixels_has_zero_loss(tmp_path):
    write_nerfstudio(tmp_path / "scene")
    batch = open_scene(tmp_path / "scene", "nerfstudio").batch(5)
    masked = replace(batch, mask=torch.zeros(5, 1))
    rgb = torch.rand(5, 3, requires_grad=True)
    loss = colour_error(rgb, masked)
    loss.backward()
    assert loss == 0 and (rgb.grad == 0).all()


# Bad data: a one-sentence error that names the file.


def expect_error(names, folder, dataset_name, *flags):
    with pytest.raises(UserError, match=names) as error:
        open_scene(folder, dataset_name, "train", *flags)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model,params", [
    ("FULL_OPENCV", [50.0, 50.0, 24.0, 16.0] + [0.0] * 8), ("FOV", [50.0, 50.0, 24.0, 16.0, 0.5]),
    ("THIN_PRISM_FISHEYE", [50.0, 50.0, 24.0, 16.0] + [0.0] * 8),
])
def test_unsupported_lens_models_are_rejected_by_name(model, params, tmp_path):
    write_colmap(tmp_path / "colmap", model=model, params=params)
    expect_error(f"{model}; undistort", tmp_path / "colmap", "colmap")
    write_nerfstudio(tmp_path / "nerfstudio", lens={"fl_x": 9.0, "camera_model": model})
    expect_error(f"{model}; undistort", tmp_path / "nerfstudio", "nerfstudio")


def damage_colmap(folder, kind):
    sparse = folder / "sparse" / "0"
    if kind == "no model":
        shutil.rmtree(folder / "sparse")
    elif kind == "no cameras":
        (sparse / "cameras.txt").unlink()
    elif kind == "nonsense":
        for name in ("cameras", "images", "points3D"):
            (sparse / f"{name}.txt").unlink()
            (sparse / f"{name}.bin").write_bytes(struct.pack("<QI", 3, 77) * 2)
        (sparse / "points3D.bin").write_bytes(struct.pack("<Q", 0))
    elif kind == "no images":
        shutil.rmtree(folder / "images_4")
    elif kind == "other images":
        for file in (folder / "images_4").iterdir():
            file.rename(file.with_name(f"other_{file.name}"))
    elif kind == "other shape":
        imwrite(folder / "images_4" / "003.png", np.zeros((12, 8, 3), np.uint8))
    else:
        model = pycolmap.Reconstruction(str(sparse))
        if kind == "nan point":
            model.add_point3D(np.array([np.nan, 0, 0]), pycolmap.Track())
        shutil.rmtree(sparse)
        sparse.mkdir()
        model.write(str(sparse))
        points = sparse / "points3D.bin"
        cut = {"nan point": None, "points cut": -5, "points cut short": 3, "one point": 59}[kind]
        points.write_bytes(points.read_bytes()[:cut])


@pytest.mark.parametrize("kind,names", [
    ("no model", "sparse holds no COLMAP model"), ("no cameras", "holds no COLMAP model"),
    ("nonsense", "holds no COLMAP model"), ("no images", "no images folder at all"),
    ("other images", "registers none of the images"), ("other shape", "003.png is 8x12"),
    ("nan point", "finite numbers"), ("points cut", "points3D.bin has 2553 bytes"),
    ("points cut short", "points3D.bin has 3 bytes"), ("one point", "points3D.bin has 59 bytes"),
])
def test_bad_colmap_data_is_a_one_sentence_error(kind, names, tmp_path):
    write_colmap(tmp_path / "scene")
    damage_colmap(tmp_path / "scene", kind)
    expect_error(names, tmp_path / "scene", "colmap")


def test_a_missing_pycolmap_is_a_one_sentence_error(tmp_path, monkeypatch):
    write_colmap(tmp_path / "scene")
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    expect_error("pip install", tmp_path / "scene", "colmap")


@pytest.mark.parametrize("change,names", [
    (lambda v: v.pop("frames"), "lists no frames"),
    (lambda v: v["frames"][2].pop("transform_matrix"), "transform_matrix"),
    (lambda v: v["frames"][2]["transform_matrix"][0].__setitem__(0, 7.0), "002.png .*rotation"),
    (lambda v: v.pop("fl_x"), "fl_x = None"),
    (lambda v: v.update(fl_x="wide"), "fl_x = 'wide'"),
    (lambda v: v.update(fl_x=-3.0), "above 0"),
    (lambda v: v.update(k1=float("nan")), "finite number"),
    (lambda v: v["frames"][2].update(cx="middle"), "002.png.* cx = 'middle'"),
    (lambda v: v.update(w=16), "is 12x8, which has another shape than the 16x8"),
    (lambda v: v.pop("h"), "h = None"),
    (lambda v: (v.pop("fl_x"), v.update(camera_angle_x=40)), "radians"),
    (lambda v: v.update(train_filenames="all"), "train_filenames"),
    (lambda v: v.update(test_filenames=["images/9.png"]), "lists images/9.png"),
    (lambda v: v.update(test_filenames=FILES), "train split without a view"),
    (lambda v: v["frames"][1].update(mask_path="masks/1.png"), "masks/1.png is missing"),
    (lambda v: [f.update(file_path=f"x{i}") for i, f in enumerate(v["frames"])],
     "none of which has an image"),
    (lambda v: [f.update(transform_matrix=np.eye(4).tolist()) for f in v["frames"]],
     "at one position"),
])
def test_bad_nerfstudio_data_is_a_one_sentence_error(change, names, tmp_path):
    write_nerfstudio(tmp_path / "scene")
    change_json(tmp_path / "scene" / "transforms.json", change)
    expect_error(names, tmp_path / "scene", "nerfstudio")


def test_broken_json_and_too_large_a_factor_are_one_sentence_errors(tmp_path):
    write_nerfstudio(tmp_path / "scene")
    expect_error("leaves no pixel", tmp_path / "scene", "nerfstudio", "--factor", "9")
    (tmp_path / "scene" / "transforms.json").write_text("{")
    expect_error("not valid JSON", tmp_path / "scene", "nerfstudio")
    (tmp_path / "scene" / "transforms.json").unlink()
    expect_error("transforms.json is missing", tmp_path / "scene", "nerfstudio")


def test_the_lens_of_the_small_scenes_is_off_centre():
    """Otherwise these tests would not notice an ignored principal point."""
    assert NERFSTUDIO_LENS["cx"] != 6 and NERFSTUDIO_LENS["cy"] != 4


# Points of nerfstudio captures.


def write_ply(path, points):
    """Points `[M, 3]` as an ASCII PLY file with colours, as COLMAP and nerfstudio write it."""
    names = [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {colour}" for colour in ("red", "green", "blue")]
    head = ["ply", "format ascii 1.0", f"element vertex {len(points)}", *names, "end_header"]
    rows = [" ".join(map(str, point)) + " 10 20 30" for point in points.tolist()]
    path.write_text("\n".join([*head, *rows]) + "\n")


def test_points_of_a_nerfstudio_capture_give_range_and_box(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.5, 0.5, (400, 3)).round(4)
    write_nerfstudio(tmp_path / "scene", ply_file_path="sparse_pc.ply")
    write_ply(tmp_path / "scene" / "sparse_pc.ply", points)
    dataset = open_scene(tmp_path / "scene", "nerfstudio", "train", read_pixels=False)
    moved = dataset.scene.world_to_scene.double().numpy()
    expected = points @ moved[:3, :3].T + moved[:3, 3]
    np.testing.assert_allclose(dataset.loader.points(), expected, atol=1e-5)
    cameras = dataset.loader.aligned[0].camtoworlds.double().numpy()
    depths = ((cameras[:, None, :, 3] - expected) * cameras[:, None, :, 2]).sum(-1)
    near, far = dataset.scene.cameras.visible_range
    assert 0.9 * depths.min() <= near < far <= 1.1 * depths.max()
    assert far < 1.2 * depths.max() and near > 0.5 * depths.min()


@pytest.mark.parametrize("value, content, message", [
    (7, None, "has the ply_file_path 7; a string"),
    ("pc.ply", b"no ply", r"cannot be read as PLY points"),
    ("pc.ply", b"ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\n", "cannot be read"),
])
def test_damaged_points_are_refused(value, content, message, tmp_path):
    write_nerfstudio(tmp_path / "scene", ply_file_path=value)
    if content:
        (tmp_path / "scene" / "pc.ply").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_scene(tmp_path / "scene", "nerfstudio", "train", read_pixels=False)


def test_missing_points_are_a_warning(tmp_path, caplog):
    write_nerfstudio(tmp_path / "scene", ply_file_path="lost.ply")
    dataset = open_scene(tmp_path / "scene", "nerfstudio", "train", read_pixels=False)
    assert len(dataset.loader.points()) == 0 and "lost.ply is missing" in caplog.text
