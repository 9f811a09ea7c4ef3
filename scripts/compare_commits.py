"""Check that two checkouts of the project compute the same numbers.

    python scripts/compare_commits.py OLD_CHECKOUT NEW_CHECKOUT
    python scripts/compare_commits.py ../old . --cases debug/zipnerf laptop
    python scripts/compare_commits.py ../old . --ignore images/ scene/ --work ~/kept

Each case runs train.py, evaluate.py, visualize.py and extract_mesh.py of both checkouts for 20
steps on the demo scene, on one CPU thread, and compares the losses of every step, the weights and
metadata in the checkpoint, scores, PNG files and meshes. All must be bit-identical. The `scene/`
cases compare the files of the demo scene itself; the other cases read the scene of the old side.

Only command lines are used, each in a process of its own, so internals may differ. Where preset
names differ, a case has flags for both. Outputs of the old side are kept in --work by commit and
flags, unless the checkout has uncommitted changes; later calls run only the new side.
Exits with 1 if any case differs or fails.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch

STEPS = 20
TRAIN = (f"--scene demo --max_steps {STEPS} --log_every 1 --eval_every 0 --batch_size 64 --seed 0 "
         "--device cpu --precision fp32")
VIDEO = "--width 24 --height 24 --frames 2 --visualize_depth --visualize_normals"
MESH = "--grid_size 24"

# Loaded once for all commands.
PACKAGES = ["torch", "torch._dynamo", "torch.utils.tensorboard", "numba", "cv2", "imageio.v3",
            "scipy.ndimage", "skimage.metrics", "trimesh", "mcubes", "tqdm"]

# Scalars of metrics.jsonl that are not results.
UNREPEATABLE = {"step", "seconds", "rays_per_second", "memory_gb"}

# The folder of each dataset's demo scene in --data_dir.
SCENE_FOLDERS = {
    "blender": "nerf_synthetic/demo", "multicam": "nerf_multiscale/demo",
    "llff": "nerf_llff_data/demo", "colmap": "colmap/demo", "nerfstudio": "nerfstudio/demo",
    "nerv": "nerv/demo",
}

# Presets by size and model: flags before and after presets were named only by size.
PRESETS = {
    ("debug", "mipnerf"): ("--preset debug", "--preset debug"),
    ("debug", "mipnerf360"): 2 * ("--preset debug --model mipnerf360",),
    ("debug", "zipnerf"): 2 * ("--preset debug --model zipnerf",),
    ("debug", "nerv"): 2 * ("--preset debug --model nerv",),
    ("debug", "nerv_mlp"): 2 * ("--preset debug --model nerv --nerv_field mlp",),
    ("laptop", "mipnerf"): ("--preset demo", "--preset laptop --model mipnerf"),
    ("laptop", "mipnerf360"): ("--preset demo360", "--preset laptop --model mipnerf360"),
    ("laptop", "zipnerf"): ("--preset demozip", "--preset laptop --model zipnerf"),
    ("laptop", "nerv"): ("--preset demonerv", "--preset laptop --model nerv"),
    ("laptop", "nerv_mlp"): (
        "--preset demonervmlp", "--preset laptop --model nerv --nerv_field mlp"),
    ("gpu", "mipnerf"): ("", "--preset gpu --model mipnerf"),
    ("gpu", "mipnerf360"): ("--model mipnerf360", "--preset gpu --model mipnerf360"),
    ("gpu", "zipnerf"): ("--model zipnerf", "--preset gpu --model zipnerf"),
    ("gpu", "nerv"): ("--model nerv", "--preset gpu --model nerv"),
    ("gpu", "nerv_mlp"): (
        "--model nerv --nerv_field mlp", "--preset gpu --model nerv --nerv_field mlp"),
    ("paper", "mipnerf"): ("--preset paper", "--preset paper --model mipnerf"),
    ("paper", "mipnerf360"): ("--preset paper360", "--preset paper --model mipnerf360"),
    ("paper", "zipnerf"): ("--preset paperzip", "--preset paper --model zipnerf"),
}


@dataclass(frozen=True)
class Case:
    """A name and the flags of each command; a command without flags is left out.

    old, new: flags of train.py with the old and the new preset names. more_steps: the training is
    resumed up to this number of steps. scene_files: compare only the demo scene, without a run.
    """

    name: str
    dataset: str
    old: str
    new: str
    evaluate: str = ""
    video: str = VIDEO
    mesh: str = MESH
    more_steps: int = 0
    scene_files: bool = False


def make_case(size, model, dataset, flags="", label=None, **commands):
    """The `Case` of a preset's size, a model and a dataset, with more `flags` of train.py."""
    common = f"--dataset_name {dataset} {flags}".strip()
    old, new = (f"{common} {preset}".strip() for preset in PRESETS[size, model])
    label = label or dataset
    name = label if "/" in label else f"{size}/{model}/{label}"
    return Case(name, dataset, old, new, **commands)


