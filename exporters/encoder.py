"""Videos: which encoder there is, and frames into a file.

Frames are uint8 `[h, w, 3]`, all of one size. The encoders come with the package imageio-ffmpeg;
where none works, an animated PNG takes their place.
"""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from runtime.errors import first_line
from runtime.files import atomic_file

# Options that make a video which browsers and slides play, at a quality that shows no artefacts.
H264 = ("libx264", ["-crf", "18", "-preset", "slow", "-movflags", "+faststart"])

MPEG4 = ("mpeg4", ["-q:v", "2"])

# A preview is for documents: small, and short.
PREVIEW_WIDTH = 480

PREVIEW_FRAMES = 40


class Encoder(NamedTuple):
    """How videos are written: `suffix` of the files; codec and its options, None for animated PNG.

    note: what a user should know of a fallback, or None.
    """

    suffix: str
    codec: str | None
    options: list
    note: str | None


def find_encoder(width, height, fps):
    """The best encoder that works here, tried on two frames of the size that it is for."""
    failures = []
    for codec, options in (H264, MPEG4):
        try:
            _try_codec(codec, options, width, height, fps)
        except Exception as error:  # No package, no binary, no such codec, a size it refuses.
            failures.append(f"{codec}: {first_line(error)}")
            continue
        reasons = "; ".join(failures)
        note = f"H.264 cannot be written here ({reasons}): MPEG-4 instead." if reasons else None
        return Encoder(".mp4", codec, options, note)
    note = (f"No video encoder works here ({'; '.join(failures)}): animated PNGs instead; "
            "`pip install imageio-ffmpeg` brings one.")
    return Encoder(".png", None, [], note)


def write_video(path, frames, fps, encoder):
    """Write an iterable of frames to `path`, whole or not at all.

    Raises UserError when it cannot be written.
    """
    with atomic_file(path) as temporary:
        if encoder.codec is None:
            _write_animation(temporary, "PNG", [Image.fromarray(f) for f in frames], 1000 / fps)
        else:
            _encode(temporary, frames, fps, encoder.codec, encoder.options)


def write_preview(path, frames, count, fps):
    """Write a small GIF of an iterable of `count` frames, as long as their video (within limits).

    Only the few frames that it shows are kept in memory.
    """
    chosen = set(np.linspace(0, count - 1, min(count, PREVIEW_FRAMES)).round().astype(int).tolist())
    images = [_small(frame) for i, frame in enumerate(frames) if i in chosen]
    # One palette for all, drawn from some of them: colours do not flicker, and still parts of the
    # picture cost nothing.
    some = images[:: max(1, len(images) // 6)]
    strip = Image.new("RGB", (images[0].width, images[0].height * len(some)))
    for i, image in enumerate(some):
        strip.paste(image, (0, i * image.height))
    palette = strip.quantize(255, method=Image.Quantize.MEDIANCUT)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    with atomic_file(path) as temporary:
        # Browsers slow down what is shorter than 20 ms.
        duration = max(20, 1000 * count / (fps * len(images)))
        _write_animation(temporary, "GIF", images, duration)


def _small(frame):
    image = Image.fromarray(frame)
    if image.width <= PREVIEW_WIDTH:
        return image
    size = PREVIEW_WIDTH, max(1, round(image.height * PREVIEW_WIDTH / image.width))
    return image.resize(size, Image.Resampling.BOX)


def _write_animation(path, kind, images, milliseconds):
    images[0].save(path, format=kind, save_all=True, append_images=images[1:], loop=0,
                   duration=max(1, round(milliseconds)))


def _try_codec(codec, options, width, height, fps):
    grey = np.full((height, width, 3), 128, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        _encode(Path(folder) / "trial", [grey, grey], fps, codec, options)


def _encode(path, frames, fps, codec, options):
    import imageio_ffmpeg

    writer = None
    try:
        for frame in frames:
            # Chroma of half the resolution wants even sides.
            even = np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), "edge")
            if writer is None:
                writer = imageio_ffmpeg.write_frames(
                    str(path), (even.shape[1], even.shape[0]), fps=fps, codec=codec, quality=None,
                    pix_fmt_out="yuv420p", macro_block_size=1, ffmpeg_log_level="quiet",
                    output_params=["-f", "mp4", *options],
                )
                writer.send(None)
            writer.send(np.ascontiguousarray(even))
    finally:
        if writer is not None:
            writer.close()
    if not path.exists() or path.stat().st_size == 0:
        raise OSError(f"ffmpeg wrote nothing with {codec}")
