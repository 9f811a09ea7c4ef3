"""Image quality after minutes of training: a Markdown table, and a contact sheet of each scene.

    python scripts/bench_photographs.py > table.md
    python scripts/bench_photographs.py --scenes flower fern --minutes 5 --seeds 0 1 2
    python scripts/bench_photographs.py --flags="--grid_features 4" --log_dir log/wide
    python scripts/bench_photographs.py --checkout ../before       another commit's checkout
    python scripts/bench_photographs.py --scenes room --crop 200 120 96

Each row is a training of `--preset laptop --model zipnerf` on all cores, scored by evaluate.py. Let
nothing else run: the number of steps follows from their speed. A checkout without --minutes gets
as many steps as fit at the speed of a short trial.

Columns: means over the test views; the mean PSNR of the training views, at random pixels; the
median relative error of the rendered distance at sparse points of the test views, those of a COLMAP
model or else those matched in the test views alone ('-' if too few are found); training rays per
pixel of the training views; seconds and steps of training.

Runs that have scores are reused and unfinished ones resumed, so an interrupted table is continued
by the same command. The messages of the trainings go to standard error. <scene>.png in the folder
of the runs shows the first test view, one row for each number of minutes: photograph, rendering,
absolute difference, distance. --crop also writes <scene>_crop.png, a square of photograph and
rendering at twice its size.
"""

import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import pose_utils  # noqa: E402
from cameras.alignment import align_cameras  # noqa: E402
from checkpoint import list_checkpoints, load_checkpoint, step_of  # noqa: E402
from config import default_config, loaded_config  # noqa: E402
from datasets import load_dataset  # noqa: E402
from evaluate import make_lpips, training_cameras  # noqa: E402
from image_utils import (  # noqa: E402
    contact_sheet,
    psnr,
    quantize,
    read_image,
    write_image,
)
from loaders.colmap import Colmap, check_points, read_model  # noqa: E402
from loaders.points import points_of_scene  # noqa: E402
from ray_utils import pixels_to_rays, points_to_pixels  # noqa: E402
from rendering import render_image, world_distance  # noqa: E402
from runtime.commands import ROOT, command  # noqa: E402
from runtime.devices import select_device  # noqa: E402
from runtime.errors import UserError, run_script  # noqa: E402
from runtime.files import write_atomically  # noqa: E402
from runtime.flags import integer, number  # noqa: E402
from runtime.provenance import git_commit  # noqa: E402
from runtime.run_log import read_metrics  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_device_flag,
    check_run,
    environment_line,
    make_parser,
    table_head,
    table_row,
    training_seconds,
)

# The flags of each scene, and those of the model.
SCENES = {
    "flower": "--dataset_name llff --scene flower --factor 8",
    "fern": "--dataset_name llff --scene fern --factor 8",
    "trex": "--dataset_name llff --scene trex --factor 8",
    "room": "--dataset_name colmap --scene room --factor 2",
    "carton": "--dataset_name colmap --scene carton --factor 4",
    "beer": "--dataset_name colmap --scene beer --factor 2",
    "fox": "--dataset_name nerfstudio --scene fox --factor 2",
    "lego": "--dataset_name blender --scene lego",
}
MODEL = "--preset laptop --model zipnerf"

COLUMNS = ["scene", "minutes", "seed", "PSNR dB", "SSIM", "LPIPS", "training PSNR dB",
           "depth error", "rays per pixel", "seconds", "steps"]

# Steps of the trial that measures the speed of a checkout without --minutes, and between its logs.
TRIAL_STEPS, TRIAL_LOG = 120, 20

# Random pixels of all training views that give the training PSNR.
TRAINING_PIXELS = 65_536

# Each pixel of a crop becomes a square of so many.
ENLARGEMENT = 2


def main(argv=None):
    args = parse(argv)
    bench = Bench(args)
    device = select_device(default_config(device=args.device))
    print(f"{environment_line()}; trained on {device} by commit {git_commit(args.checkout)}: "
          f"`{MODEL} {args.flags}`\n\n{table_head(COLUMNS)}", flush=True)
    for scene in args.scenes:
        for minutes in args.minutes:
            for seed in args.seeds:
                folder = bench.folder(scene, minutes, seed)
                bench.finish(folder, scene, minutes, seed)
                print(table_row([scene, f"{minutes:g}", seed, *result_cells(folder, args.device)]),
                      flush=True)
        folders = [bench.folder(scene, minutes, args.seeds[0]) for minutes in args.minutes]
        write_sheets(bench.log_dir / scene, folders, args.crop)
    print(f"\nContact sheets: {bench.log_dir}", file=sys.stderr)


