"""The sparse points of scenes on disk: which images they come from, and their tracks."""

import json
from dataclasses import replace

import numpy as np
import pycolmap
import pytest
import torch
from imageio.v3 import imread, imwrite

from loaders.bounds import observed_range
from loaders.lenses import make_cameras
from ray_utils import points_to_pixels
from structures import SparsePoints
from tests.scenes import change_json, open_scene, write_llff
from tests.sparse.textured import corner_scene, off_surface

POINTS = ("--depth_points", "0.1", "--factor", "1")
# OpenCV's distortion.
DISTORTION = (-0.1, 0.03, 0.004, -0.003)


def write_capture(folder, count=7, size=(120, 90), distortion=DISTORTION):
    """The corner in nerfstudio's format; every seventh image is a test image."""
    cameras, images = corner_scene(count, sizes=(size,), distortion=distortion)
    (folder / "images").mkdir(parents=True)
    frames = []
    inverse = torch.linalg.inv(cameras.pixtocams * torch.tensor([1.0, -1.0, -1.0])[:, None])
    fx, fy, cx, cy = (float(inverse[0, i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    for i, image in enumerate(images):
        imwrite(folder / "images" / f"{i}.png", np.repeat(image[..., None], 3, axis=-1))
        pose = np.eye(4)
        pose[:3] = cameras.camtoworlds[i].numpy()
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()})
    meta = {"camera_model": "OPENCV", "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": size[0],
            "h": size[1], "k1": distortion[0], "k2": distortion[1], "p1": distortion[2],
            "p2": distortion[3], "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(meta))


def in_files(dataset, positions):
    """World points `[M, 3]` in the coordinates of the scene's files."""
    inverse = np.linalg.inv(dataset.scene.world_to_scene.numpy().astype(np.float64))
    return positions.numpy() @ inverse[:3, :3].T + inverse[:3, 3]


def open_points(folder, *more):
    return open_scene(folder, "nerfstudio", "train", *POINTS, "--llffhold", "7", *more)


def test_points_of_a_capture_lie_on_its_surfaces(tmp_path):
    write_capture(tmp_path / "scene")
    dataset = open_points(tmp_path / "scene")
    points = dataset.scene.points
    assert len(points) > 100 and len(dataset.point_rays) > 300
    off = off_surface(in_files(dataset, points.positions))
    assert np.median(off) < 0.01 and np.percentile(off, 90) < 0.04


def test_range_and_box_are_those_of_the_points(tmp_path):
    write_capture(tmp_path / "scene")
    dataset, plain = open_points(tmp_path / "scene"), open_scene(tmp_path / "scene", "nerfstudio",
                                                                 "train", "--factor", "1")
    scenes, cameras = dataset.scenes(), dataset.scene.cameras
    # The walls are 2 to 4 units from the cameras.
    near, far = (t / dataset.scene.scale for t in cameras.visible_range)
    assert 1.5 < near < 2.6 and 2.8 < far < 4.5
    assert cameras.visible_range != plain.scene.cameras.visible_range
    assert all(scene.cameras.visible_range == cameras.visible_range for scene in scenes.values())
    points = dataset.scene.points.positions
    inside = ((points > dataset.scene.box[0]) & (points < dataset.scene.box[1])).all(dim=-1)
    assert inside.float().mean() > 0.9
    assert (dataset.scene.box[1] - dataset.scene.box[0]).prod() < (
        plain.scene.box[1] - plain.scene.box[0]).prod()


def test_test_images_are_never_matched(tmp_path):
    write_capture(tmp_path / "scene")
    first = open_points(tmp_path / "scene").scene.points
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    imwrite(tmp_path / "scene" / "images" / "0.png", noise)
    (cached,) = (tmp_path / "scene" / ".points").iterdir()
    cached.unlink()
    second = open_points(tmp_path / "scene").scene.points
    assert all(torch.equal(value, vars(second)[name]) for name, value in vars(first).items())
    assert [path.name for path in (tmp_path / "scene" / ".points").iterdir()] == [cached.name]


def test_another_split_or_image_is_matched_anew(tmp_path):
    write_capture(tmp_path / "scene")

    def cached(*flags):
        open_points(tmp_path / "scene", *flags)
        return len(list((tmp_path / "scene" / ".points").iterdir()))

    assert cached() == 1 and cached() == 1
    assert cached("--llffhold", "3") == 2
    imwrite(tmp_path / "scene" / "images" / "3.png", imread(
        tmp_path / "scene" / "images" / "3.png")[..., ::-1])
    assert cached() == 3


def test_only_training_with_the_flag_matches(tmp_path):
    write_capture(tmp_path / "scene")
    assert open_scene(tmp_path / "scene", "nerfstudio", "train").scene.points is None
    for split, read_pixels in (("test", True), ("train", False)):
        dataset = open_scene(tmp_path / "scene", "nerfstudio", split, *POINTS,
                             read_pixels=read_pixels)
        assert dataset.scene.points is None
    assert not (tmp_path / "scene" / ".points").exists()
    dataset = open_points(tmp_path / "scene")
    assert all(scene.points is None for scene in dataset.scenes().values())


def test_portrait_images_are_matched(tmp_path):
    write_capture(tmp_path / "scene", size=(90, 120))
    assert len(open_points(tmp_path / "scene").scene.points) > 50


def test_masked_regions_show_no_points(tmp_path):
    write_capture(tmp_path / "scene")
    mask = np.zeros((90, 120), np.uint8)
    mask[:, :60] = 255
    imwrite(tmp_path / "scene" / "mask.png", mask)
    change_json(tmp_path / "scene" / "transforms.json",
                lambda meta: meta.update(frames=[f | {"mask_path": "mask.png"}
                                                 for f in meta["frames"]]))
    points = open_points(tmp_path / "scene").scene.points
    assert len(points) >= 20 and points.pixels[:, 0].max() < 61


def test_transparent_pixels_show_no_points(tmp_path):
    write_capture(tmp_path / "scene")
    for file in (tmp_path / "scene" / "images").iterdir():
        alpha = np.full((90, 120, 1), 255, np.uint8)
        alpha[:, 60:] = 0
        imwrite(file, np.concatenate([imread(file), alpha], axis=-1))
    points = open_points(tmp_path / "scene", "--bg_range", "0", "0").scene.points
    assert len(points) >= 20 and points.pixels[:, 0].max() < 61


def test_several_scales_are_matched_at_the_first(tmp_path):
    write_capture(tmp_path / "scene")
    points = open_points(tmp_path / "scene").scene.points
    dataset = open_points(tmp_path / "scene", "--scales", "1", "2")
    assert len(dataset) == 12 and dataset.scene.points.image_idx.max() == 5
    assert torch.equal(dataset.scene.points.positions, points.positions)


def test_noise_gives_a_notice_and_no_rays(tmp_path, caplog):
    write_llff(tmp_path / "scene", num_views=4)
    dataset = open_scene(tmp_path / "scene", "llff", "train", "--depth_points", "0.1")
    assert dataset.scene.points is None and dataset.point_rays is None
    assert "that is too few" in caplog.text
    batch = dataset.batch(16, torch.Generator().manual_seed(0), num_points=4)
    assert batch.distance is None


def write_model(folder, num_points=80):
    """A COLMAP model with tracks of points in a cube; its images are of noise, twice as small."""
    cameras, _ = corner_scene(8, sizes=((160, 120),))
    inverse = torch.linalg.inv(cameras.pixtocams * torch.tensor([1.0, -1.0, -1.0])[:, None])[0]
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(pycolmap.Camera(
        camera_id=1, model="PINHOLE", width=160, height=120,
        params=[float(inverse[i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2))]))
    positions = 0.4 * torch.rand(num_points, 3, generator=torch.Generator().manual_seed(0))
    elements = [[] for _ in positions]
    (folder / "images_2").mkdir(parents=True)
    (folder / "sparse" / "0").mkdir(parents=True)
    for i in range(8):
        pixels, _ = points_to_pixels(cameras, torch.full((num_points,), i), positions)
        if i == 0:  # The test image's observations are wrong.
            pixels = pixels + 30
        pose = np.eye(4)
        pose[:3] = cameras.camtoworlds[i].numpy()
        opencv = np.linalg.inv(pose @ np.diag([1.0, -1.0, -1.0, 1.0]))
        image = pycolmap.Image(name=f"{i}.png", camera_id=1, image_id=i + 1)
        image.points2D = pycolmap.Point2DList(
            [pycolmap.Point2D(xy) for xy in pixels.double().numpy()])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(opencv[:3]))
        for k in range(num_points):
            elements[k].append(pycolmap.TrackElement(i + 1, k))
        imwrite(folder / "images_2" / f"{i}.png",
                np.random.default_rng(i).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for position, track in zip(positions, elements, strict=True):
        model.add_point3D(position.double().numpy() + 0.05, pycolmap.Track(track),
                          np.zeros(3, np.uint8))
    model.write(str(folder / "sparse" / "0"))
    return positions


def test_colmap_models_bring_their_tracks(tmp_path):
    positions = write_model(tmp_path / "scene")
    dataset = open_scene(tmp_path / "scene", "colmap", "train", "--depth_points", "0.1",
                         "--factor", "2")
    points = dataset.scene.points
    # Triangulated from the training images alone, whatever the model says.
    np.testing.assert_allclose(in_files(dataset, points.positions), positions, atol=1e-3)
    assert points.image_idx.max() == 6 and len(points.point_idx) == 7 * 80
    assert points.errors.max() < 0.05
    assert not (tmp_path / "scene" / ".points").exists()


def test_few_tracks_do_not_suffice(tmp_path, caplog):
    write_model(tmp_path / "scene", num_points=15)
    dataset = open_scene(tmp_path / "scene", "colmap", "train", "--depth_points", "0.1",
                         "--factor", "2")
    assert dataset.scene.points is None and "that is too few" in caplog.text


# Batches.


def test_slices_of_ranks_are_those_of_the_whole_batch(tmp_path):
    write_capture(tmp_path / "scene")
    dataset = open_points(tmp_path / "scene")

    def batch(rows, num_points=6):
        return dataset.batch(20, torch.Generator().manual_seed(5), rows, num_points)

    whole, parts = batch(slice(None)), [batch(slice(0, 7)), batch(slice(7, 20))]
    for name in ("rgb", "distance", "distance_weight", "pixels", "batch_index"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]),
                           getattr(whole, name))
    assert float(whole.distance_weight.sum()) == pytest.approx(1)
    assert (whole.distance_weight[:14] == 0).all() and (whole.distance[14:] > 0).all()
    plain = batch(slice(None), 0)
    assert plain.distance is None and torch.equal(plain.rgb[:14], whole.rgb[:14])


def test_wrong_matches_do_not_stretch_the_range():
    # 200 points at depths 2 to 3 of a camera at the origin, and one false match at depth 80.
    generator = torch.Generator().manual_seed(0)
    positions = torch.cat([torch.rand(200, 3, generator=generator), torch.tensor([[0.0, 0, 78]])])
    positions = (positions + torch.tensor([0.0, 0, 2])) * torch.tensor([0.1, 0.1, -1])
    index = torch.arange(201)
    points = SparsePoints(positions=positions, errors=torch.zeros(201), pixels=torch.zeros(201, 2),
                          image_idx=torch.zeros(201, dtype=torch.long), point_idx=index)
    cameras = make_cameras(np.eye(4)[None, :3], [np.diag([0.01, -0.01, -1.0])], [(64, 64)],
                           near=0.0, far=1.0)
    near, far = observed_range(cameras, points)
    assert 1.75 < near < 1.9 and 3.2 < far < 3.35
    fisheye = replace(cameras, fisheye=torch.ones(1, dtype=torch.bool))
    assert observed_range(fisheye, points)[1] > far
