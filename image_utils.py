"""Image files; PSNR, SSIM and LPIPS; colour maps of distances and normals.

Images are `[h, w, 3]` or `[h, w, 4]` (straight alpha), float in [0, 1] or uint8, colour in sRGB.
Functions take NumPy arrays and tensors alike.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cv2
import imageio.v3 as iio
import numpy as np
import PIL.Image
import torch
from torch import Tensor

from runtime.errors import UserError, first_line
from runtime.files import write_atomically
from runtime.reading import check_file, is_heif

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic",
                  ".heif"}

# Masks of instant-ngp, whose pixels are ignored where they are white; they lie beside the images.
DYNAMIC_MASK = "dynamic_mask_"

# Pillow's names of the colours that are read.
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I;16B", "I;16L"}

# Formats that blur the edges of masks: up to this value, pixels of theirs count as black.
LOSSY, LOSSY_BLACK = {"JPEG", "MPO", "WEBP", "HEIF", "AVIF"}, 127

# The EXIF tag of the camera's orientation; 1 is upright. Pillow does not apply it to these formats.
ORIENTATION_TAG = 0x0112
NOT_TURNED = {"JPEG", "MPO", "PNG", "WEBP", "AVIF"}

# TIFF's tags: bits per channel, what 0 means, the order of the channels, what a fourth one is.
BITS_TAG, PHOTOMETRIC_TAG, PLANES_TAG, EXTRA_TAG = 258, 262, 284, 338

# The most pixels of an image; above `MANY_PIXELS`, also the most for each byte of its file.
MAX_PIXELS, MANY_PIXELS, PIXELS_PER_BYTE = 1 << 28, 1 << 26, 100

# Fits in `correct_colours`; closer to 0 or 1 than this, 8-bit values are saturated; pixels whose
# features are in memory at once.
CORRECTION_ROUNDS = 5
SATURATION_MARGIN = 0.5 / 255
CORRECTION_BLOCK = 1 << 14

Image = np.ndarray | Tensor
Result = TypeVar("Result")


# Files.


def list_images(folder: str | Path) -> list[Path]:
    """The image files of a folder and its subfolders, sorted by name.

    Hidden files and instant-ngp's masks beside the images are skipped.
    """
    files = (p for p in Path(folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES
             and not p.name.startswith(DYNAMIC_MASK))
    hidden = re.compile(r"(^|/)\.")
    return sorted(p for p in files if not hidden.search(p.relative_to(folder).as_posix()))


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file in pixels, from its header.

    Raises UserError if the file is missing, not an image, or of a kind that `read_image` refuses,
    and as `check_size`.
    """
    return _opened(path, lambda image: _of_known_mode(path, image).size)


def check_size(path: str | Path, width: int, height: int) -> None:
    """Raise UserError for an image with more pixels than a camera takes or its file can hold."""
    count, num_bytes = width * height, check_file(path)
    if not 0 < count <= MAX_PIXELS:
        raise UserError(f"{path} has {width} x {height} pixels; 1 to {MAX_PIXELS:,} are expected, "
                        "so replace it, or make it smaller.")
    if count > MANY_PIXELS and count > PIXELS_PER_BYTE * num_bytes:
        raise UserError(f"{path} has {num_bytes:,} bytes for {width} x {height} pixels, which is "
                        "no photograph; replace it.")


def has_alpha(path: str | Path) -> bool:
    """Whether an image file has transparency, from its header."""
    return _opened(path, lambda image: _of_known_mode(path, image).has_transparency_data)


