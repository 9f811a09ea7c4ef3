"""Several ranks as one: gradients, scores, videos, stopping, and going on with another number."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch

import train
import visualize
from checkpoint import load_checkpoint
from config import default_config, get_config
from datasets import load_dataset
from model import build_model
from procedural.lit_scene import write_nerv
from rendering import default_chunk, render_image
from runtime import distributed
from runtime.memory import free_memory, smaller_until_it_fits
from runtime.randomness import BatchRandom
from tests.scenes import write_blender, write_multicam
from tests.test_model import make_rays

ROOT = Path(__file__).parents[2]


def ranks(count, script, *words):
    """The command that runs a script on several CPU ranks of this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
            str(count), "--", script, "--device", "cpu", *words]


def run_ranks(*args):
    result = subprocess.run(ranks(*args), cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Loss weights differ by ray, images by size."""
    folder = tmp_path_factory.mktemp("multicam") / "scene"
    write_multicam(folder)
    return folder


@pytest.fixture(scope="module")
def lit_scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lit") / "scene"
    write_nerv(folder, size=12, limit=2)
    return folder


def flags(scene, log_dir, name, *more):
    return ["--preset", "debug", "--precision", "fp32", "--dataset_name", "multicam", "--scene",
            str(scene), "--log_dir", str(log_dir), "--exp_name", name, "--eval_every", "0",
            "--batch_size", "37", *more]


def gradients_of_the_first_step(folder):
    """Adam's first mean is a tenth of the first gradient."""
    states = load_checkpoint(folder / "checkpoint_00000001.pt").optimizer["state"]
    return [10 * state["exp_avg"] for state in states.values()]


def weights(folder):
    return load_checkpoint(folder).model.state_dict()


# Of NeRV all that it learns, from the first step on.
OF_NERV = ["--dataset_name", "nerv", "--geometry_share", "0", "--visibility_share", "0"]


@pytest.mark.parametrize("model,place,own", [
    ("mipnerf", "scene", []), ("nerv", "lit_scene", OF_NERV),
])
def test_two_ranks_have_the_gradients_and_scores_of_one_process(model, place, own, tmp_path,
                                                                request):
    scene = request.getfixturevalue(place)
    more = ["--model", model, *own, "--max_steps", "6", "--save_every", "1",
            "--keep_checkpoints", "9"]
    train.main(["--device", "cpu", *flags(scene, tmp_path, "one", *more)])
    printed = run_ranks(2, "train.py", *flags(scene, tmp_path, "two", *more, "--micro_batch", "5"))
    assert printed.count("6 steps of 37 rays on 2 ranks (cpu)") == 1
    one, two = tmp_path / "one", tmp_path / "two"
    pairs = zip(*map(gradients_of_the_first_step, (one, two)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6 * float(a.abs().max()) + 1e-9)
    lines = [[json.loads(line) for line in (p / "metrics.jsonl").read_text().splitlines()]
             for p in (one, two)]
    for name in ("loss/total", "gradient_norm", "psnr/level_0"):
        assert [x[name] for x in lines[0]] == pytest.approx([x[name] for x in lines[1]], rel=1e-3)
    results = [p / "eval_test_00000006" for p in (one, two)]
    scores = [json.loads((folder / "scores.json").read_text()) for folder in results]
    assert [i["name"] for i in scores[0]["images"]] == [i["name"] for i in scores[1]["images"]]
    for a, b in zip(scores[0]["images"], scores[1]["images"], strict=True):
        assert a["psnr"] == pytest.approx(b["psnr"], abs=0.05)
    files = [sorted(f.name for f in folder.iterdir()) for folder in results]
    assert files[0] == files[1] and "sheet.png" in files[0]


def test_a_run_goes_on_with_another_number_of_ranks(scene, tmp_path):
    more = ["--max_steps", "8", "--save_every", "4", "--no-final_eval"]
    train.main(["--device", "cpu", *flags(scene, tmp_path, "one", *more)])
    words = flags(scene, tmp_path, "run", *more)
    run_ranks(2, "train.py", *words)
    (tmp_path / "run" / "checkpoint_00000008.pt").unlink()
    run_ranks(3, "train.py", *words, "--continue_training")
    one, shared = weights(tmp_path / "one"), weights(tmp_path / "run")
    for name, value in one.items():
        # Adam's first steps go by the sign of a gradient, however near to zero it is.
        close = torch.isclose(value, shared[name], atol=1e-4)
        assert close.float().mean() > 0.98, (name, (value - shared[name]).abs().max())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [8]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_ranks_end_without_the_threads_that_joined_them(tmp_path):
    """One that is left as the interpreter ends may abort the process, after all is done."""
    script = tmp_path / "step.py"
    script.write_text(f"""if True:
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        import torch
        import distributed
        weight = torch.ones(3, requires_grad=True)
        alone = len(os.listdir("/proc/self/task"))
        with distributed.joined_ranks(torch.device("cpu")):
            distributed.wait_for_all()
            assert len(os.listdir("/proc/self/task")) > alone
            (2 * weight).sum().backward()
            torch.optim.Adam([weight]).step()
        assert len(os.listdir("/proc/self/task")) == alone, os.listdir("/proc/self/task")
    """)
    run_ranks(2, str(script))


def test_ranks_share_the_frames_of_a_video(tmp_path):
    write_blender(tmp_path / "scene", num_views=4, size=(16, 12))
    train.main(["--preset", "debug", "--device", "cpu", "--scene", str(tmp_path / "scene"),
                "--log_dir", str(tmp_path), "--exp_name", "run", "--max_steps", "3",
                "--eval_every", "0", "--no-final_eval"])
    words = ["--run", str(tmp_path / "run"), "--frames", "5", "--visualize_depth",
             "--no-skip_empty"]
    printed = run_ranks(3, "visualize.py", *words)
    assert printed.count("5 frames of 16x12") == 1
    video = tmp_path / "run" / "video_spherical_00000003_5x16x12_whole"
    shared = {f.name: iio.imread(f) for f in sorted((video / "frames").iterdir())}
    assert len(shared) == 10 and (video / "rgb_depth_30fps.gif").exists()
    video.rename(tmp_path / "shared")
    visualize.main([*words, "--device", "cpu"])
    for name, frame in shared.items():
        assert (iio.imread(video / "frames" / name) == frame).all(), name


@pytest.mark.parametrize("to_all", [False, True])
def test_a_signal_stops_all_ranks_after_the_same_step(scene, tmp_path, to_all):
    """Also one that a system sends to the ranks, while torchrun passes on its own."""
    words = flags(scene, tmp_path, "run", "--max_steps", "100000", "--save_every", "100000")
    process = subprocess.Popen(ranks(2, "train.py", *words), cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or not log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    for child in children if to_all else []:
        os.kill(int(child), signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    saved = int(re.search(r"after step (\d+); saved", printed).group(1))
    assert load_checkpoint(tmp_path / "run").step == saved > 0


@pytest.mark.parametrize("count,num_ranks", [(37, 1), (37, 2), (8, 3), (3, 5)])
def test_shares_are_disjoint_and_make_up_the_whole(count, num_ranks, monkeypatch):
    monkeypatch.setattr(distributed, "num_ranks", lambda: num_ranks)
    rows, images = [], []
    for rank in range(num_ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        rows.append(list(range(count))[distributed.my_rows(count)])
        images.append(list(distributed.my_share(range(count))))
    assert sum(rows, []) == list(range(count)) == sorted(sum(images, []))
    for shares in (rows, images):
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_error_of_one_rank_ends_the_others_with_few_words(tmp_path):
    words = flags(tmp_path / "nowhere", tmp_path, "run")
    result = subprocess.run(ranks(2, "train.py", *words), cwd=ROOT, capture_output=True, text=True,
                            timeout=120)
    assert result.returncode != 0
    assert result.stderr.count("error: the scene") == 1
    assert "Connection" not in result.stderr


def test_more_ranks_than_rays_is_one_sentence(scene, tmp_path):
    words = flags(scene, tmp_path, "run")
    words[words.index("--batch_size") + 1] = "1"
    result = subprocess.run(ranks(2, "train.py", *words), cwd=ROOT, capture_output=True, text=True,
                            timeout=120)
    assert result.returncode != 0
    assert "error: --batch_size 1 leaves some of 2 ranks without a ray" in result.stderr
    assert not list((tmp_path / "run").glob("*.pt"))


def test_numbers_of_a_batch_do_not_depend_on_how_it_is_split():
    like = torch.zeros(())

    def sampled(rng, *parts):
        found = []
        for rows in parts:
            sample = rng.for_rows(rows)
            found.append(torch.cat([sample(torch.rand, (len(rows), 3), like),
                                    sample(torch.randn, (len(rows), 2), like)], dim=-1))
        return torch.cat(found)

    rows = torch.arange(10)
    whole = sampled(BatchRandom(7, 10), rows)
    assert torch.equal(whole, sampled(BatchRandom(7, 10), *rows.split(3)))
    assert torch.equal(whole[4:], sampled(BatchRandom(7, 10), rows[4:]))
    assert not torch.equal(whole, sampled(BatchRandom(8, 10), rows))
    assert len(whole.unique()) == whole.numel()


# Memory that does not suffice.


def short_of_memory(model, most):
    """Make a model fail as PyTorch does when it is asked for more than `most` rays at once."""
    forward, asked = model.forward, []

    def limited(rays, *args, **kwargs):
        asked.append(len(rays))
        if len(rays) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(rays, *args, **kwargs)

    model.forward = limited
    return asked


def small_model():
    return build_model(default_config(num_samples=6, hidden=8, depth=2, view_hidden=4,
                                      precision="fp32"))


def test_a_picture_is_rendered_in_smaller_chunks_where_memory_ends(capsys):
    model, rays = small_model().eval(), make_rays(50)
    wanted = render_image(model, rays)
    asked = short_of_memory(model, 7)
    found = render_image(model, rays, chunk=40)
    torch.testing.assert_close(found.rgb, wanted.rgb)
    assert asked == [40, 20, 10, 5] + 9 * [5]
    assert "not enough memory for 40 rays at once; going on with 20" in capsys.readouterr().out


def widest_layer(model):
    return max(layer.in_features + layer.out_features for layer in model.field.layers())


@pytest.mark.parametrize("free,wanted", [(0, 1), (8_000, 10)])
def test_rays_at_once_follow_the_free_memory(free, wanted, monkeypatch):
    model = small_model()
    monkeypatch.setattr("model.free_memory", lambda device: free * widest_layer(model) / 8)
    assert default_chunk(model, torch.device("cpu")) == pytest.approx(wanted, abs=0.2 * wanted)


def test_a_thin_network_takes_more_rays_at_once():
    """8,192 samples, 6 a ray; as many more as its features are fewer than 256."""
    model = small_model()
    assert default_chunk(model, torch.device("cpu")) == 8192 * 256 // widest_layer(model) // 6
    model.field.trunk.append(torch.nn.Linear(200, 200))
    assert default_chunk(model, torch.device("cpu")) == 8192 // 6


def test_the_system_tells_how_much_memory_is_free():
    free = free_memory(torch.device("cpu"))
    assert 1e7 < free
    if sys.platform == "linux":
        assert free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_step_takes_smaller_parts_where_memory_ends(scene, tmp_path):
    config = get_config(flags(scene, tmp_path, "run", "--micro_batch", "37"))
    batch = load_dataset(config, "train").batch(37, torch.Generator().manual_seed(0))
    found = []
    for most in (37, 10):
        model = build_model(config).train()
        short_of_memory(model, most)
        train.compute_gradients(model, batch, config, 0.0, BatchRandom(0, 37))
        found.append([p.grad for p in model.parameters()])
    assert config.micro_batch == 9
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("sizes do not match")])
def test_what_does_not_fit_at_all_and_other_errors_are_raised(error):
    sizes = []

    def fail(size):
        sizes.append(size)
        raise error

    with pytest.raises(type(error)):
        smaller_until_it_fits(4, fail)
    assert sizes == ([4, 2, 1] if isinstance(error, MemoryError) else [4])