def debug_cases():
    """Every model on every dataset, as small as possible."""
    for model in ("mipnerf", "mipnerf360", "zipnerf"):
        yield make_case("debug", model, "blender", "--factor 4")
        yield make_case("debug", model, "llff", "--llffhold 24")
        yield make_case("debug", model, "llff", "--llffhold 24 --spherify", "spherified")
        yield make_case("debug", model, "colmap", "--llffhold 40")
        yield make_case("debug", model, "nerfstudio", "--factor 4")
        yield make_case("debug", model, "nerv", "--factor 8")
        # Multicam has 60 test images and no --factor: score one of them while training.
        flags = f"--no-final_eval --eval_every {STEPS}"
        yield make_case("debug", model, "multicam", "" if model == "mipnerf" else flags)
    for model in ("nerv", "nerv_mlp"):
        yield make_case("debug", model, "nerv", "--factor 8", "point")
        yield make_case("debug", model, "nerv", "--factor 8 --lights env", "env",
                        video=VIDEO.replace("24", "12"))


def preset_cases():
    """The larger presets of every model, with smaller images, batches and tables."""
    yield make_case("laptop", "mipnerf", "blender", "--factor 8")
    yield make_case("laptop", "mipnerf", "llff", "--no-final_eval")
    yield make_case("laptop", "mipnerf360", "blender", "--factor 8")
    yield make_case("laptop", "mipnerf360", "colmap", "--no-final_eval", mesh="")
    yield make_case("laptop", "zipnerf", "blender", "--factor 4 --batch_size 128")
    yield make_case("laptop", "zipnerf", "nerfstudio", "--factor 4")
    yield make_case("laptop", "nerv", "nerv", "--factor 8")
    yield make_case("laptop", "nerv_mlp", "nerv", "--factor 16")
    few = "--num_samples 16 --batch_size 32 --no-final_eval"
    fewer = "--num_samples 8 --prop_samples 16 --batch_size 16 --no-final_eval"
    table = "--batch_size 32 --no-final_eval --grid_log2_size 12"
    lit = f"--factor 16 --bounce_directions 4 {fewer}"
    small = {"video": "--width 8 --height 8 --frames 1 --visualize_depth --no-skip_empty",
             "mesh": ""}
    for size in ("gpu", "paper"):
        yield make_case(size, "mipnerf", "blender", f"--factor 16 {few}", **small)
        yield make_case(size, "mipnerf", "llff", few, **small)
        yield make_case(size, "mipnerf360", "blender", f"--factor 16 {fewer}", **small)
        yield make_case(size, "mipnerf360", "colmap", fewer, **small)
        yield make_case(size, "zipnerf", "blender", f"--factor 16 {table}", **small)
        yield make_case(size, "zipnerf", "nerfstudio", f"--factor 8 {table}", **small)
    yield make_case("gpu", "nerv", "nerv", f"{lit} --grid_log2_size 12", **small)
    yield make_case("gpu", "nerv_mlp", "nerv", lit, **small)


