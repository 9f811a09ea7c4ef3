"""Films of high dynamic range: their frames beside the light that was filmed, by ITU-R BT.2100."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from capture import hdr, photos

SIZE = WIDTH, HEIGHT = 96, 64
FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
LUMA = np.array([0.2627, 0.6780, 0.0593])


def to_hlg(nits):
    """HLG's signal of display light `[..., 3]` on a screen of 1000 nits (gamma 1.2)."""
    luminance = np.maximum(nits @ LUMA, 1e-6)[..., None] / 1000
    scene = nits / 1000 * luminance ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene),
                    a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)


def to_pq(nits):
    power = (np.maximum(nits, 0) / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def picture(colourful=True):
    """An ordinary image `[h, w, 3]` in [0, 1], smooth, with a white quarter."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] / np.array([HEIGHT, WIDTH])[:, None, None]
    image = 0.5 + 0.2 * np.stack([np.sin(5 * x), np.cos(4 * y), np.sin(3 * x + 4 * y)], axis=-1)
    image[HEIGHT // 2 :, : WIDTH // 2] = 1
    return image if colourful else np.repeat(image[..., :1], 3, axis=-1)


def light(image):
    """Linear light of an image on a screen, by ITU-R BT.1886."""
    return image**2.4


def write_film(path, signal, transfer):
    """Three equal frames of 10 bits, from an R'G'B' signal of BT.2020."""
    luma = signal @ LUMA
    blue, red = (signal[..., 2] - luma) / 1.8814, (signal[..., 0] - luma) / 1.4746
    planes = np.stack([64 + 876 * luma, 512 + 896 * blue, 512 + 896 * red])
    frames = np.tile(np.rint(planes).astype("<u2"), (3, 1, 1))
    colours = ["-color_primaries", "bt2020", "-color_trc", transfer, "-colorspace", "bt2020nc",
               "-color_range", "tv"]
    subprocess.run([FFMPEG, "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "yuv444p10le",
                    "-s", f"{WIDTH}x{HEIGHT}", *colours, "-i", "-", "-c:v", "ffv1", *colours,
                    str(path)], input=frames.tobytes(), check=True)


@pytest.mark.parametrize("white", [100, 203])
@pytest.mark.parametrize("transfer,encode", [("arib-std-b67", to_hlg), ("smpte2084", to_pq)])
def test_films_of_high_dynamic_range_become_ordinary_images(tmp_path, transfer, encode, white):
    """HLG in grey: ffmpeg applies its gamma to each channel, and BT.2100 to the luminance."""
    image = picture(colourful=encode is to_pq)
    nits = white * light(image) @ TO_BT2020.T
    write_film(tmp_path / "film.mkv", encode(nits), transfer)
    assert hdr.is_hdr(tmp_path / "film.mkv")
    assert hdr.find_exposure(tmp_path / "film.mkv").white == pytest.approx(white, rel=0.03)
    frames = list(photos.decode_frames(tmp_path / "film.mkv"))
    assert len(frames) == 3
    errors = np.abs(frames[1][..., ::-1] - 255 * image)
    assert errors.mean() < 4 and errors.max() < 14


def test_lights_brighter_than_white_keep_their_differences(tmp_path):
    image = picture()
    nits = 203 * light(image)
    nits[:8, :8], nits[:8, 8:16] = 406, 1624
    write_film(tmp_path / "film.mkv", to_pq(nits @ TO_BT2020.T), "smpte2084")
    frame = next(iter(photos.decode_frames(tmp_path / "film.mkv"))).astype(int)
    # White, twice white, eight times white.
    shown = [frame[-1, 0].mean(), frame[3, 3].mean(), frame[3, 12].mean()]
    assert 215 < shown[0] and shown[0] + 5 < shown[1] and shown[1] + 5 < shown[2] <= 255


def test_ordinary_films_are_not_tone_mapped(tmp_path):
    write_film(tmp_path / "film.mkv", picture(), "bt709")
    assert not hdr.is_hdr(tmp_path / "film.mkv")
    (tmp_path / "text.mp4").write_text("arib-std-b67 Video: no film")
    assert not hdr.is_hdr(tmp_path / "text.mp4")


def test_portrait_films_are_upright(tmp_path):
    nits = 100 * light(picture()) @ TO_BT2020.T
    write_film(tmp_path / "film.mov", to_pq(nits), "smpte2084")
    subprocess.run([FFMPEG, "-loglevel", "error", "-display_rotation", "90", "-i",
                    str(tmp_path / "film.mov"), "-c", "copy", str(tmp_path / "turned.mov")],
                   check=True)
    frame = next(iter(photos.decode_frames(tmp_path / "turned.mov")))
    assert np.abs(frame[..., ::-1] - 255 * np.rot90(picture())).mean() < 4
