"""Video files as players read them, and the fallbacks without an encoder."""

import imageio_ffmpeg
import numpy as np
import pytest
from imageio.v3 import imread
from PIL import Image

from exporters import encoder as encoders
from exporters.encoder import find_encoder, write_preview, write_video
from runtime.errors import UserError


def moving_square(count=6, width=48, height=32):
    frames = np.full((count, height, width, 3), 255, dtype=np.uint8)
    for i, frame in enumerate(frames):
        frame[8:20, 4 + 4 * i : 16 + 4 * i] = (200, 30, 30)
    return list(frames)


def read_video(path):
    """Metadata and frames of a video, by ffmpeg."""
    reader = imageio_ffmpeg.read_frames(str(path))
    metadata = next(reader)
    width, height = metadata["size"]
    return metadata, [np.frombuffer(frame, dtype=np.uint8).reshape(height, width, 3)
                   for frame in reader]


@pytest.mark.parametrize("width,height", [(48, 32), (47, 31), (64, 33)])
def test_h264_of_any_size_can_be_played(tmp_path, width, height):
    frames = moving_square(width=width, height=height)
    encoder = find_encoder(width, height, 10)
    assert (encoder.suffix, encoder.codec, encoder.note) == (".mp4", "libx264", None)
    write_video(tmp_path / "a.mp4", frames, 10, encoder)
    metadata, read = read_video(tmp_path / "a.mp4")
    assert metadata["codec"] == "h264" and metadata["pix_fmt"].startswith("yuv420p")
    assert metadata["size"] == (width + width % 2, height + height % 2)
    assert metadata["fps"] == 10 and len(read) == len(frames)
    for decoded, frame in zip(read, frames, strict=True):
        assert np.abs(decoded[:height, :width].astype(int) - frame).mean() < 4


def test_without_h264_mpeg4_is_written_with_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "H264", ("no_such_codec", []))
    encoder = find_encoder(48, 32, 10)
    assert encoder.codec == "mpeg4" and "H.264 is not available" in encoder.note
    write_video(tmp_path / "a.mp4", moving_square(), 10, encoder)
    metadata, read = read_video(tmp_path / "a.mp4")
    assert metadata["codec"] == "mpeg4" and len(read) == 6


@pytest.mark.parametrize("binary", ["/no/such/ffmpeg", "/bin/false"])
def test_without_ffmpeg_animated_pngs_are_written_with_a_note(tmp_path, monkeypatch, binary):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", binary)
    encoder = find_encoder(48, 32, 10)
    assert encoder.codec is None and "pip install imageio-ffmpeg" in encoder.note
    frames = moving_square()
    write_video(tmp_path / "a.png", iter(frames), 10, encoder)
    with Image.open(tmp_path / "a.png") as image:
        assert image.n_frames == 6 and image.info["duration"] == 100
    np.testing.assert_array_equal(imread(tmp_path / "a.png")[..., :3], frames)


def test_a_failed_video_leaves_the_old_one(tmp_path):
    encoder = find_encoder(48, 32, 10)
    path = tmp_path / "a.mp4"
    write_video(path, moving_square(), 10, encoder)
    before = path.read_bytes()

    def failing():
        yield from moving_square(3)
        raise OSError("the disk failed")

    with pytest.raises(UserError, match="a.mp4 could not be written"):
        write_video(path, failing(), 10, encoder)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_an_interrupted_video_leaves_no_file(tmp_path):
    def interrupted():
        yield from moving_square(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", interrupted(), 10, find_encoder(48, 32, 10))
    assert not list(tmp_path.iterdir())


def test_a_preview_is_small_and_lasts_as_long_as_the_video(tmp_path):
    frames = moving_square(100, width=700, height=60)
    write_preview(tmp_path / "a.gif", iter(frames), 100, 25)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.width == 480 and image.n_frames == 40 and image.info["loop"] == 0
        assert image.info["duration"] * image.n_frames == pytest.approx(4000, rel=0.05)
        image.seek(image.n_frames // 2)
        middle = np.asarray(image.convert("RGB"))
    expected = np.asarray(Image.fromarray(frames[50]).resize(middle.shape[1::-1]))
    assert np.abs(middle.astype(int) - expected).mean() < 8


def test_a_preview_of_one_frame_is_an_image(tmp_path):
    write_preview(tmp_path / "a.gif", moving_square(1), 1, 30)
    assert imread(tmp_path / "a.gif").shape[-3:] == (32, 48, 3)
