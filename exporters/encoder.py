"""Video files: the choice of an encoder, and frames to a video or a GIF preview.

Frames are uint8 `[h, w, 3]` of equal size, or `[h, w, 4]` with alpha. Videos are encoded by ffmpeg,
from the package imageio-ffmpeg; without a working encoder they become animated PNGs.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from runtime.errors import first_line
from runtime.files import atomic_file

# Codecs in the order of preference, with options for a visually lossless quality. "faststart"
# lets browsers play a video before it is loaded completely.
H264 = ("libx264", ["-crf", "18", "-preset", "slow", "-movflags", "+faststart", "-f", "mp4"])
MPEG4 = ("mpeg4", ["-q:v", "2", "-f", "mp4"])

# Largest width in pixels and number of frames of a preview, which is small enough for documents.
PREVIEW_WIDTH = 480
PREVIEW_FRAMES = 40

# Browsers slow down GIFs whose frames are shorter than this many milliseconds.
MIN_GIF_DURATION = 20


class Encoder(NamedTuple):
    """A way to write videos.

    suffix: of the files; codec, options: of ffmpeg, None and [] for animated PNGs; note: a
    message to the user about a fallback, or None.
    """

    suffix: str
    codec: str | None
    options: list[str]
    note: str | None


# Videos with alpha, whose codec is slow.
TRANSPARENT = Encoder(".webm", "libvpx-vp9", ["-crf", "18", "-b:v", "0", "-row-mt", "1", "-f",
                                              "webm"], None)


def find_encoder(width: int, height: int, fps: float) -> Encoder:
    """The best encoder that works on this machine, tested on two frames of the given size."""
    failures = []
    for codec, options in (H264, MPEG4):
        try:
            _try_codec(codec, options, width, height, fps)
        except Exception as error:  # No package, binary or codec, or an unsupported size.
            failures.append(f"{codec}: {first_line(error)}")
            continue
        reasons = "; ".join(failures)
        note = f"H.264 is not available ({reasons}); using MPEG-4." if reasons else None
        return Encoder(".mp4", codec, options, note)
    note = (f"No video encoder is available ({'; '.join(failures)}); writing animated PNGs. "
            "`pip install imageio-ffmpeg` installs an encoder.")
    return Encoder(".png", None, [], note)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: float,
                encoder: Encoder) -> None:
    """Atomically write frames to a video file. Raises UserError if it cannot be written."""
    with atomic_file(path) as temporary:
        if encoder.codec is None:
            _write_animation(temporary, "PNG", [Image.fromarray(f) for f in frames], 1000 / fps)
        else:
            _encode(temporary, frames, fps, encoder.codec, encoder.options)


def write_preview(path: str | Path, frames: Iterable[np.ndarray], count: int, fps: float) -> None:
    """Atomically write a small GIF of the `count` frames of a video.

    It shows at most `PREVIEW_FRAMES` of them, evenly spaced, and lasts as long as the video. Only
    these are kept in memory. Raises UserError if it cannot be written.
    """
    shown = set(np.linspace(0, count - 1, min(count, PREVIEW_FRAMES)).round().astype(int).tolist())
    images = [_downsample(frame) for i, frame in enumerate(frames) if i in shown]
    with atomic_file(path) as temporary:
        duration = max(MIN_GIF_DURATION, 1000 * count / (fps * len(images)))
        _write_animation(temporary, "GIF", _with_common_palette(images), duration)


def _downsample(frame: np.ndarray) -> Image.Image:
    """A frame as an image of at most `PREVIEW_WIDTH` pixels width."""
    image = Image.fromarray(frame)
    if image.width <= PREVIEW_WIDTH:
        return image
    size = PREVIEW_WIDTH, max(1, round(image.height * PREVIEW_WIDTH / image.width))
    return image.resize(size, Image.Resampling.BOX)


def _with_common_palette(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Images with one palette of 255 colours, computed from some six of them.

    With a common palette colours do not flicker, and static regions compress well.
    """
    some = images[:: max(1, len(images) // 6)]
    strip = Image.new("RGB", (images[0].width, images[0].height * len(some)))
    for i, image in enumerate(some):
        strip.paste(image, (0, i * image.height))
    palette = strip.quantize(255, method=Image.Quantize.MEDIANCUT)
    return [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]


def _write_animation(path: Path, kind: str, images: Sequence[Image.Image],
                     milliseconds: float) -> None:
    images[0].save(path, format=kind, save_all=True, append_images=images[1:], loop=0,
                   duration=max(1, round(milliseconds)))


def _try_codec(codec: str, options: list[str], width: int, height: int, fps: float) -> None:
    grey = np.full((height, width, 3), 128, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        _encode(Path(folder) / "trial", [grey, grey], fps, codec, options)


def _encode(path: Path, frames: Iterable[np.ndarray], fps: float, codec: str,
            options: list[str]) -> None:
    import imageio_ffmpeg

    writer = None
    try:
        for frame in frames:
            # Chroma has half the resolution, so sides must be even.
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), "edge")
            has_alpha = frame.shape[2] == 4
            if writer is None:
                writer = imageio_ffmpeg.write_frames(
                    str(path), (even.shape[1], even.shape[0]), fps=fps, codec=codec, quality=None,
                    pix_fmt_in="rgba" if has_alpha else "rgb24",
                    pix_fmt_out="yuva420p" if has_alpha else "yuv420p", macro_block_size=1,
                    ffmpeg_log_level="quiet", output_params=options,
                )
                writer.send(None)
            writer.send(np.ascontiguousarray(even))
    finally:
        if writer is not None:
            writer.close()
    if not path.exists() or path.stat().st_size == 0:
        raise OSError(f"ffmpeg wrote no output with {codec}")
