"""Pictures that become sharp: sizes, tiles, and the final picture, which is that of a video."""

import math

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import visualize
from cameras.keyframes import KeyFrames, write_path
from config import get_config
from exporters.video import VideoCameras, render_frame
from tests.scenes import look_at, write_llff
from viewer.loaded_run import Shot, Tile, load_run
from viewer.refining import Speed, refine, stages, tiles

POSE = look_at([3.0, 1.5, 1.0])[:3]


def shot(kind="rgb", width=60, height=45, pose=POSE, **options):
    return Shot(tuple(pose.ravel().tolist()), 0.6, width, height, kind=kind, **options)


def final_picture(loaded, wanted, speed=None):
    *_, picture = refine(loaded, wanted, speed or Speed())
    assert picture.is_final
    return picture


@pytest.mark.parametrize("size,num_rays", [((640, 480), 19_200), ((100, 30), 64), ((1, 1), 9)])
def test_tiles_cover_each_pixel_once_from_the_centre(size, num_rays):
    covered = np.zeros(size[::-1], dtype=int)
    distances = []
    for tile in tiles(*size, num_rays):
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
        assert (tile.right - tile.left) * (tile.bottom - tile.top) <= max(num_rays, 256) * 1.1
        distances.append(math.hypot(tile.left + tile.right - size[0],
                                    tile.top + tile.bottom - size[1]))
    assert (covered == 1).all() and distances == sorted(distances)


def test_a_picture_grows_from_what_is_fast_to_its_final_size():
    assert stages(640, 480, 19_200) == [(160, 120), (480, 360), (640, 480)][::2]
    assert stages(640, 480, 1 << 30) == [(640, 480)]
    slow = stages(640, 480, 100)
    assert slow[0][0] * slow[0][1] == pytest.approx(1200, rel=0.05) and slow[-1] == (640, 480)
    assert all(2 < b[0] / a[0] < 3.2 or b == (640, 480) for a, b in zip(slow, slow[1:],
                                                                         strict=False))


def test_the_speed_is_that_of_the_last_renderings():
    speed = Speed()
    for _ in range(50):
        speed.add(1000, 0.1)
    assert speed.rays_within(0.5) == pytest.approx(5000, rel=0.01)
    for _ in range(50):
        speed.add(1000, 0.01)
    assert speed.rays_within(0.5) > 20_000


def test_pictures_become_larger_and_end_with_the_final_one(loaded):
    pictures = [picture for picture in refine(loaded, shot(width=120, height=90), Speed())
                if picture is not None]
    sides = [picture.image.shape[1] for picture in pictures]
    assert sides == sorted(sides) and sides[0] < 60 and sides[-1] == 120
    assert [picture.is_final for picture in pictures] == [False] * (len(pictures) - 1) + [True]
    small = pictures[0].image.mean(axis=(0, 1))
    assert np.abs(small - pictures[-1].image.mean(axis=(0, 1))).max() < 4


def test_the_final_picture_is_what_visualize_writes(loaded, trained, tmp_path):
    path = tmp_path / "path.json"
    poses = np.stack([POSE, look_at([1.0, 3.0, 1.0])[:3]])
    write_path(path, KeyFrames(camtoworlds=poses, fovs=np.array([0.6, 0.6])), torch.eye(4))
    # So many frames that visualize.py takes the fast path, too, of which only one is compared.
    visualize.main(["--run", str(trained), "--device", "cpu", "--path", str(path), "--frames", "40",
                    "--width", "100", "--height", "70", "--visualize_normals"])
    for kind in ("rgb", "normals"):
        written, = trained.glob(f"video_keyframes_*100x70/frames/{kind}_00000.png")
        picture = final_picture(loaded, shot(kind, 100, 70))
        assert np.array_equal(picture.image, iio.imread(written))


def test_distances_have_the_colours_and_depths_of_the_whole_frame(loaded):
    wanted = shot("depth")
    video = loaded.video(wanted)
    frame = render_frame(loaded.renderer, video, 0)
    picture = final_picture(loaded, wanted)
    opaque = frame.acc.numpy() > 0.5
    # Depth is along the optical axis: the distance times the cosine of the pixel's angle.
    x, y = np.meshgrid(np.arange(60) + 0.5 - 30, np.arange(45) + 0.5 - 22.5)
    focal = 22.5 / math.tan(0.3)
    cosine = focal / np.sqrt(x**2 + y**2 + focal**2)
    depth = frame.distance.numpy() * cosine
    assert np.allclose(picture.depth[opaque], depth[opaque], rtol=1e-4)
    assert (picture.depth[~opaque] > 100).all()
    opacity = final_picture(loaded, shot("opacity")).image[..., 0]
    assert np.abs(opacity / 255 - frame.acc.numpy().clip(0, 1)).max() < 0.01
    assert (final_picture(loaded, shot("empty")).image == 255).all()


def test_what_ndc_cannot_represent_shows_the_background(tmp_path):
    import train

    write_llff(tmp_path / "s", num_views=5)
    train.main(["--preset", "debug", "--device", "cpu", "--dataset_name", "llff", "--scene",
                str(tmp_path / "s"), "--log_dir", str(tmp_path), "--exp_name", "run",
                "--max_steps", "2", "--eval_every", "0", "--no-final_eval"])
    loaded = load_run(get_config(["--run", str(tmp_path / "run"), "--device", "cpu"], "view"))
    ahead, back = np.eye(4)[:3], np.diag([-1.0, 1, -1, 1])[:3]
    aside = np.array([[0.0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0]])
    behind = final_picture(loaded, shot(pose=back))
    background = round(255 * loaded.run.model.bg_rgb)
    assert (behind.image == background).all() and (behind.depth > 100).all()
    inside = ahead.copy()
    inside[2, 3] = -3.0
    video = loaded.video(shot(pose=inside))
    assert float(video.cameras.near[0]) == pytest.approx(1 - 1 / 3)
    for pose in (ahead, aside, inside):
        frame = loaded.render(shot(pose=pose), loaded.video(shot(pose=pose)), Tile(0, 0, 60, 45))
        assert frame.rgb.isfinite().all() and frame.acc.isfinite().all()


def test_a_frame_with_lights_takes_the_dragged_one(tmp_path):
    from tests.scenes import write_nerv

    write_nerv(tmp_path / "s")
    import train

    train.main(["--preset", "debug", "--device", "cpu", "--model", "nerv", "--dataset_name",
                "nerv", "--scene", str(tmp_path / "s"), "--log_dir", str(tmp_path), "--exp_name",
                "run", "--max_steps", "6", "--eval_every", "0", "--no-final_eval"])
    loaded = load_run(get_config(["--run", str(tmp_path / "run"), "--device", "cpu"], "view"))
    assert isinstance(loaded.video(shot()), VideoCameras)
    assert loaded.video(shot()).lights.places.shape[:2] == loaded.scene.lights.places[:1].shape[:2]
    dragged = loaded.video(shot(light=(0.0, 3.0, 1.0)))
    assert dragged.lights.places.tolist() == [[[0.0, 3.0, 1.0]]]
    albedo = final_picture(loaded, shot("albedo", 12, 9, light=(0.0, 3.0, 1.0)))
    assert albedo.image.shape == (9, 12, 3)
