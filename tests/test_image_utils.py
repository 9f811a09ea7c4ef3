"""Metrics and filters against their definitions, files against round trips, colour maps."""

import math

import cv2
import numpy as np
import pytest
import torch
from imageio.v3 import imread, imwrite

import image_utils
from runtime.errors import UserError


def slow_ssim(a, b, side=11):
    """SSIM by its definition: a Gaussian window at every position inside the image."""
    x = np.arange(side) - side // 2
    window = np.exp(-(x**2) / (2 * (1.5 * side / 11) ** 2))
    window = np.outer(window, window) / window.sum() ** 2
    values = []
    for channel in range(3):
        for i in range(a.shape[0] - side + 1):
            for j in range(a.shape[1] - side + 1):
                p, q = (im[i : i + side, j : j + side, channel] for im in (a, b))
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


@pytest.mark.parametrize("size,side", [((11, 11), 11), ((10, 20), 9), ((12, 5), 5), ((2, 7), 1),
                                       ((1, 1), 1)])
def test_ssim_of_small_images_has_a_window_that_fits(size, side):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, *size, 3))
    assert image_utils.ssim(a, b) == pytest.approx(slow_ssim(a, b, side), abs=1e-6)
    assert image_utils.ssim(a, a) == pytest.approx(1)


def test_psnr_by_hand():
    a = np.zeros((2, 2, 3))
    assert image_utils.psnr(a, a + 0.1) == pytest.approx(20)
    assert image_utils.psnr(torch.from_numpy(a).float(), torch.full((2, 2, 3), 0.01)) == (
        pytest.approx(40, abs=1e-4))
    assert image_utils.psnr(a, a) == math.inf
    assert float(image_utils.mse_to_psnr(torch.tensor(0.001))) == pytest.approx(30)


# Fitted colours.