def parse(argv):
    """The parsed command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--data_dir", default="data", help="folder of the datasets")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES), metavar="NAME",
                        help=f"default: all of {', '.join(SCENES)}")
    parser.add_argument("--minutes", nargs="+", type=number(above=0), default=[2.0, 5.0, 15.0],
                        help="minutes of training (default: 2 5 15)")
    parser.add_argument("--seeds", nargs="+", type=integer(0), default=[0], help="default: 0")
    parser.add_argument("--flags", default="", help="more flags of train.py, in one word")
    parser.add_argument("--checkout", type=Path, default=ROOT,
                        help="the checkout that trains and scores (default: this one)")
    parser.add_argument("--log_dir", type=Path, help="folder of the runs and sheets (default: "
                        "log/photographs_<commit>)")
    parser.add_argument("--lpips", choices=["none", "vgg", "alex"], default="vgg",
                        help="network of LPIPS, if its package and weights are available "
                        "(default: %(default)s)")
    parser.add_argument("--crop", type=integer(0), nargs=3, metavar=("X", "Y", "SIZE"),
                        help="left and upper end and side of the square that is cut out, in pixels")
    add_device_flag(parser)
    args = parser.parse_args(argv)
    if not (args.checkout / "train.py").is_file():
        parser.error(f"--checkout {args.checkout} holds no train.py")
    if args.crop and args.crop[2] == 0:
        parser.error("--crop needs a SIZE of at least 1")
    return args


# Training and scoring.


class Bench:
    """Trains and scores by the commands of a checkout, into the folders of `log_dir`."""

    def __init__(self, args):
        self.args = args
        self.log_dir = args.log_dir or Path("log") / f"photographs_{git_commit(args.checkout)}"
        self.speeds = {}

    def folder(self, scene, minutes, seed):
        """The run folder of a row."""
        return self.log_dir / f"{scene}_{minutes:g}min_seed{seed}"

    def finish(self, folder, scene, minutes, seed):
        """Train and score what is missing in a run folder. Raises UserError if a command fails."""
        checkpoints = list_checkpoints(folder)
        if not checkpoints:
            self.check_run("train.py", *self.training_flags(scene, seed),
                           *self.time_flags(scene, minutes), *place(folder))
        elif step_of(checkpoints[0]) < run_flags(folder)["max_steps"]:
            self.check_run("train.py", "--continue_training", *place(folder))
        if not (scores_folder(folder) / "scores.json").exists():
            self.check_run("evaluate.py", "--run", folder, "--device", self.args.device,
                           "--lpips", self.lpips)

    def training_flags(self, scene, seed):
        """The flags of a training, but for its length and place."""
        return [*SCENES[scene].split(), *MODEL.split(), "--data_dir", self.args.data_dir,
                "--device", self.args.device, "--seed", seed, "--eval_every", 0,
                "--keep_checkpoints", 1, "--no-final_eval", *shlex.split(self.args.flags)]

    def time_flags(self, scene, minutes):
        """--minutes, or as many --max_steps as fit at the speed of a trial."""
        if self.has_minutes:
            return ["--minutes", f"{minutes:g}"]
        if scene not in self.speeds:
            self.speeds[scene] = self.steps_per_second(scene)
        return ["--max_steps", max(1, int(60 * minutes * self.speeds[scene]))]

    def steps_per_second(self, scene):
        """The speed of a checkout's training, by a short trial."""
        with tempfile.TemporaryDirectory() as folder:
            self.check_run("train.py", *self.training_flags(scene, 0), "--max_steps", TRIAL_STEPS,
                           "--log_every", TRIAL_LOG, *place(Path(folder) / "trial"))
            lines = read_metrics(Path(folder) / "trial" / "metrics.jsonl")
            batch_size = run_flags(Path(folder) / "trial")["batch_size"]
        # The first steps compile kernels.
        return statistics.median(line["rays_per_second"] for line in lines[1:]) / batch_size

    @cached_property
    def has_minutes(self):
        """Whether the checkout's train.py has the flag --minutes."""
        words = command("train.py", "--help", "all", checkout=self.args.checkout)
        return "--minutes" in subprocess.run(words, capture_output=True, text=True).stdout

    @cached_property
    def lpips(self):
        """The network of LPIPS; "none" if it is not available."""
        try:
            make_lpips(self.args.lpips)
        except UserError as error:
            print(f"Without LPIPS: {error}", file=sys.stderr, flush=True)
            return "none"
        return self.args.lpips

    def check_run(self, script, *words):
        """Run a command of the checkout. Raises UserError if it fails; it prints why."""
        check_run(command(script, *words, checkout=self.args.checkout))


