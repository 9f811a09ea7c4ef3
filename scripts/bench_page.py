"""Pages of trained runs against the model: a Markdown table, and images side by side.

    python scripts/bench_page.py log/demo log/blender_lego_zipnerf log/llff_flower_zipnerf

Writes page.html into each run folder and draws test views by a headless Chromium without a GPU
(packages `chromium` and `chromium-driver`, and selenium). Beside each page, page_views.png shows
for each view: the page, the exact rendering, ten times their difference.

Columns: megabytes of the page; the PSNR between the page and the exact rendering of evaluate.py,
mean over the views; error of table entries in 8 bits, relative to their root mean square; seconds
from opening the file to its first image, and of a whole image.
"""

import base64
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from checkpoint import load_checkpoint  # noqa: E402
from exporters.page import make_page  # noqa: E402
from image_utils import contact_sheet, psnr, quantize, write_image  # noqa: E402
from ray_utils import image_rays  # noqa: E402
from rendering import render_image  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.files import write_atomically  # noqa: E402
from runtime.flags import integer  # noqa: E402
from scripts.benchmark import environment_line, make_parser, table_head, table_row  # noqa: E402
from scripts.browser import find_browser, open_browser  # noqa: E402

COLUMNS = ["run", "MB", "PSNR dB", "entries off", "first image s", "image s"]

# Size of the window in pixels, and the longest wait for a page in seconds.
WINDOW, PATIENCE = (480, 360), 300


def main(argv=None):
    args = parse(argv)
    if find_browser() is None:
        raise UserError("no Chromium with its driver was found; install chromium and "
                        "chromium-driver.")
    print(f"{environment_line()}; {args.views} test views, longest side {args.side} pixels\n\n"
          f"{table_head(COLUMNS)}", flush=True)
    for folder in args.runs:
        print(table_row([folder.name, *row(folder, args.views, args.side)]), flush=True)


def parse(argv):
    """The parsed command line."""
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--views", type=integer(1), default=3, help="test views (default: 3)")
    parser.add_argument("--side", type=integer(8), default=200,
                        help="longest side of the images (default: 200)")
    return parser.parse_args(argv)


def row(folder, num_views, side):
    """The cells of a run's row, after the first."""
    run = load_checkpoint(folder, "cpu")
    page = make_page(run.model, run.scene["train"], folder.name)
    path = folder / "page.html"
    write_atomically(path, lambda file: file.write(page.text.encode()))
    browser = open_browser(*WINDOW)
    try:
        first = seconds_to_first_image(browser, path)
        views, scores, seconds = [], [], []
        for index in np.linspace(0, len(run.scene["test"].cameras) - 1, num_views).round():
            cameras = pinhole_view(run.scene["test"].cameras, int(index), side)
            begin = time.perf_counter()
            drawn = drawn_view(browser, cameras)
            seconds.append(time.perf_counter() - begin)
            exact = quantize(render_image(run.model, image_rays(cameras, 0), run.config.chunk).rgb)
            scores.append(psnr(drawn, exact))
            views.append([drawn, exact, (10 * np.abs(drawn - exact)).clip(0, 1)])
    finally:
        browser.quit()
    write_image(folder / "page_views.png", contact_sheet(views))
    return [f"{len(page.text) / 1e6:.1f}", f"{statistics.mean(scores):.1f}",
            f"{100 * page.table_error:.1f} %", f"{first:.1f}", f"{statistics.median(seconds):.1f}"]


def pinhole_view(cameras, index, side):
    """One camera as a pinhole, whose image has this longest side."""
    width, height = cameras.sizes[index].tolist()
    scale = side / max(width, height)
    small = round(scale * width), round(scale * height)
    focal = small[0] / width / float(cameras.pixtocams[index, 0, 0])
    pixtocam = torch.tensor([[1, 0, -small[0] / 2], [0, -1, small[1] / 2], [0, 0, -focal]]) / focal
    return replace(cameras[index : index + 1], pixtocams=pixtocam[None], distortion=None,
                   sizes=torch.tensor([small]), fisheye=None)


def seconds_to_first_image(browser, path):
    """Seconds from opening a page to its first image. Raises UserError if there is none."""
    begin = time.perf_counter()
    browser.set_script_timeout(PATIENCE)
    browser.get(path.resolve().as_uri())
    while not browser.execute_script("return !!window.page && page.scale > 0"):
        if time.perf_counter() - begin > PATIENCE:
            notice = browser.execute_script("return document.getElementById('notice').textContent")
            raise UserError(f"{path} showed no image within {PATIENCE} s; it says: {notice}")
        time.sleep(0.05)
    return time.perf_counter() - begin


def drawn_view(browser, cameras):
    """The page's image `[h, w, 3]` from a camera, float in [0, 1]."""
    (width, height), = cameras.sizes.tolist()
    right, above, back, position = cameras.camtoworlds[0].T.tolist()
    camera = {"position": position, "rotation": [*right, *above, *back],
              "focal": 1 / float(cameras.pixtocams[0, 0, 0]) / width}
    content = browser.execute_script("return page.render(...arguments)", camera, width, height)
    pixels = np.frombuffer(base64.b64decode(content), np.uint8).reshape(height, width, 4)
    return pixels[..., :3] / 255


if __name__ == "__main__":
    run_script(main)
