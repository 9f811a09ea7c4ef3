"""The page: what a browser draws against the march, its input, its size; exact numbers inside."""

import base64
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from exporters.page import join_arrays, page_of_march, quantise
from fields.march import march, pack_field
from image_utils import psnr
from loaders.lenses import make_cameras
from procedural.scene import look_at, pinhole
from ray_utils import image_rays
from scripts.browser import find_browser, open_browser
from tests.fields.test_march import make_field, options_for, random_grid

SIDE = 24
needs_browser = pytest.mark.skipif(find_browser() is None, reason="no Chromium with its driver: "
                                   "the page is not drawn")


def cameras_at(positions, near=0.5, far=6.0, target=(0.1, 0.1, 0.0), **fields):
    poses = [look_at(position, target)[:3] for position in positions]
    return make_cameras(np.stack(poses), [pinhole(SIDE, SIDE, 1.1 * SIDE)] * len(poses),
                        [(SIDE, SIDE)] * len(poses), near=near, far=far, **fields)


def forward_cameras():
    """Three cameras that look along -z, with NDC of their own focal length."""
    poses = np.tile(np.eye(4)[:3], (3, 1, 1))
    poses[:, 0, 3] = (-0.2, 0.0, 0.2)
    return make_cameras(poses, [pinhole(SIDE, SIDE, 1.1 * SIDE)] * 3, [(SIDE, SIDE)] * 3, near=0.0,
                        far=1.0, ndc=(1.1 * SIDE, SIDE, SIDE, 1.0))


ORBIT = [(2.4, 0.3, 0.9), (-1.2, 2.1, 0.8), (0.4, -2.2, 1.3)]
CASES = {
    "bounded": (lambda: make_field(), lambda: cameras_at(ORBIT), {}),
    "contracted": (lambda: make_field(True, density_bias=0.0, features=2, append_scale=False),
                   lambda: cameras_at(ORBIT, near=0.0, far=1e6), {"is_opaque": True}),
    "ndc": (lambda: make_field(features=2, view_depth=4, view_skip=3), forward_cameras,
            {"is_cone": False, "is_opaque": True}),
    "wide entries": (lambda: make_field(features=8, use_viewdirs=False),
                     lambda: cameras_at(ORBIT), {}),
}


def marcher_of(case):
    """A field of random numbers and its march, and the cameras of a case."""
    torch.manual_seed(0)
    make, cameras, changes = CASES[case]
    field = make()
    packed, directions = pack_field(field)
    grid = random_grid(field, 12)
    return SimpleNamespace(packed=packed, directions=directions, grid=grid,
                           options=options_for(grid, **changes)), cameras()


@pytest.fixture(scope="module")
def browser():
    driver = open_browser(320, 240)
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


def open_page(browser, folder, text):
    """Load a page and wait for its first image."""
    path = folder / "page.html"
    path.write_text(text)
    browser.get(path.as_uri())
    deadline = time.monotonic() + 90
    while not browser.execute_script("return !!window.page && page.scale > 0"):
        notice = browser.execute_script("return document.getElementById('notice').textContent")
        assert "Unpacking" in notice, notice
        assert time.monotonic() < deadline, browser.get_log("browser")
        time.sleep(0.1)


def drawn(browser, cameras, index):
    """The page's image `[h, w, 3]` from one camera."""
    right, above, back, position = cameras.camtoworlds[index].T.tolist()
    camera = {"position": position, "rotation": [*right, *above, *back],
              "focal": 1 / float(cameras.pixtocams[index, 0, 0]) / SIDE}
    content = browser.execute_script("return page.render(arguments[0], arguments[1], arguments[1])",
                                     camera, SIDE)
    pixels = np.frombuffer(base64.b64decode(content), np.uint8).reshape(SIDE, SIDE, 4)
    return torch.from_numpy(pixels[..., :3] / 255).float()


@needs_browser
@pytest.mark.parametrize("case", CASES)
def test_a_browser_draws_what_the_march_draws(case, browser, tmp_path):
    marcher, cameras = marcher_of(case)
    open_page(browser, tmp_path, page_of_march(marcher, cameras, case).text)
    for index in (0, 1):
        rays = image_rays(cameras, index).flatten()
        expected = march(marcher.packed, marcher.directions, marcher.grid, marcher.options, rays,
                         rays.viewdirs).rgb.reshape(SIDE, SIDE, 3)
        assert expected.std() > 0.05
        assert psnr(drawn(browser, cameras, index), expected) > 40