def is_turned(path: str | Path) -> bool:
    """Whether EXIF says that stored pixels are to be rotated or mirrored, which nobody has done."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES and _opened(path, lambda image: (
        image.format in NOT_TURNED and image.getexif().get(ORIENTATION_TAG, 1) > 1))


def verify(path: str | Path) -> None:
    """Raise UserError for an image file that is damaged, as far as its checksums tell."""
    _opened(path, lambda image: image.verify())


def register_heif(path: str | Path) -> None:
    """Let Pillow read HEIC files such as `path`. Raises UserError without the package for it."""
    try:
        import pillow_heif
    except ImportError:
        raise UserError(f"{path} is a HEIC image, which needs the package pillow-heif; install it "
                        "with `pip install pillow-heif`, or convert the images to JPEG.") from None
    pillow_heif.register_heif_opener()


def read_image(path: str | Path, num_channels: int) -> np.ndarray:
    """An image file as uint8 `[h, w, num_channels]`: RGB, or RGBA with straight alpha;
    1 channel is that of grey.

    Grey and palettes become RGB; images without alpha are opaque; with 3 channels alpha is
    dropped. 16 bits per channel are scaled to 8, and of several frames the first is read. Raises
    UserError as `image_size` does, and if the file is damaged.
    """
    image = _opened(path, lambda image: _values(path, image))
    if image.dtype == np.uint16:
        image = np.rint(image / 257).astype(np.uint8)
    if image.shape[-1] >= num_channels:
        return image[..., :num_channels]
    opaque = np.full((*image.shape[:2], 1), 255, dtype=np.uint8)
    return np.concatenate([image, opaque], axis=-1)


def _of_known_mode(path, image):
    """An open Pillow image. Raises UserError for colours that are not read."""
    if image.mode not in MODES:
        raise UserError(f"{path} holds {image.mode} colours; convert it to 8 or 16 bits of "
                        "grey, RGB or RGBA.")
    return image


def _values(path, image):
    """The pixels of an open Pillow image as uint8 or uint16 `[h, w, 3]`, or `[h, w, 4]` if it has
    transparency."""
    _of_known_mode(path, image)
    if _is_deep(path, image):
        image.load()  # Its errors explain what is wrong with the file; OpenCV's do not.
        return _read_16_bits(path, image)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _is_deep(path, image):
    """Whether an open Pillow image has 16 bits per channel, of which Pillow keeps the upper 8."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(BITS_TAG, (8,))) == 16
    if image.format != "PNG":
        return False
    with open(path, "rb") as file:
        return file.read(25)[24:] == b"\x10"


def _read_16_bits(path, image):
    """The pixels of an open PNG or TIFF file of 16 bits as uint16 `[h, w, 3 or 4]`."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    # OpenCV ignores what these tags say of 16 bits.
    is_usual = tags.get(PLANES_TAG, 1) == 1 and tags.get(PHOTOMETRIC_TAG, 1) != 0
    if values is None or values.dtype != np.uint16 or not is_usual:
        raise UserError(f"{path} cannot be read; convert it to 8 bits per channel.")
    values = np.atleast_3d(values)
    order = {1: [0, 0, 0], 2: [0, 0, 0, 1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[-1]]
    values = values[..., order]
    if tags.get(EXTRA_TAG, (2,))[0] == 1:  # Colours were multiplied by alpha.
        straight = values[..., :3] * (65535 / np.maximum(values[..., 3:], 1))
        values[..., :3] = np.clip(np.rint(straight), 0, 65535)
    return values


def read_mask(path: str | Path, width: int, height: int) -> np.ndarray:
    """A mask file as uint8 `[height, width]`: 0 where it is black or transparent, else 1.

    instant-ngp's `dynamic_mask_*` is the opposite: 0 where it is not black. If the file is larger,
    a pixel is 1 only if all of the file's pixels inside it are. Raises UserError, apart from
    damaged files, for a mask of another shape than width x height.
    """
    image = _opened(path, lambda image: _values(path, image)
                    > (LOSSY_BLACK if image.format in LOSSY else 0))
    ratio = image.shape[1] / width
    if abs(image.shape[0] - ratio * height) > max(1 + ratio, 0.01 * ratio * height):
        raise UserError(f"the mask {path} is {image.shape[1]}x{image.shape[0]}, which has another "
                        f"shape than its image of {width}x{height}; replace it.")
    kept = image[..., :3].any(axis=-1) & image[..., 3:].all(axis=-1)
    kept = ~kept if Path(path).name.startswith(DYNAMIC_MASK) else kept
    small = cv2.resize(kept.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return (small > 0.999).astype(np.uint8)


def _opened(path: str | Path, read: Callable[[Any], Result]) -> Result:
    """`read(image)` of an open Pillow image; its errors become a UserError about the file."""
    check_file(path, "but the scene's files name it, so restore it")
    if is_heif(path):
        register_heif(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of sizes that `check_size` allows.
            with PIL.Image.open(path) as image:
                check_size(path, *image.size)
                return read(image)
    except UserError:
        raise
    except Exception as error:  # Pillow raises many types for broken files.
        raise UserError(f"{path} cannot be read as an image ({first_line(error)}); replace it."
                        ) from None


def resize_area(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """A uint8 image downsampled by exact area averaging, with colour weighted by alpha.

    Without the weights, the meaningless colour of transparent pixels would bleed into others.
    """
    if image.shape[:2] == (height, width):
        return image
    values, has_alpha_channel = image.astype(np.float32), image.shape[-1] == 4
    alpha: Any = values[..., 3:] / 255 if has_alpha_channel else np.ones_like(values[..., :1])
    small = cv2.resize(values[..., :3] * alpha, (width, height), interpolation=cv2.INTER_AREA)
    if has_alpha_channel:
        alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA)[..., None]
        small = np.where(alpha > 0, small / np.maximum(alpha, 1e-6), 0)
        small = np.concatenate([small, 255 * alpha], axis=-1)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def to_uint8(image: Image) -> np.ndarray:
    """Float in [0, 1] to uint8 by rounding; values outside are clipped."""
    return np.rint(np.clip(_array(image), 0, 1) * 255).astype(np.uint8)


def quantize(image: Image) -> np.ndarray:
    """A float image rounded to the 256 levels of 8 bits, float32."""
    return to_uint8(image).astype(np.float32) / 255


def write_image(path: str | Path, image: Image) -> None:
    """Atomically write a PNG; float images are rounded to 8 bits. Raises UserError on failure."""
    png = png_bytes(image)
    write_atomically(path, lambda file: file.write(png))


def png_bytes(image: Image) -> bytes:
    """The content of a PNG file; float images are rounded to 8 bits."""
    image = _array(image)
    image = image if image.dtype == np.uint8 else to_uint8(image)
    return iio.imwrite("<bytes>", image, plugin="pillow", extension=".png")


# Colour.


def srgb_to_linear(values: Tensor) -> Tensor:
    """sRGB values to linear light, both in [0, 1] (IEC 61966-2-1)."""
    return torch.where(values < 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Tensor) -> Tensor:
    """Linear light to sRGB values, both in [0, 1]."""
    return torch.where(light < 0.0031308, 12.92 * light,
                       1.055 * light.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)


# Metrics.


def mse_to_psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error, for a peak of 1."""
    return -10 * torch.log10(mse)