def place(folder):
    """The flags that make `folder` the run folder."""
    return ["--log_dir", folder.parent, "--exp_name", folder.name]


def run_flags(folder):
    """The flags that a run folder's config.json keeps."""
    return json.loads((folder / "config.json").read_text())


def scores_folder(folder):
    """The file of a finished run's test scores, as evaluate.py writes it."""
    return folder / f"eval_test_{run_flags(folder)['max_steps']:08d}"


# Results.


def result_cells(folder, device):
    """The cells of a finished run's row, from PSNR to steps."""
    scores = json.loads((scores_folder(folder) / "scores.json").read_text())
    more, steps = further_results(folder, device), run_flags(folder)["max_steps"]
    lpips = f"{scores['lpips']:.3f}" if "lpips" in scores else "-"
    depth_error = "-" if more["depth_error"] is None else f"{100 * more['depth_error']:.2f} %"
    return [f"{scores['psnr']:.2f}", f"{scores['ssim']:.3f}", lpips,
            f"{more['training_psnr']:.2f}", depth_error, f"{more['rays_per_pixel']:.2f}",
            f"{training_seconds(folder)(steps):.0f}", f"{steps:,}"]


def further_results(folder, device):
    """Figures that evaluate.py does not give: kept in photographs.json beside its scores."""
    path = scores_folder(folder) / "photographs.json"
    if not path.exists():
        run = load_checkpoint(folder, device)
        num_pixels = int(run.scene["train"].offsets[-1])
        results = {"training_psnr": training_psnr(run), "depth_error": depth_error(run),
                   "rays_per_pixel": run.step * run.config.batch_size / num_pixels}
        write_atomically(path, lambda file: file.write(json.dumps(results).encode()))
    return json.loads(path.read_text())


def open_dataset(run, split, read_pixels=False):
    """A split of a run's scene. Raises UserError if its files are another scene's."""
    device = next(run.model.parameters()).device
    dataset = load_dataset(run.config, split, device, read_pixels)
    dataset.check_same_scene(run.original_scene)
    return dataset