def option_cases():
    """Flags that no preset sets, several at once."""
    yield make_case(
        "debug", "mipnerf", "blender", "--factor 8 --density_noise 0.5 --num_levels 3"
        " --no-use_viewdirs --ray_shape cylinder --batching single_image --micro_batch 24"
        " --lindisp --bg_range 0 0 --near 2.6 --far 5.4", "options/sampling",
        video=f"{VIDEO} --path ellipse", mesh=f"{MESH} --keep_unseen --x_range -1 0.9",
        evaluate="--split val")
    yield make_case(
        "debug", "mipnerf360", "nerfstudio", "--factor 4 --prop_rounds 2 --ray_warp piecewise"
        " --anneal_slope 5 --dilation_mult 1 --min_deg 1", "options/proposals",
        video=f"{VIDEO} --path zoom --dolly", mesh=f"{MESH} --keep_unseen --sigma_threshold 0.3")
    yield make_case(
        "debug", "zipnerf", "blender", "--factor 8 --prop_rounds 2 --prop_finest 16 32"
        " --pulse_width 0.03 0.003 --num_multisamples 1 --no-downweight --grid_lr_mult 3"
        " --grad_max_norm 0.1 --opaque_background", "options/grids",
        video=f"{VIDEO} --path zoom --no-skip_empty", evaluate="--split train")
    yield make_case("debug", "mipnerf360", "llff", "--precision bf16 --no-final_eval",
                    "options/bf16", mesh="")
    yield make_case("debug", "zipnerf", "blender", "--factor 8 --max_steps 12 --save_every 5",
                    "options/continued", more_steps=STEPS, video="", mesh="")
    yield make_case(
        "debug", "nerv", "nerv", "--factor 16 --lights env --shade_at surface --light_samples 4",
        "options/surface", video=f"{VIDEO} --visualize_components --relight environment",
        mesh="", evaluate="--lights point --bounce_directions 2")
    yield make_case(
        "debug", "nerv_mlp", "nerv", "--factor 16 --march_shadows --light_intensity 50",
        "options/shadows", video=f"{VIDEO} --visualize_components --relight light --path still",
        evaluate="--shade_at surface --no-march_shadows")


def scene_cases():
    """The files of the demo scene in every format."""
    flags = "--preset debug --max_steps 1 --batch_size 8 --no-final_eval"
    for name in SCENE_FOLDERS:
        train_flags = f"--dataset_name {name} {flags}"
        yield Case(f"scene/{name}", name, train_flags, train_flags, scene_files=True)


CASES = [*debug_cases(), *preset_cases(), *option_cases(), *scene_cases()]


class CommandFailed(Exception):
    """A command of a case ended with an error: which, and the last line it wrote."""