def psnr(a: Image, b: Image) -> float:
    """PSNR in dB of two images (or sets of pixels) in [0, 1]; infinite if they are equal."""
    mse = np.mean((_array(a).astype(np.float64) - _array(b).astype(np.float64)) ** 2)
    return float("inf") if mse == 0 else float(-10 * np.log10(mse))


def ssim(a: Image, b: Image) -> float:
    """Structural similarity of two images `[h, w, 3]` in [0, 1] (Wang et al. 2004).

    As in TensorFlow and dm-pix: Gaussian window of 11 pixels and sigma 1.5, mean over the pixels
    whose window lies inside the image. For smaller images, where those have no value, window and
    sigma shrink in proportion to the largest odd side that fits.
    """
    from skimage.metrics import structural_similarity

    a, b = _array(a).astype(np.float64), _array(b).astype(np.float64)
    smaller_side = min(a.shape[:2])
    window = min(11, smaller_side - (smaller_side + 1) % 2)
    return float(structural_similarity(
        a, b, data_range=1, channel_axis=-1,
        gaussian_weights=True, win_size=window, sigma=1.5 * window / 11,
        use_sample_covariance=False,
    ))


def correct_colours(image: Image, reference: Image, valid: np.ndarray | None = None) -> np.ndarray:
    """`image` with its colours fitted to those of `reference`, `[h, w, 3]` in [0, 1], float64.

    Each channel becomes the quadratic polynomial of all three that fits the reference best, five
    times in a row (MultiNeRF's released code). A pixel enters the fit of a channel if `valid`
    `[h, w]` keeps it and the channel is not saturated in the image, in its current estimate, or in
    the reference. A channel that no pixel enters is left as it is.
    """
    colours, target = (_array(x).reshape(-1, 3).T.astype(np.float64) for x in (image, reference))
    usable = _is_unsaturated(colours) & _is_unsaturated(target)
    if valid is not None:
        usable &= valid.reshape(-1)
    for _ in range(CORRECTION_ROUNDS):
        colours = _fit_colours(colours, target, usable & _is_unsaturated(colours))
    return colours.T.reshape(_array(image).shape)


def _is_unsaturated(values):
    return (values >= SATURATION_MARGIN) & (values <= 1 - SATURATION_MARGIN)


def _fit_colours(colours, target, kept):
    """One round of `correct_colours`: `colours [3, P]` fitted to `target` where `kept [3, P]`."""
    blocks = [slice(i, i + CORRECTION_BLOCK) for i in range(0, colours.shape[1], CORRECTION_BLOCK)]
    # Normal equations in float64 take a quarter of the time of an SVD of all pixels.
    gram, moments = np.zeros((3, 10, 10)), np.zeros((3, 10))
    for block in blocks:
        features = _quadratic_features(colours[:, block])
        for channel in range(3):
            weighted = features * kept[channel, block]
            gram[channel] += weighted @ features.T
            moments[channel] += weighted @ target[channel, block]
    # The cut-off makes the solution unique for grey or constant images.
    weights = np.stack([np.linalg.lstsq(a, b, rcond=1e-12)[0]
                        for a, b in zip(gram, moments, strict=True)])
    fitted = np.concatenate([weights @ _quadratic_features(colours[:, block]) for block in blocks],
                            axis=1)
    return np.where(kept.any(axis=1, keepdims=True), np.clip(fitted, 0, 1), colours)


