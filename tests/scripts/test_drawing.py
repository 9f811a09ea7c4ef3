"""The scripts that draw the documents' figures, and the one that makes a small Blender scene."""

import json

import numpy as np
import pytest
from PIL import Image

from scripts import draw_concept, draw_hero, plot_curves, reduce_blender_data


def test_moments_of_a_frustum_are_those_of_its_points():
    rng = np.random.default_rng(0)
    t0, t1, radius = 2.0, 3.5, 0.3
    t = np.cbrt(rng.uniform(t0**3, t1**3, 400_000))
    across = radius * t * np.sqrt(rng.uniform(size=t.size)) * np.cos(
        rng.uniform(0, 2 * np.pi, t.size))
    found = draw_concept.frustum_moments(t0, t1, radius)
    np.testing.assert_allclose(found, [t.mean(), t.var(), across.var()], rtol=0.01)


@pytest.mark.parametrize("phase", [0.4, 1.9, 4.0])
def test_a_damped_square_wave_is_the_mean_of_its_points(phase):
    points = np.random.default_rng(1).normal(phase, 0.8, 200_000)
    expected = np.sign(np.sin(points)).mean()
    assert draw_concept.square_wave(phase, 0.64) == pytest.approx(expected, abs=0.01)


def test_a_far_checkerboard_is_grey_only_where_footprints_are_integrated():
    points, means = draw_concept.checkerboard(False), draw_concept.checkerboard(True)
    far = slice(5, 8)
    assert np.std(points[far]) > 0.45 and np.abs(means[far] - 0.5).mean() < 0.05
    assert np.isnan(points[0]).all() and np.isnan(means[0]).all()
    # Nearby, checks are larger than pixels, and both show the same.
    assert np.mean(np.abs(points[-6:] - means[-6:]) < 0.05) > 0.6


def test_the_concept_is_written_small_and_800_pixels_wide(tmp_path):
    draw_concept.main(["--out", str(tmp_path / "concept.png")])
    assert Image.open(tmp_path / "concept.png").size == (800, draw_concept.HEIGHT)
    assert (tmp_path / "concept.png").stat().st_size < 100_000


def write_metrics(folder, lines):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run_of(folder, offset):
    return write_metrics(folder, [
        {"step": 100 * i, "seconds": 2.0 * i, "psnr/level_0": 9.0,
         "psnr/level_1": offset + 3 * np.log(i)} for i in range(1, 40)])


def test_a_curve_is_of_the_last_level_and_leaves_out_what_is_not_finite(tmp_path):
    run = write_metrics(tmp_path / "run", [
        {"step": 1, "seconds": 0.5, "psnr/level_0": 10.0, "psnr/level_1": 11.0},
        {"step": 2, "seconds": 1.0, "psnr/level_0": 12.0, "psnr/level_1": float("nan")},
        {"step": 2, "seconds": 1.0, "validation/psnr": 12.5},
        {"step": 3, "seconds": 1.5, "psnr/level_0": 13.0, "psnr/level_1": 14.0}])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "sec')  # Half a line, as a killed run leaves it.
    assert plot_curves.read_curve(run, "a", "steps") == ("a", [1, 3], [11.0, 14.0])
    assert plot_curves.read_curve(run, "a", "seconds", "validation/psnr").y == [12.5]
    (run / "config.json").write_text('{"batch_size": 128}')
    assert plot_curves.read_curve(run, "a", "rays").x == [128, 3 * 128]
    with pytest.raises(ValueError, match="no values of nothing; it has psnr/level_0"):
        plot_curves.read_curve(run, "a", "steps", "nothing")


def test_every_curve_is_drawn_in_its_colour_and_rises_as_its_run_does(tmp_path):
    runs = [run_of(tmp_path / name, offset) for name, offset in (("a", 15), ("b", 20))]
    out = tmp_path / "curves.png"
    plot_curves.main([*map(str, runs), "--labels", "one", "two", "--out", str(out)])
    image = np.asarray(Image.open(out)).astype(int)
    assert image.shape[:2] == plot_curves.SIZE[::-1]
    heights = []
    for colour in plot_curves.COLOURS[:2]:
        rows, columns = np.nonzero(np.abs(image - colour).sum(-1) < 30)
        inside = columns < plot_curves.FRAME[2]
        assert np.ptp(columns[inside]) > 400
        left, right = columns[inside] < 250, columns[inside] > 450
        assert rows[inside][left].mean() > rows[inside][right].mean()
        heights.append(rows[inside].mean())
    assert heights[1] < heights[0]


