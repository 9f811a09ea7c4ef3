"""Reading, resizing, writing and comparing images; colour maps of distances and normals.

Images are `[h, w, 3]` or `[h, w, 4]` (straight alpha), float in [0, 1] or uint8, colour in sRGB.
"""

import re
from pathlib import Path

import cv2
import imageio.v3 as iio
import numpy as np
import torch

from runtime.errors import UserError, first_line
from runtime.files import write_atomically

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg"}


def list_images(folder):
    """The image files of a folder and of those inside it, sorted by name."""
    files = (p for p in Path(folder).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    hidden = re.compile(r"(^|/)\.")
    return sorted(p for p in files if not hidden.search(p.relative_to(folder).as_posix()))


def image_size(path):
    """Width and height of an image file, from its header alone.

    Raises UserError where there is no such file or it is no image.
    """
    height, width = _guarded(path, lambda: iio.improps(path, plugin="pillow").shape[:2])
    return width, height


def read_image(path, num_channels):
    """An 8-bit image file as uint8 `[h, w, num_channels]`; what it has more of is dropped.

    Raises UserError where the file is missing, broken, not of 8 bits, or has too few channels.
    """
    mode = _guarded(path, lambda: iio.immeta(path, plugin="pillow")["mode"])
    if mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        raise UserError(f"{path} holds {mode} colours; RGB is wanted.")
    image = _guarded(path, lambda: iio.imread(path, plugin="pillow"))
    if image.dtype != np.uint8:
        raise UserError(f"{path} has {image.dtype} pixels; 8 bits per channel are wanted.")
    image = np.atleast_3d(image)
    if image.shape[-1] < num_channels:
        wanted = {3: "RGB", 4: "RGBA (colour with an alpha channel)"}[num_channels]
        raise UserError(f"{path} has {image.shape[-1]} channel(s); {wanted} is wanted.")
    return image[..., :num_channels]


def has_alpha(path):
    """Whether an image file has colour and an alpha channel, from its header alone."""
    return _guarded(path, lambda: iio.immeta(path, plugin="pillow")["mode"]) == "RGBA"


def read_mask(path, width, height):
    """A mask file as uint8 `[height, width]`: 0 where it is black or transparent, else 1.

    A pixel of the wanted size is 1 where all of the file's pixels in it are.
    """
    image = np.atleast_3d(_guarded(path, lambda: iio.imread(path, plugin="pillow"))) != 0
    alpha = image[..., -1] if image.shape[-1] in (2, 4) else True
    colour = image[..., :3] if image.shape[-1] > 2 else image[..., :1]
    kept = (colour.any(axis=-1) & alpha).astype(np.float32)
    small = cv2.resize(kept, (width, height), interpolation=cv2.INTER_AREA)
    return (small > 0.999).astype(np.uint8)


def _guarded(path, read):
    try:
        return read()
    except FileNotFoundError:
        raise UserError(f"{path} is missing, though the scene's files name it.") from None
    except Exception as error:  # Pillow raises many kinds for broken files.
        raise UserError(f"{path} cannot be read as an image ({first_line(error)}); replace it."
                        ) from None


def resize_area(image, width, height):
    """A uint8 image made smaller by an exact area average; colour is weighted by alpha.

    Averaging straight colour would let the meaningless colour of transparent pixels bleed in.
    """
    if image.shape[:2] == (height, width):
        return image
    values = image.astype(np.float32)
    alpha = values[..., 3:] / 255 if image.shape[-1] == 4 else np.ones_like(values[..., :1])
    small = cv2.resize(values[..., :3] * alpha, (width, height), interpolation=cv2.INTER_AREA)
    if image.shape[-1] == 4:
        alpha = cv2.resize(alpha, (width, height), interpolation=cv2.INTER_AREA)[..., None]
        small = np.where(alpha > 0, small / np.maximum(alpha, 1e-6), 0)
        small = np.concatenate([small, 255 * alpha], axis=-1)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def to_uint8(image):
    """Float in [0, 1] to uint8 by rounding; values outside are clipped."""
    return np.rint(np.clip(_array(image), 0, 1) * 255).astype(np.uint8)


def quantize(image):
    """A float image as it reads after a round trip through 8 bits."""
    return to_uint8(image).astype(np.float32) / 255


def write_image(path, image):
    """Write a PNG whole or not at all; float images are rounded to 8 bits."""
    image = _array(image)
    image = image if image.dtype == np.uint8 else to_uint8(image)
    png = iio.imwrite("<bytes>", image, plugin="pillow", extension=".png")
    write_atomically(path, lambda file: file.write(png))


def mse_to_psnr(mse):
    """Peak signal-to-noise ratio in dB of a mean squared error (a tensor) for a peak of 1."""
    return -10 * torch.log10(mse)


def psnr(a, b):
    """PSNR in dB, a float, of two images (arrays or tensors) in [0, 1]; inf if they are equal."""
    mse = np.mean((_array(a).astype(np.float64) - _array(b).astype(np.float64)) ** 2)
    return float("inf") if mse == 0 else float(-10 * np.log10(mse))


def ssim(a, b):
    """Structural similarity, a float, of two images `[h, w, 3]` in [0, 1].

    The TensorFlow and dm-pix form: Gaussian window of 11 pixels and sigma 1.5, mean over the
    pixels whose window lies inside the image. NaN for an image smaller than the window.
    """
    from skimage.metrics import structural_similarity

    a, b = _array(a).astype(np.float64), _array(b).astype(np.float64)
    if min(a.shape[:2]) < 11:
        return float("nan")
    return float(structural_similarity(
        a, b, data_range=1, channel_axis=-1,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    ))


def make_lpips(net):
    """A function of two images `[h, w, 3]` in [0, 1] that gives LPIPS with backbone `net`.

    None for "none". Raises UserError where the package or its weights cannot be had.
    """
    if net == "none":
        return None
    try:
        import lpips

        metric = lpips.LPIPS(net=net, verbose=False)
    except Exception as error:  # Missing package, torchvision that does not fit, no network.
        raise UserError(
            f"LPIPS ({net}) is not available: {first_line(error)}. It wants `pip install lpips` "
            "and, once, a network to fetch its weights; drop --lpips to do without."
        ) from None

    def distance(a, b):
        pair = [torch.as_tensor(_array(x)).float().permute(2, 0, 1)[None] * 2 - 1 for x in (a, b)]
        with torch.no_grad():
            return float(metric(*pair))

    return distance


def visualize_distance(distance, acc, near, far):
    """A distance map `[h, w]` in colour `[h, w, 3]`: near is warm, far is cold, empty is white.

    near, far: the ends of the colour scale, in the units of `distance`. The scale is logarithmic,
    so that a background far behind does not leave one colour for all that is near.
    """
    distance = np.maximum(_array(distance), 1e-9)
    scale = np.clip(np.log(far / distance) / np.log(far / near), 0, 1)
    colours = cv2.applyColorMap(to_uint8(scale), cv2.COLORMAP_TURBO)[..., ::-1] / 255.0
    acc = np.clip(_array(acc), 0, 1)[..., None]
    return (colours * acc + (1 - acc)).astype(np.float32)


def distance_range(distance, acc):
    """A colour scale's ends: the 2nd and 98th percentiles of the distances that meet something."""
    solid = _array(distance)[_array(acc) > 0.5]
    if solid.size == 0:
        return 1.0, 2.0
    near, far = np.maximum(np.percentile(solid, [2, 98]), 1e-6)
    return float(near), float(max(far, 1.01 * near))


def distance_legend(height, near, far):
    """A uint8 bar `[height, w, 3]`: the colours of `visualize_distance`, and what they mean.

    Where `height` has no room for letters it is drawn larger and made smaller.
    """
    drawn = max(height, 96)
    bar, margin, width = 10, 8, 64
    legend = np.full((drawn, width, 3), 255, dtype=np.uint8)
    position = np.clip((np.arange(drawn) + 0.5 - margin) / (drawn - 2 * margin), 0, 1)
    distance = far * (near / far) ** position
    colours = visualize_distance(distance[:, None], np.ones((drawn, 1)), near, far)
    legend[margin:-margin, :bar] = to_uint8(colours)[margin:-margin]
    for share in np.linspace(0, 1, max(2, min(5, drawn // 40))):
        y = margin + share * (drawn - 2 * margin)
        text = f"{far * (near / far) ** share:.3g}"
        cv2.putText(legend, text, (bar + 4, round(y) + 4), cv2.FONT_HERSHEY_SIMPLEX, 0.38,
                    (30, 30, 30), 1, cv2.LINE_AA)
    return resize_area(legend, max(1, width * height // drawn), height)


def visualize_normals(normals, acc):
    """World normals `[h, w, 3]` as colours: -1…1 becomes 0…1; empty pixels are white."""
    acc = np.clip(_array(acc), 0, 1)[..., None]
    return ((_array(normals) * 0.5 + 0.5) * acc + (1 - acc)).astype(np.float32)


def contact_sheet(rows, gap=2):
    """Rows of float images `[h, w, 3]` on one white sheet, each row as high as its highest."""
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


def _array(image):
    return image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
