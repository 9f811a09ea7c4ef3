"""Metrics against the official code's numbers, filters and files against arithmetic."""

import math

import cv2
import numpy as np
import pytest
import torch
from imageio.v3 import imread, imwrite

import image_utils
from runtime.errors import UserError


def slow_ssim(a, b):
    """SSIM by its definition: an 11x11 Gaussian window at every place inside the image."""
    x = np.arange(11) - 5
    window = np.exp(-(x**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for channel in range(3):
        for i in range(a.shape[0] - 10):
            for j in range(a.shape[1] - 10):
                p, q = (im[i : i + 11, j : j + 11, channel] for im in (a, b))
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * p**2).sum() - mp**2, (window * q**2).sum() - mq**2
                cov = (window * p * q).sum() - mp * mq
                values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
                              / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


def test_ssim_equals_its_definition():
    rng = np.random.default_rng(0)
    a = rng.random((14, 16, 3))
    b = np.clip(a + 0.1 * rng.normal(size=a.shape), 0, 1)
    assert image_utils.ssim(a, b) == pytest.approx(slow_ssim(a, b), abs=1e-6)
    assert image_utils.ssim(torch.from_numpy(a), torch.from_numpy(b)) == image_utils.ssim(a, b)
    assert image_utils.ssim(a, a) == pytest.approx(1)


def test_ssim_of_images_smaller_than_its_window_is_nan():
    assert math.isnan(image_utils.ssim(np.zeros((10, 20, 3)), np.zeros((10, 20, 3))))


def test_psnr_by_hand():
    a = np.zeros((2, 2, 3))
    assert image_utils.psnr(a, a + 0.1) == pytest.approx(20)
    assert image_utils.psnr(torch.from_numpy(a).float(), torch.full((2, 2, 3), 0.01)) == (
        pytest.approx(40, abs=1e-4))
    assert image_utils.psnr(a, a) == math.inf
    assert float(image_utils.mse_to_psnr(torch.tensor(0.001))) == pytest.approx(30)


@pytest.mark.parametrize("size,wanted", [((6, 4), (3, 2)), ((9, 6), (3, 2)), ((7, 5), (3, 2))])
def test_area_filter_is_the_mean_over_each_pixels_area(size, wanted):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    found = image_utils.resize_area(image, *wanted)

    def overlap(n, m):
        edges = np.linspace(0, n, m + 1)
        cover = [[max(0, min(edges[i + 1], k + 1) - max(edges[i], k)) for k in range(n)]
                 for i in range(m)]
        return np.array(cover) / (n / m)

    exact = np.einsum("ik,jl,klc->ijc", overlap(size[1], wanted[1]), overlap(size[0], wanted[0]),
                      image)
    # Half a level of rounding; OpenCV's own weights are float32.
    assert np.abs(found - exact).max() < 0.51


def test_transparent_pixels_do_not_bleed():
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = [80, 90, 100, 255]
    image[1, 1] = [255, 255, 255, 0]
    assert image_utils.resize_area(image, 1, 1).tolist() == [[[80, 90, 100, 64]]]


def test_quantization_rounds():
    values = np.array([[[0.0, 0.499 / 255, 0.501 / 255]], [[1.0, 1.5, -1.0]]])
    assert image_utils.to_uint8(values).tolist() == [[[0, 0, 1]], [[255, 255, 0]]]


def test_pictures_survive_a_round_trip(tmp_path):
    rng = np.random.default_rng(2)
    for channels in (3, 4):
        image = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        image_utils.write_image(tmp_path / "a.png", image)
        assert np.array_equal(image_utils.read_image(tmp_path / "a.png", channels), image)
        assert image_utils.image_size(tmp_path / "a.png") == (7, 5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    image_utils.write_image(path, np.zeros((2, 2, 3)))
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("file_utils.os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        image_utils.write_image(path, np.ones((2, 2, 3)))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_broken_pictures_are_one_sentence(content, tmp_path):
    path = tmp_path / "a.png"
    imwrite(path, np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:900] if content == "half" else content)
    with pytest.raises(UserError, match="a.png cannot be read"):
        image_utils.read_image(path, 3)


def test_colours_of_distances_go_from_warm_to_cold_and_fade_to_white():
    distance = np.array([[1.0, 3.0, 2.0]])
    acc = np.array([[1.0, 1.0, 0.0]])
    near, far, empty = image_utils.visualize_distance(distance, acc, 1.0, 3.0)[0]
    assert near[0] > near[2] and far[2] > far[0]
    assert (empty == 1).all()


def test_distance_range_ignores_empty_pixels():
    distance = np.r_[np.linspace(2, 4, 101), 1e6][None]
    acc = np.r_[np.ones(101), 0.0][None]
    assert image_utils.distance_range(distance, acc) == pytest.approx((2.04, 3.96))
    assert image_utils.distance_range(distance, np.zeros_like(acc)) == (1.0, 2.0)


def test_the_scale_of_distances_is_logarithmic():
    """Steps of one ratio are steps of one length along the colour map."""
    ramp = image_utils.visualize_distance(np.geomspace(1, 16, 256)[None], np.ones((1, 256)), 1, 16)
    colours = cv2.applyColorMap(np.arange(255, -1, -1, dtype=np.uint8)[None], cv2.COLORMAP_TURBO)
    np.testing.assert_allclose(ramp, colours[..., ::-1] / 255, atol=0.02)


@pytest.mark.parametrize("height", [9, 48, 200])
def test_a_legend_has_the_height_and_the_colours_of_its_picture(height):
    legend = image_utils.distance_legend(height, 2.0, 8.0)
    assert legend.dtype == np.uint8 and legend.shape[0] == height
    if height < 96:
        return
    top, bottom = legend[9, 3] / 255, legend[-10, 3] / 255
    far, near = image_utils.visualize_distance(np.array([[8.0, 2.0]]), np.ones((1, 2)), 2, 8)[0]
    np.testing.assert_allclose([top, bottom], [far, near], atol=0.06)
    assert (legend[:, 12:] < 128).any()  # The numbers.


def camera_rays(size=40, width=0.6):
    """Unit view directions `[size, size, 3]` of a camera that looks along -z."""
    at = (torch.arange(size) + 0.5) / size - 0.5
    y, x = torch.meshgrid(-width * at, width * at, indexing="ij")
    return torch.nn.functional.normalize(torch.stack([x, y, -torch.ones_like(x)], -1), dim=-1)


def degrees_between(a, b):
    return torch.rad2deg(torch.acos((a * b).sum(-1).clamp(-1, 1)))


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (-0.3, 0.5, 0.8)])
def test_normals_of_a_plane_are_exact(normal):
    viewdirs = camera_rays()
    normal = torch.nn.functional.normalize(torch.tensor(normal), dim=0)
    distance = -4 / (viewdirs @ normal)
    found = image_utils.surface_normals(distance, viewdirs, torch.ones_like(distance))
    assert degrees_between(found, normal).max() < 0.1