def training_psnr(run):
    """The mean PSNR in dB of a run's training views, each at as many random pixels.

    Rendered as test views are: without appearance embeddings.
    """
    dataset = open_dataset(run, "train", read_pixels=True)
    scene, cameras = dataset.scene, run.scene["train"].cameras.to(dataset.device)
    generator, found = torch.Generator().manual_seed(0), []
    for index, (first, last) in enumerate(zip(scene.offsets[:-1], scene.offsets[1:], strict=True)):
        count = -(-TRAINING_PIXELS // len(dataset))
        chosen = torch.randint(int(first), int(last), (count,), generator=generator)
        if scene.masks is not None:
            chosen = chosen[scene.masks[chosen] > 0]
        within, width = (chosen - first).to(dataset.device), int(cameras.sizes[index, 0])
        rays = pixels_to_rays(cameras, torch.full_like(within, index), within % width,
                              within // width)
        rgb = render_image(run.model, rays, run.config.chunk).rgb
        photograph = dataset.loader.to_rgb(scene.pixels[chosen], scene.background)
        if len(chosen):
            found.append(psnr(quantize(rgb), quantize(photograph)))
    return statistics.mean(found)


def depth_error(run):
    """The median relative error of the rendered distance at `reference_points`; None without any.

    The rendered distance is the median one of the point's pixel.
    """
    dataset = open_dataset(run, "test", read_pixels=True)
    cameras, training = dataset.scene.cameras, training_cameras(run)
    views, points = reference_points(dataset)
    pixels, _ = points_to_pixels(cameras, views, points)
    if training is not None:
        # Refined cameras move the scene.
        similarity = pose_utils.fit_similarity(*(c.camtoworlds.double().cpu().numpy()
                                                 for c in training))
        points = torch.as_tensor(pose_utils.transform_points(points.numpy(), similarity)).float()
        cameras = align_cameras(cameras, training)
    if not len(points):
        return None
    rays = pixels_to_rays(cameras, views, *pixels.long().unbind(dim=-1))
    output = render_image(run.model, rays.to(dataset.device), run.config.chunk)
    rendered = world_distance(cameras, rays, output.distance_median.cpu())
    known = (points - cameras.camtoworlds[views, :, 3]).norm(dim=-1)
    return float(((rendered - known).abs() / known).median())


def reference_points(dataset):
    """Surface points that test views show: indices of views `[K]`, points `[K, 3]`.

    dataset: the test split, with pixels. They are those that a COLMAP model's tracks name, else
    those matched in the test views alone, which no training has seen. K is 0 if there are none.
    """
    views, points = tracked_points(dataset)
    if not len(views):
        matched = points_of_scene(dataset.loader, dataset.scene, "test")
        if matched is None:
            return views, points
        views, points = matched.image_idx, matched.positions[matched.point_idx]
    return inside(dataset.scene.cameras, views, points)


def tracked_points(dataset):
    """The views and points of the observations in a COLMAP model; none for other formats."""
    views, points = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, 3)]
    if isinstance(dataset.loader, Colmap):
        sparse = dataset.loader.root / "sparse"
        model = read_model(sparse / "0" if (sparse / "0").is_dir() else sparse)
        row = {identifier: i for i, identifier in enumerate(model.points3D)}
        known = torch.as_tensor(pose_utils.transform_points(
            check_points(model, sparse), dataset.scene.world_to_scene.double().numpy())).float()
        images = {image.name: image for image in model.images.values()}
        for view, name in enumerate(dataset.scene.names):
            seen = [row[p.point3D_id] for p in images[name].points2D if p.has_point3D()]
            views.append(torch.full((len(seen),), view))
            points.append(known[seen])
    return torch.cat(views), torch.cat(points)


def inside(cameras, views, points):
    """Those of pairs of views and points that project into the view."""
    pixels, depths = points_to_pixels(cameras, views, points)
    kept = ((pixels >= 0) & (pixels < cameras.sizes[views])).all(dim=-1) & (depths > 0)
    return views[kept], points[kept]


# Images.


def write_sheets(path, folders, crop):
    """Write the contact sheet of finished runs of a scene, `<path>.png`, and with crop its crops.

    Raises UserError if the crop (x, y, size) is not inside the view.
    """
    rows = [view_images(folder) for folder in folders]
    write_image(path.with_name(f"{path.name}.png"), contact_sheet(rows))
    if crop:
        crops = [[enlarged_crop(image, *crop) for image in row[:2]] for row in rows]
        write_image(path.with_name(f"{path.name}_crop.png"), contact_sheet(crops))


def view_images(folder):
    """Photograph, rendering, absolute difference and distance of the first test view."""
    dataset = load_dataset(loaded_config(run_flags(folder)), "test", read_pixels=False)
    photograph = quantize(dataset.image(0).rgb)
    rendering, distance = (read_image(scores_folder(folder) / f"000_{name}.png", 3) / 255
                           for name in ("rgb", "depth"))
    return [photograph, rendering, np.abs(rendering - photograph), distance]


def enlarged_crop(image, x, y, size):
    """A square of an image `[h, w, 3]`, `ENLARGEMENT` times as large."""
    height, width = image.shape[:2]
    if x + size > width or y + size > height:
        raise UserError(f"--crop {x} {y} {size} reaches beyond the view of {width}x{height} "
                        "pixels; give a square inside it.")
    crop = image[y : y + size, x : x + size]
    return crop.repeat(ENLARGEMENT, axis=0).repeat(ENLARGEMENT, axis=1)


if __name__ == "__main__":
    run_script(main)
