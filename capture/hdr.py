"""Frames of high-dynamic-range films (HLG and PQ) as ordinary images.

Phones film so by default. Read as if they were ordinary, such films are flat and pale.
"""

import logging
import re
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np

from runtime.errors import UserError, first_line

# Names of the transfer functions of HLG (ITU-R BT.2100, from ARIB STD-B67) and of PQ (SMPTE 2084).
HDR_TRANSFERS = re.compile(r"\b(arib-std-b67|smpte2084)\b")

# White has a luminance in nits between that of older conversions and that of ITU-R BT.2408. In
# between, the first percentage of the film's values is darker; the second tells the brightest.
WHITE_LIMITS, WHITE_PERCENT, PEAK_PERCENT = (100.0, 203.0), 99.0, 99.9

# The width of the copies of frames from which both are found.
SAMPLE_WIDTH = 64

# Light in nits, divided by `white`, with the primaries of ordinary images.
LINEAR = "zscale=transfer=linear:npl={white},format=gbrpf32le,zscale=primaries=bt709"
# From half of white to the brightest light, `peak` in units of white, light is compressed smoothly.
TO_SDR = ("tonemap=tonemap=mobius:param=0.5:desat=0:peak={peak},"
          "zscale=transfer=bt709:matrix=bt709:range=full")


class Exposure(NamedTuple):
    """White in nits, and the brightest light in units of it, at least 1."""

    white: float
    peak: float


def is_hdr(video: Path) -> bool:
    """Whether the first video stream of a file is HLG or PQ."""
    words = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(video)]
    result = subprocess.run(words, capture_output=True, text=True, errors="replace")
    streams = [line for line in result.stderr.splitlines() if " Video: " in line]
    return bool(streams and HDR_TRANSFERS.search(streams[0]))


def tone_mapped_frames(video: Path) -> Iterator[np.ndarray]:
    """The frames of an HLG or PQ film in order, uint8 BGR `[h, w, 3]`, upright.

    Raises UserError if the installed ffmpeg cannot convert them.
    """
    chain = ",".join([LINEAR, TO_SDR]).format(**find_exposure(video)._asdict())
    yield from _decode(video, chain, "bgr24", np.uint8)


@lru_cache(maxsize=1)
def find_exposure(video: Path) -> Exposure:
    """The `Exposure` of all frames; the last film is kept, which is decoded twice."""
    chain = f"scale={SAMPLE_WIDTH}:-2,{LINEAR.format(white=1)}"
    frames = _decode(video, chain, "gbrpf32le", np.float32)
    nits = np.concatenate([frame.ravel() for frame in frames] or [np.zeros(1, np.float32)])
    bright, brightest = np.percentile(nits, [WHITE_PERCENT, PEAK_PERCENT])
    white = float(np.clip(bright, *WHITE_LIMITS))
    return Exposure(white, max(1.0, float(brightest) / white))


def _decode(video, chain, pixel_format, dtype):
    """The frames `[h, w, 3]` of a video after a chain of ffmpeg's filters, each once."""
    # It warns of every size but the stored one.
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    reader = imageio_ffmpeg.read_frames(
        str(video), pix_fmt=pixel_format, bits_per_pixel=24 * np.dtype(dtype).itemsize,
        output_params=["-vf", chain, "-fps_mode", "passthrough"])
    try:
        width, height = next(reader)["size"]
        for frame in reader:
            yield np.frombuffer(frame, dtype).reshape(height, width, 3)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{video} is a film of high dynamic range, which cannot be converted "
                        f"({first_line(error)}); record it again with HDR off, or give its frames "
                        "as a folder of images.") from None
    finally:
        reader.close()