def test_normals_of_a_noisy_sphere_are_smooth_and_its_empty_surroundings_have_none():
    viewdirs = camera_rays(60)
    to_centre = torch.tensor([0.0, 0.0, -4.0])
    along = viewdirs @ to_centre
    room = 1 - (to_centre.norm() ** 2 - along**2)
    hit = room > 0
    exact = along - room.clamp(min=0).sqrt()
    # Noise of half a pixel's width along the ray would tilt normals of finite differences by 30.
    distance = torch.where(hit, exact + 0.02 * torch.randn(60, 60), 9.0)
    found = image_utils.surface_normals(distance, viewdirs, hit.float())
    wanted = exact[..., None] * viewdirs - to_centre
    assert degrees_between(found, wanted)[hit & (room > 0.2)].mean() < 7
    assert (found[~hit] == 0).all()


def test_the_noisier_the_distances_the_larger_the_neighbourhood():
    """A plane under noise of 3 % of the distance: 7 pixels alone would be off by 46 degrees."""
    viewdirs = camera_rays(60)
    normal = torch.tensor([0.6, 0.0, 0.8])
    exact = -4 / (viewdirs @ normal)
    noise = 0.03 * exact * torch.randn(60, 60)
    found = image_utils.surface_normals(exact + noise, viewdirs, torch.ones(60, 60))
    assert degrees_between(found, normal).mean() < 15


def test_normals_keep_the_edge_between_two_surfaces():
    viewdirs = camera_rays()
    left = torch.arange(40) < 20
    slanted = torch.nn.functional.normalize(torch.tensor([0.8, 0.0, 0.6]), dim=0)
    # A slanted plane in front of an upright one, far enough behind not to touch it.
    distance = torch.where(left, -3 / (viewdirs @ slanted), -6 / viewdirs[..., 2])
    found = image_utils.surface_normals(distance, viewdirs, torch.ones_like(distance))
    assert degrees_between(found[:, :20], slanted).max() < 1
    assert degrees_between(found[:, 20:], torch.tensor([0.0, 0.0, 1.0])).max() < 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1)])
def test_normals_of_tiny_pictures_face_the_camera(size):
    viewdirs = camera_rays(60)[: size[0], : size[1]]
    found = image_utils.surface_normals(torch.full(size, 2.0), viewdirs, torch.ones(size))
    assert torch.isfinite(found).all()
    assert degrees_between(found, -viewdirs).max() < 25


def test_colours_of_normals():
    normals = np.array([[[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]])
    found = image_utils.visualize_normals(normals, np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(found, [[[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]])


def test_contact_sheet_pads_smaller_pictures():
    sheet = image_utils.contact_sheet([[np.zeros((4, 5, 3)), np.zeros((2, 3, 3))],
                                       [np.zeros((4, 5, 3))]])
    assert sheet.shape == (10, 12, 3)
    assert sheet[0, 0, 0] == 0 and sheet[3, 8, 0] == 1 and sheet[8, 8, 0] == 1
    lower = image_utils.contact_sheet([[np.zeros((4, 5, 3))], [np.zeros((2, 3, 3))]])
    assert lower.shape == (8, 5, 3) and lower[7, 2, 0] == 0 and lower[7, 3, 0] == 1


def test_files_listed_are_pictures_sorted_by_name(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in image_utils.list_images(tmp_path)] == ["a.JPG", "b.png"]
    imwrite(tmp_path / "b.png", np.zeros((2, 2, 3), np.uint8))
    assert imread(tmp_path / "b.png").shape == (2, 2, 3)