def quadratic_pair(seed=0, shape=(30, 40, 3)):
    """A random image, and the reference that a known quadratic polynomial of its colours gives."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(0.05, 0.95, shape)
    mix = rng.uniform(0, 0.15, (3, 3, 3))
    reference = 0.03 + image @ rng.uniform(0.02, 0.1, (3, 3)) + np.einsum(
        "abc,ija,ijb->ijc", mix, image, image)
    assert 0.01 < reference.min() and reference.max() < 0.99
    return image, reference


def test_a_quadratic_change_of_colours_is_undone():
    image, reference = quadratic_pair()
    assert image_utils.psnr(image, reference) < 20
    corrected = image_utils.correct_colours(image, torch.from_numpy(reference))
    np.testing.assert_allclose(corrected, reference, atol=1e-9)


def test_gains_in_linear_light_and_gammas_are_nearly_undone():
    smooth = np.random.default_rng(1).uniform(0.1, 0.6, (5, 6, 3))
    reference = cv2.resize(smooth, (60, 50), interpolation=cv2.INTER_LINEAR)
    brighter = 1.055 * (2**0.5 * ((reference + 0.055) / 1.055) ** 2.4) ** (1 / 2.4) - 0.055
    for image in (brighter, reference ** 1.4 * [1.0, 0.8, 1.2]):
        corrected = image_utils.correct_colours(image, reference)
        assert image_utils.psnr(image, reference) < 24
        assert image_utils.psnr(corrected, reference) > 45


@pytest.mark.parametrize("spoilt", ["image", "reference", "masked"])
def test_saturated_and_masked_pixels_do_not_enter_the_fit(spoilt):
    image, reference = quadratic_pair()
    wrong, valid = np.random.default_rng(2).random(image.shape[:2]) < 0.2, None
    expected = reference.copy()
    if spoilt == "image":
        image[wrong] = 1 - 0.4 / 255
    elif spoilt == "reference":
        reference[wrong, 1] = 0.4 / 255
    else:
        reference[wrong], valid = 0.5, ~wrong
    corrected = image_utils.correct_colours(image, reference, valid)
    np.testing.assert_allclose(corrected[~wrong], expected[~wrong], atol=1e-9)


def test_rounds_leave_out_pixels_whose_estimates_are_saturated(monkeypatch):
    monkeypatch.setattr(image_utils, "CORRECTION_BLOCK", 100)
    rng = np.random.default_rng(4)
    image = rng.uniform(0.01, 0.99, (20, 25, 3))
    reference = np.clip(2.5 * image - 0.7 + 0.05 * rng.normal(size=image.shape), 0, 1)
    estimate, target = image.reshape(-1, 3), reference.reshape(-1, 3)
    unsaturated = [(0.5 / 255 <= x) & (x <= 1 - 0.5 / 255) for x in (estimate, target)]
    for _ in range(5):
        pairs = [estimate[:, i] * estimate[:, j] for i in range(3) for j in range(i, 3)]
        features = np.stack([*pairs, *estimate.T, np.ones(len(estimate))], axis=1)
        kept = unsaturated[0] & unsaturated[1] & (np.abs(estimate - 0.5) <= 0.5 - 0.5 / 255)
        weights = [np.linalg.lstsq(features[kept[:, c]], target[kept[:, c], c], rcond=None)[0]
                   for c in range(3)]
        estimate = np.clip(features @ np.stack(weights, axis=1), 0, 1)
    np.testing.assert_allclose(image_utils.correct_colours(image, reference),
                               estimate.reshape(image.shape), atol=1e-9)


def test_images_without_a_pixel_to_fit_stay_and_constant_ones_get_the_mean():
    rng = np.random.default_rng(3)
    image, ends = rng.uniform(0.1, 0.9, (6, 5, 3)), rng.integers(0, 2, (6, 5, 3)).astype(float)
    for pair in ((image, ends), (ends, image)):
        assert (image_utils.correct_colours(*pair) == pair[0]).all()
    grey = np.full((6, 5, 3), 0.5)
    corrected = image_utils.correct_colours(grey, image)
    np.testing.assert_allclose(corrected, np.broadcast_to(image.mean((0, 1)), image.shape))
    assert (image_utils.correct_colours(image, grey) == pytest.approx(0.5))


# Sizes.


@pytest.mark.parametrize("size,small", [((6, 4), (3, 2)), ((9, 6), (3, 2)), ((7, 5), (3, 2))])
def test_resizing_averages_over_the_area_of_each_pixel(size, small):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    resized = image_utils.resize_area(image, *small)

    def overlap(n, m):
        edges = np.linspace(0, n, m + 1)
        cover = [[max(0, min(edges[i + 1], k + 1) - max(edges[i], k)) for k in range(n)]
                 for i in range(m)]
        return np.array(cover) / (n / m)

    exact = np.einsum("ik,jl,klc->ijc", overlap(size[1], small[1]), overlap(size[0], small[0]),
                      image)
    # Rounding by half a level, and OpenCV's float32 weights.
    assert np.abs(resized - exact).max() < 0.51


def test_colour_of_transparent_pixels_does_not_bleed():
    image = np.zeros((2, 2, 4), np.uint8)
    image[0, 0] = [80, 90, 100, 255]
    image[1, 1] = [255, 255, 255, 0]
    assert image_utils.resize_area(image, 1, 1).tolist() == [[[80, 90, 100, 64]]]


def test_quantization_rounds_and_clips():
    values = np.array([[[0.0, 0.499 / 255, 0.501 / 255]], [[1.0, 1.5, -1.0]]])
    assert image_utils.to_uint8(values).tolist() == [[[0, 0, 1]], [[255, 255, 0]]]


def test_srgb_has_the_values_of_its_standard_and_is_inverted():
    """In linear light, sRGB's 0.5 is 0.2140 and its straight part is divided by 12.92."""
    light = image_utils.srgb_to_linear(torch.tensor([0.0, 0.02, 0.5, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(light, [0, 0.02 / 12.92, 0.21404114, 1], rtol=1e-7)
    np.testing.assert_allclose(image_utils.linear_to_srgb(light), [0, 0.02, 0.5, 1], rtol=1e-7)


def test_images_survive_a_round_trip(tmp_path):
    rng = np.random.default_rng(2)
    for channels in (3, 4):
        image = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
        image_utils.write_image(tmp_path / "a.png", image)
        assert np.array_equal(image_utils.read_image(tmp_path / "a.png", channels), image)
        assert image_utils.image_size(tmp_path / "a.png") == (7, 5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_an_image_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    image_utils.write_image(path, np.zeros((2, 2, 3)))
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.files.os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        image_utils.write_image(path, np.ones((2, 2, 3)))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_a_broken_image_file_is_an_error(content, tmp_path):
    path = tmp_path / "a.png"
    imwrite(path, np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:900] if content == "half" else content)
    with pytest.raises(UserError, match="a.png cannot be read"):
        image_utils.read_image(path, 3)


def test_distances_are_warm_near_cold_far_and_white_if_empty():
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


def test_the_colour_scale_of_distances_is_logarithmic():
    """Distances in geometric progression are equally spaced on the colour map."""
    ramp = image_utils.visualize_distance(np.geomspace(1, 16, 256)[None], np.ones((1, 256)), 1, 16)
    colours = cv2.applyColorMap(np.arange(255, -1, -1, dtype=np.uint8)[None], cv2.COLORMAP_TURBO)
    np.testing.assert_allclose(ramp, colours[..., ::-1] / 255, atol=0.02)


@pytest.mark.parametrize("height", [9, 48, 200])
def test_a_legend_has_the_height_and_the_colours_of_its_image(height):
    legend = image_utils.distance_legend(height, 2.0, 8.0)
    assert legend.dtype == np.uint8 and legend.shape[0] == height
    if height < 96:
        return
    top, bottom = legend[9, 3] / 255, legend[-10, 3] / 255
    far, near = image_utils.visualize_distance(np.array([[8.0, 2.0]]), np.ones((1, 2)), 2, 8)[0]
    np.testing.assert_allclose([top, bottom], [far, near], atol=0.06)
    assert (legend[:, 12:] < 128).any()  # Digits.


def test_normals_are_mapped_to_colours_and_white_if_empty():
    normals = np.array([[[1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]])
    colours = image_utils.visualize_normals(normals, np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(colours, [[[1.0, 0.5, 0.0], [1.0, 1.0, 1.0]]])


def test_a_contact_sheet_pads_smaller_images():
    sheet = image_utils.contact_sheet([[np.zeros((4, 5, 3)), np.zeros((2, 3, 3))],
                                       [np.zeros((4, 5, 3))]])
    assert sheet.shape == (10, 12, 3)
    assert sheet[0, 0, 0] == 0 and sheet[3, 8, 0] == 1 and sheet[8, 8, 0] == 1
    lower = image_utils.contact_sheet([[np.zeros((4, 5, 3))], [np.zeros((2, 3, 3))]])
    assert lower.shape == (8, 5, 3) and lower[7, 2, 0] == 0 and lower[7, 3, 0] == 1


def test_image_files_are_listed_by_name(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in image_utils.list_images(tmp_path)] == ["a.JPG", "b.png"]
    imwrite(tmp_path / "b.png", np.zeros((2, 2, 3), np.uint8))
    assert imread(tmp_path / "b.png").shape == (2, 2, 3)