def _quadratic_features(colours):
    """Products of pairs of channels, the channels and 1, for colours `[3, P]`: `[10, P]`."""
    red, green, blue = colours
    return np.stack([red * red, red * green, red * blue, green * green, green * blue, blue * blue,
                     red, green, blue, np.ones_like(red)])


# Colour maps.


def visualize_distance(distance: Image, acc: Image, near: float, far: float) -> np.ndarray:
    """Colours `[h, w, 3]` of a distance map `[h, w]`: near is warm, far is cold, empty is white.

    acc: opacity `[h, w]`; near, far: ends of the colour scale, in the units of `distance`. The
    scale is logarithmic, so that a far background does not compress the foreground into one colour.
    """
    distance = np.maximum(_array(distance), 1e-9)
    scale = np.clip(np.log(far / distance) / np.log(far / near), 0, 1)
    colours = cv2.applyColorMap(to_uint8(scale), cv2.COLORMAP_TURBO)[..., ::-1] / 255.0
    acc = np.clip(_array(acc), 0, 1)[..., None]
    return (colours * acc + (1 - acc)).astype(np.float32)


def distance_range(distance: Image, acc: Image) -> tuple[float, float]:
    """Ends (near, far) of a colour scale: 2nd and 98th percentile of the opaque pixels' distances.

    (1, 2) if no pixel is opaque.
    """
    opaque = _array(distance)[_array(acc) > 0.5]
    if opaque.size == 0:
        return 1.0, 2.0
    near, far = np.maximum(np.percentile(opaque, [2, 98]), 1e-6)
    return float(near), float(max(far, 1.01 * near))


# Size of the legend in pixels, before it is scaled to the height of an image.
LEGEND_HEIGHT, LEGEND_WIDTH = 96, 64
LEGEND_BAR, LEGEND_MARGIN = 10, 8


def distance_legend(height: int, near: float, far: float) -> np.ndarray:
    """The colour bar of `visualize_distance` with its numbers, uint8 `[height, width, 3]`.

    Below `LEGEND_HEIGHT` pixels, which the digits need, it is downsampled from that height.
    """
    full = max(height, LEGEND_HEIGHT)
    legend = np.full((full, LEGEND_WIDTH, 3), 255, dtype=np.uint8)
    length = full - 2 * LEGEND_MARGIN
    position = np.clip((np.arange(full) + 0.5 - LEGEND_MARGIN) / length, 0, 1)
    distance = far * (near / far) ** position
    colours = to_uint8(visualize_distance(distance[:, None], np.ones((full, 1)), near, far))
    legend[LEGEND_MARGIN:-LEGEND_MARGIN, :LEGEND_BAR] = colours[LEGEND_MARGIN:-LEGEND_MARGIN]
    for fraction in np.linspace(0, 1, max(2, min(5, full // 40))):
        y = round(LEGEND_MARGIN + fraction * length) + 4
        text = f"{far * (near / far) ** fraction:.3g}"
        cv2.putText(legend, text, (LEGEND_BAR + 4, y), cv2.FONT_HERSHEY_SIMPLEX, 0.38,
                    (30, 30, 30), 1, cv2.LINE_AA)
    return resize_area(legend, max(1, LEGEND_WIDTH * height // full), height)


def visualize_normals(normals: Image, acc: Image) -> np.ndarray:
    """World normals `[h, w, 3]` as colours: [-1, 1] maps to [0, 1]; empty pixels are white."""
    acc = np.clip(_array(acc), 0, 1)[..., None]
    return ((_array(normals) * 0.5 + 0.5) * acc + (1 - acc)).astype(np.float32)


def contact_sheet(rows: Sequence[Sequence[Image]], gap: int = 2) -> np.ndarray:
    """One white sheet with rows of float images `[h, w, 3]`, `gap` pixels apart.

    A row is as high as its highest image, a column as wide as the widest image of all.
    """
    heights = [max(image.shape[0] for image in row) for row in rows]
    width = max(image.shape[1] for row in rows for image in row)
    num_columns = max(len(row) for row in rows)
    sheet = np.ones((sum(heights) + gap * (len(rows) - 1), num_columns * (width + gap) - gap, 3))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, image in enumerate(row):
            left = column * (width + gap)
            sheet[top : top + image.shape[0], left : left + image.shape[1]] = _array(image)
        top += height + gap
    return sheet.astype(np.float32)


def _array(image: Image) -> np.ndarray:
    return image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