def canvas_pixels(browser):
    """The bytes of the canvas once its image is complete."""
    deadline = time.monotonic() + 90
    while not browser.execute_script("return page.scale === 1"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return browser.execute_script("return document.getElementById('view').toDataURL()")


@needs_browser
def test_mouse_touch_and_keys_move_the_camera_and_nothing_is_requested(browser, tmp_path):
    marcher, cameras = marcher_of("bounded")
    browser.get_log("performance")
    open_page(browser, tmp_path, page_of_march(marcher, cameras, "moves").text)
    # In a wide and in a high window the square first view touches both edges of the shorter side.
    fits = browser.execute_script("return [[200, 100], [100, 200]].map(size => "
                                  "page.walker.camera(...size).focal * size[0])")
    assert fits == pytest.approx([110, 110], rel=1e-3)
    browser.execute_script("page.quality = 2")
    first = canvas_pixels(browser)

    def send(method, **values):
        browser.execute_cdp_cmd(f"Input.{method}", values)

    for kind, x in (("mousePressed", 120), ("mouseMoved", 170), ("mouseReleased", 170)):
        send("dispatchMouseEvent", type=kind, x=x, y=100, button="left", buttons=1, clickCount=1)
    by_mouse = canvas_pixels(browser)
    for kind, points in (("touchStart", [(100, 90)]), ("touchMove", [(60, 120)]), ("touchEnd", [])):
        send("dispatchTouchEvent", type=kind,
             touchPoints=[{"x": x, "y": y, "id": 1} for x, y in points])
    by_touch = canvas_pixels(browser)
    browser.execute_script("page.press('3')")
    normals = canvas_pixels(browser)
    assert len({first, by_mouse, by_touch, normals}) == 4
    browser.execute_script("page.press('1'); page.press('r')")
    assert canvas_pixels(browser) == first
    requests = [line for entry in browser.get_log("performance")
                for line in re.findall(r'"Network.requestWillBeSent".*?"url":"(.*?)"',
                                       entry["message"])]
    assert all(url.startswith(("file://", "data:")) for url in requests)
    assert sum(url.startswith("file://") for url in requests) <= 1
    assert browser.get_log("browser") == []


def test_a_page_names_no_address_and_holds_its_arrays():
    marcher, cameras = marcher_of("bounded")
    page = page_of_march(marcher, cameras, "a <b> & c")
    assert not re.search(r"https?://|src=|@import|url\(", page.text)
    assert "<title>a &lt;b&gt; &amp; c</title>" in page.text and "//" + "DATA" not in page.text
    assert 0 < page.table_error < 0.01


def test_entries_of_eight_bits_are_within_half_a_step():
    generator = np.random.default_rng(0)
    table = generator.normal(size=(700, 3)).astype(np.float32)
    table[500:] *= 0.01
    quantised = quantise(table, np.array([500, 200]))
    assert quantised.values.dtype == np.int8 and quantised.values.shape == (700, 4)
    assert (quantised.values[:, 3] == 0).all()
    scales = np.repeat(quantised.scales, [500, 200])[:, None] / 127
    restored = quantised.values[:, :3] * scales
    inside = np.abs(table) <= 127 * scales
    assert inside.mean() > 0.99
    assert np.abs(restored - table)[inside].max() <= 0.5 * scales.max() * (1 + 1e-6)
    error = np.sqrt(((restored - table) ** 2).sum() / (table.astype(float) ** 2).sum())
    assert quantised.error == pytest.approx(error, rel=1e-4) and error < 0.02


def test_arrays_lie_where_the_layout_says():
    arrays = {"a": np.arange(5, dtype=np.uint8), "b": np.arange(6, dtype=np.float32)}
    layout, data = join_arrays(arrays)
    for name, array in arrays.items():
        place = layout[name]
        assert place["offset"] % 4 == 0
        found = data[place["offset"] : place["offset"] + place["bytes"]]
        assert np.array_equal(np.frombuffer(found, array.dtype), array)