@pytest.mark.parametrize("low,high", [(0, 173), (21.2, 31.4), (0, 0.0004), (5, 5)])
def test_ticks_are_few_and_hold_the_range(low, high):
    values = plot_curves.ticks(low, high, 6)
    assert values[0] <= low + 1e-9 and values[-1] >= high - 1e-9 and 2 <= len(values) <= 8
    np.testing.assert_allclose(np.diff(values), values[1] - values[0])


def test_smoothing_is_a_mean_of_the_values_around():
    curve = plot_curves.Curve("a", [1, 2, 3, 4, 5], [1.0, 3.0, 5.0, 10.0, 0.0])
    assert plot_curves.smoothed(curve, 3).y == [1.0, 3.0, 6.0, 5.0, 0.0]
    assert plot_curves.smoothed(curve, 5).y[2] == pytest.approx(3.8)
    assert plot_curves.smoothed(curve, 1) == curve


def test_labels_keep_their_order_and_a_distance():
    places = plot_curves.spread([50.0, 48.0, 120.0], 10)
    assert places[1] < places[0] < places[2] and places[0] - places[1] >= 9.9


def test_runs_without_a_label_each_are_an_error(tmp_path, capsys):
    run = run_of(tmp_path / "a", 20)
    with pytest.raises(SystemExit) as error:
        plot_curves.main([str(run), "--labels", "one", "two"])
    assert error.value.code == 2 and "1 runs but 2 --labels" in capsys.readouterr().err


def write_evaluation(run, step, colours):
    folder = run / f"eval_test_{step:08d}"
    folder.mkdir(parents=True)
    for kind, colour in zip(draw_hero.KINDS, colours, strict=True):
        Image.new("RGB", (60, 40), colour).save(folder / f"002_{kind}.png")


def test_the_hero_image_shows_the_newest_evaluation_from_left_to_right(tmp_path):
    run, out = tmp_path / "run", tmp_path / "hero.png"
    write_evaluation(run, 5, ["black"] * 3)
    write_evaluation(run, 10, ["red", "lime", "blue"])
    draw_hero.main(["--run", str(run), "--view", "2", "--out", str(out)])
    image = Image.open(out).convert("RGB")
    assert image.width == 800
    assert [image.getpixel((x, image.height // 2)) for x in (130, 400, 670)] == [
        (255, 0, 0), (0, 255, 0), (0, 0, 255)]


def test_a_run_that_was_not_evaluated_is_an_error_that_names_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        draw_hero.main(["--run", str(tmp_path)])
    assert error.value.code == 2 and "run evaluate.py --run" in capsys.readouterr().err


def test_a_small_blender_scene_has_fewer_pixels_and_fewer_test_views(tmp_path):
    source, target = tmp_path / "big", tmp_path / "small"
    for split, count in (("train", 3), ("test", 5)):
        (source / split).mkdir(parents=True)
        frames = [{"file_path": f"./{split}/r_{i}", "transform_matrix": np.eye(4).tolist()}
                  for i in range(count)]
        for i in range(count):
            pixels = np.full((8, 8, 4), 255, np.uint8)
            pixels[::2, :, :3] = 40 * i
            Image.fromarray(pixels).save(source / split / f"r_{i}.png")
        (source / f"transforms_{split}.json").write_text(
            json.dumps({"camera_angle_x": 0.7, "frames": frames}))
    reduce_blender_data.main([str(source), str(target), "--factor", "4", "--test_every", "2"])
    kept = json.loads((target / "transforms_test.json").read_text())
    assert kept["camera_angle_x"] == 0.7
    assert [frame["file_path"] for frame in kept["frames"]] == [
        "./test/r_0", "./test/r_2", "./test/r_4"]
    image = np.asarray(Image.open(target / "test" / "r_2.png"))
    assert image.shape == (2, 2, 4) and np.all(np.abs(image[..., 0] - (255 + 80) / 2) <= 1)
    assert not (target / "test" / "r_1.png").exists()
    with pytest.raises(SystemExit):
        reduce_blender_data.main([str(source), str(target)])


def test_a_logarithmic_axis_has_the_geometric_mean_in_its_middle():
    assert plot_curves.log_ticks(3, 120) == [5, 10, 20, 50, 100]
    curve = plot_curves.Curve("a", [10, 99.9, 100.1, 1000], [0, 0, 1, 1])
    for logarithmic, part in ((True, 0.5), (False, 0.1)):
        image = np.asarray(plot_curves.plot([curve], "steps", "psnr", logarithmic=logarithmic))
        left, top, right, bottom = plot_curves.FRAME
        middle = image[(top + bottom) // 2, left:right].astype(int)
        blue = np.abs(middle - plot_curves.COLOURS[0]).sum(axis=-1) < 60
        assert blue.any() and abs(np.flatnonzero(blue).mean() / (right - left) - part) < 0.02