class Checkout:
    """One side of the comparison: a folder with a checkout, and the folder of its outputs."""

    def __init__(self, folder, work):
        self.folder, self.work, self.cpu_seconds = Path(folder).resolve(), work, 0.0
        if not (self.folder / "train.py").exists():
            sys.exit(f"error: {folder} holds no train.py; give the folder of a checkout.")

    @cached_property
    def commit(self):
        """The commit, or None where files differ from it."""
        git = ["git", "-C", str(self.folder)]
        if subprocess.check_output([*git, "status", "--porcelain"]):
            return None
        return subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()

    @cached_property
    def has_sized_presets(self):
        """Whether presets are named only by size."""
        return "laptop" in self.run("train.py", "--help")

    def train_flags(self, case):
        """The flags of train.py that this checkout understands."""
        return case.new if self.has_sized_presets else case.old

    def run(self, script, *arguments):
        """The output of a script; raises CommandFailed with its last line."""
        log = self.work / f"log_{os.getpid()}.txt"
        log.touch()
        context = multiprocessing.get_context("forkserver")
        used = context.Value("d", 0.0)
        process = context.Process(target=run_script,
                                  args=(str(self.folder), script, arguments, str(log), used))
        process.start()
        process.join()
        self.cpu_seconds += used.value
        text = log.read_text(errors="replace")
        log.unlink()
        if process.exitcode:
            last = (text.strip().splitlines() or ["no message"])[-1]
            raise CommandFailed(f"{self.folder}: {script} {' '.join(arguments)}: {last}")
        return text

    def outputs(self, case, data_dir):
        """Run the commands of a case; returns its quantities by name."""
        if case.scene_files:
            self.make_scene(case.dataset, data_dir)
            return read_files(data_dir / SCENE_FOLDERS[case.dataset])
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            self.run_commands(case, data_dir, folder)
            return read_run(Path(folder) / "run")

    def run_commands(self, case, data_dir, folder):
        """Train, and do what else a case does, in `folder`/run."""
        data = ["--data_dir", str(data_dir), "--device", "cpu"]
        place = [*data, "--log_dir", folder, "--exp_name", "run"]
        self.run("train.py", *TRAIN.split(), *self.train_flags(case).split(), *place)
        if case.more_steps:
            self.run("train.py", *place, "--continue_training", "--max_steps",
                     str(case.more_steps))
        run = ["--run", f"{folder}/run", *data]
        for script in ("evaluate", "video", "mesh"):
            if arguments := getattr(case, script):
                self.run(SCRIPTS[script], *run, *arguments.split())

    def make_scene(self, dataset, data_dir):
        """Make a dataset's demo scene where there is none yet."""
        if (data_dir / SCENE_FOLDERS[dataset]).exists():
            return
        case = next(c for c in CASES if c.scene_files and c.dataset == dataset)
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            self.run_commands(Case("", dataset, case.old, case.new, video="", mesh=""),
                              data_dir, folder)

    def cached_outputs(self, case, data_dir):
        """`outputs`, read from an earlier call with the same commit, flags and PyTorch."""
        if self.commit is None or case.scene_files:
            return self.outputs(case, data_dir)
        run = replace(case, old=self.train_flags(case), new="")
        key = repr((run, TRAIN, torch.__version__, str(data_dir)))
        name = f"{case.name.replace('/', '_')}_{hashlib.sha256(key.encode()).hexdigest()[:12]}.pt"
        path = self.work / self.commit / name
        if path.exists():
            return torch.load(path, weights_only=True)
        outputs = self.outputs(case, data_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(outputs, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
        return outputs


def run_script(folder, script, arguments, log, used):
    """Run `python script arguments...` in `folder` and write its output to `log`.

    Runs in a process of its own. used: receives the CPU seconds.
    """
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.argv, sys.path[0] = [script, *arguments], folder
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        used.value = time.process_time()


def prepare_processes(work):
    """Make processes use one thread, write nothing into checkouts, and start with packages loaded.

    Loading them takes longer than most commands otherwise.
    """
    os.environ |= {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    os.environ |= {"PYTHONPYCACHEPREFIX": str(work / "pycache"),
                   "NUMBA_CACHE_DIR": str(work / "numba")}
    multiprocessing.get_context("forkserver").set_forkserver_preload(PACKAGES)


SCRIPTS = {"evaluate": "evaluate.py", "video": "visualize.py", "mesh": "extract_mesh.py"}


# Quantities: a `dict` of name to tensor or plain value, in the order of computation.


def read_run(run):
    """All that is compared of a run folder."""
    content = torch.load(max(run.glob("checkpoint_*.pt")), weights_only=True, map_location="cpu")
    found = flatten("scene", content["scene"])
    found |= read_scalars(run / "metrics.jsonl") | flatten("weights", content["model"])
    for path in sorted(run.glob("eval_*/scores.json")):
        found |= read_scores(path)
    for path in sorted(run.rglob("*.png")):
        pixels = imageio.imread(path)
        found[f"images/{path.relative_to(run)}"] = torch.from_numpy(np.ascontiguousarray(pixels))
    for path in sorted(run.glob("mesh_*/mesh.ply")):
        found |= read_mesh(path)
    return found


def flatten(name, value):
    """Nested dicts and lists as one `dict`, with names joined by '/'."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        parts = [flatten(f"{name}/{key}", part) for key, part in items]
        return {key: leaf for part in parts for key, leaf in part.items()}
    return {name: value}


def read_scalars(path):
    """The scalars of metrics.jsonl by step, without times and memory."""
    scalars = {}
    for text in path.read_text().splitlines():
        line = json.loads(text)
        scalars |= {f"losses/{line['step']:04d}/{name}": value
                    for name, value in line.items() if name not in UNREPEATABLE}
    return scalars


def read_scores(path):
    """The scores of one evaluation: their means and those of every image."""
    scores = json.loads(path.read_text())
    kept = {name: scores[name] for name in ("psnr", "ssim", "scales", "images")}
    return flatten(f"scores/{path.parent.name}", kept)


def read_mesh(path):
    """Vertices, faces and colours of a PLY file, and the notes beside it."""
    import trimesh

    mesh = trimesh.load(path, process=False)
    arrays = {"vertices": mesh.vertices, "faces": mesh.faces,
              "colours": mesh.visual.vertex_colors}
    found = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    found["json"] = json.loads(path.with_suffix(".json").read_text())
    return flatten(f"mesh/{path.parent.name}", found)


def read_files(folder):
    """The bytes of all files below a folder."""
    return {f"files/{path.relative_to(folder)}": torch.from_numpy(np.fromfile(path, np.uint8))
            for path in sorted(folder.rglob("*")) if path.is_file()}


# Comparison.


def find_differences(old, new, ignore=()):
    """Descriptions of the quantities that differ, by name, in the order of computation."""
    names = [name for name in dict.fromkeys([*old, *new])
             if not any(part in name for part in ignore)]
    found = {}
    for name in names:
        if name not in new or name not in old:
            found[name] = f"only in the {'old' if name in old else 'new'}"
        elif description := describe_difference(old[name], new[name]):
            found[name] = description
    return found


def describe_difference(old, new):
    """By how much two values differ, in words; None where they are bit-identical."""
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return describe_tensors(old, new)
    if type(old) is type(new) and (old == new or (old != old and new != new)):
        return None
    gap = f" (by {abs(new - old):.3g})" if is_number(old) and is_number(new) else ""
    return f"{old!r} became {new!r}{gap}"


def describe_tensors(old, new):
    """`describe_difference` of tensors; not-a-number equals itself."""
    kinds = [f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (old, new)]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} became {kinds[1]}"
    wrong = (old != new) & ~((old != old) & (new != new))
    if not wrong.any():
        return None
    gap = (new[wrong].double() - old[wrong].double()).abs().max()
    return f"{int(wrong.sum()):,} of {old.numel():,} values, by up to {gap:.3g}"


def is_number(value):
    return isinstance(value, int | float) and not isinstance(value, bool)


def summarize(differences, count):
    """The first difference, and how many there are of each kind, as one line."""
    name, description = next(iter(differences.items()))
    kinds = Counter(key.split("/")[0] for key in differences)
    listed = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return f"first {name}: {description}; {len(differences)} of {count} quantities ({listed})"


def compare(case, old, new, data_dirs, ignore):
    """Run a case on both sides; returns whether it is equal, and a line that reports it."""
    old.cpu_seconds = new.cpu_seconds = 0.0
    try:
        old.make_scene(case.dataset, data_dirs[0])
        before = old.cached_outputs(case, data_dirs[0])
        after = new.outputs(case, data_dirs[1 if case.scene_files else 0])
    except CommandFailed as error:
        return False, f"FAILED   {case.name}  {error}"
    differences = find_differences(before, after, ignore)
    seconds = f"{old.cpu_seconds:.0f} + {new.cpu_seconds:.0f} CPU s"
    if differences:
        return False, f"DIFFERS  {case.name}  {summarize(differences, len(before))}; {seconds}"
    return True, f"equal    {case.name}  {len(before)} quantities; {seconds}"


def main(argv=None):
    args = parse_args(argv)
    cases = [c for c in CASES if not args.cases or any(part in c.name for part in args.cases)]
    if args.list or not cases:
        print("\n".join(c.name for c in cases or CASES))
        return 0 if cases else 2
    work = args.work.resolve()
    old, new = (Checkout(folder, work) for folder in (args.old, args.new))
    work.mkdir(parents=True, exist_ok=True)
    prepare_processes(work)
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        # The new side makes a demo scene for the scene/ cases; all others read the old side's.
        data_dir = args.data_dir or (work / old.commit if old.commit else Path(temporary)) / "data"
        data_dirs = data_dir.resolve(), Path(temporary) / "new_data"
        equal = 0
        for case in cases:
            is_equal, line = compare(case, old, new, data_dirs, args.ignore)
            equal += is_equal
            print(line, flush=True)
    print(f"{equal} of {len(cases)} cases are equal.")
    return int(equal < len(cases))


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="folder of the checkout that is known to be right")
    parser.add_argument("new", type=Path, help="folder of the checkout to be checked")
    parser.add_argument("--cases", nargs="+", metavar="SUBSTRING",
                        help="only cases whose names contain one of these")
    parser.add_argument("--ignore", nargs="+", default=[], metavar="SUBSTRING",
                        help="leave out quantities whose names contain one of these")
    parser.add_argument("--data_dir", type=Path, help="datasets of both sides; demo scenes are "
                        "written into it (default: a folder in --work for each old commit)")
    parser.add_argument("--work", type=Path,
                        default=Path(tempfile.gettempdir()) / "compare_commits",
                        help="where outputs of the old side are kept (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="only list the cases")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
