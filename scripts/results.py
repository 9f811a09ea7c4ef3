"""Tables of results: train what is missing, score it, print each row with where it comes from.

    python scripts/results.py --list
    python scripts/results.py --table models --minutes 5 15 > models.md
    python scripts/results.py --table precision --seeds 0 1 2
    python scripts/results.py --all > results.md                          more than a day

Every run is of `--preset laptop`. Runs are kept in --log_dir, where view.py, visualize.py and
extract_mesh.py open them; those with scores are reused and unfinished ones resumed, so the same
command continues an interrupted table. Let nothing else run: with --minutes the number of steps
follows from the machine's speed. Two or more --seeds give mean and standard deviation.

The column "published" holds numbers of papers, or of public code where it says so; "protocol" below
the table says how theirs differ. The tables relighting, outputs and normals are printed by scripts
of their own (bench_relighting.py, bench_outputs.py, score_normals.py), from runs trained here.
"""

import json
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkpoint import list_checkpoints, step_of  # noqa: E402
from runtime.commands import command  # noqa: E402
from runtime.errors import run_script  # noqa: E402
from runtime.flags import integer, number  # noqa: E402
from scripts import bench_outputs, bench_relighting, plot_curves, score_normals  # noqa: E402
from scripts.bench_photographs import SCENES as PHOTOGRAPHS  # noqa: E402
from scripts.bench_photographs import place, run_flags, scores_folder  # noqa: E402
from scripts.benchmark import (  # noqa: E402
    add_device_flag,
    check_run,
    environment_line,
    make_parser,
    table_head,
    table_row,
    training_seconds,
)

SCENES = {
    "demo": "--dataset_name blender --scene demo",
    "lego": "--dataset_name blender --scene lego",
} | PHOTOGRAPHS
MODELS = {"mipnerf": "mip-NeRF", "mipnerf360": "mip-NeRF 360", "zipnerf": "Zip-NeRF"}

# PSNR in dB of the released settings; at their sizes and steps.
PUBLISHED = {
    ("lego", "mipnerf"): "35.74", ("fern", "mipnerf"): "24.92", ("flower", "mipnerf"): "27.80",
    ("trex", "mipnerf"): "27.69", ("fern", "mipnerf360"): "24.58",
    ("flower", "mipnerf360"): "27.81", ("trex", "mipnerf360"): "27.87",
}
PROTOCOL = (
    "Protocol of the published numbers. Lego: the mean of four scales of the multiscale dataset "
    "(800×800 and smaller, 200 test views, 1,000,000 steps on TPUs), of the mip-NeRF paper. Fern, "
    "flower, trex: nerf-factory's PyTorch code at 1008×756, since the papers have no such table. "
    "Here: smaller images, every test view of the reduced scene, minutes on a CPU. The difference "
    "is the training time and the size of the networks, and the size of the images.")


class Run(NamedTuple):
    """A training: the first cells of its row, its folder, its flags, and the published PSNR."""

    cells: tuple[str, ...]
    name: str
    flags: str
    published: str = "-"
    num_ranks: int = 1


class Table(NamedTuple):
    """A table: its title, the head of its first cells, its runs, and what it prints of them.

    runs: a function of the command line that lists them; report: a function of their folders that
    prints the table instead, or None; note: below the table.
    """

    title: str
    columns: tuple[str, ...]
    runs: Callable[[object], list[Run]]
    report: Callable[[Sequence[Path]], None] | None = None
    note: str = ""


def main(argv=None):
    args = parse(argv)
    if args.list:
        print("\n".join(f"{name}: {table.title}" for name, table in TABLES.items()))
        return 0
    names = list(TABLES) if args.all else args.table
    print(f"{environment_line()}: `python scripts/results.py "
          f"{shlex.join(sys.argv[1:] if argv is None else argv)}`")
    for name in names:
        table = TABLES[name]
        print(f"\n## {table.title}\n", flush=True)
        runs = table.runs(args)
        print_table(args, table, runs)
        if table.note:
            print(f"\n{table.note}")
        if name == "models":
            draw_curves(args, runs)
    return 0


def parse(argv):
    """The parsed command line."""
    parser = make_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", nargs="+", choices=TABLES, metavar="NAME", help="see --list")
    what.add_argument("--all", action="store_true", help="every table")
    what.add_argument("--list", action="store_true", help="names and titles of the tables")
    parser.add_argument("--data_dir", default="data", help="folder of the datasets")
    parser.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES), metavar="NAME",
                        help=f"of table models (default: all of {', '.join(SCENES)})")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME",
                        help=f"of tables models and precision (default: all of "
                        f"{', '.join(MODELS)})")
    parser.add_argument("--minutes", nargs="+", type=number(above=0), default=[5.0, 15.0],
                        help="minutes of training (default: 5 15)")
    parser.add_argument("--seeds", nargs="+", type=integer(0), default=[0], help="default: 0")
    parser.add_argument("--flags", default="", help="more flags of train.py, in one word")
    parser.add_argument("--log_dir", type=Path, default=Path("log/results"),
                        help="folder of the runs (default: %(default)s)")
    add_device_flag(parser)
    return parser.parse_args(argv)


# Tables.


def model_runs(args):
    """Every scene by every model, after minutes."""
    return [Run((scene, MODELS[model], f"{minutes:g}"), f"{scene}_{model}_{minutes:g}min",
                f"--model {model} {SCENES[scene]} --minutes {minutes:g}",
                PUBLISHED.get((scene, model), "-"))
            for scene in args.scenes for model in args.models for minutes in args.minutes]


def scale_runs(args):
    """Scenes of several scales, with and without anti-aliasing, after the shortest minutes."""
    minutes = min(args.minutes)
    scenes = {"demo": "--dataset_name multicam --scene demo",
              "flower": f"{SCENES['flower']} --scales 1 2 4 8"}
    return [Run((scene, "yes" if flag == "" else f"no: `{flag}`"),
                f"{scene}_scales{'_aliased' * bool(flag)}",
                f"--model zipnerf {scenes[scene]} --minutes {minutes:g} {flag}")
            for scene in scenes for flag in ("", "--no-downweight")]


def precision_runs(args):
    """Equal steps in both precisions."""
    steps = {"mipnerf": 3000, "mipnerf360": 2000, "zipnerf": 1000}
    return [Run((MODELS[model], precision), f"demo_{model}_{precision}",
                f"--model {model} {SCENES['demo']} --max_steps {steps[model]} "
                f"--precision {precision}") for model in args.models
            for precision in ("fp32", "bf16")]


def rank_runs(args):
    """Equal steps of equal batches on one process and on two."""
    return [Run((f"{count}",), f"demo_ranks{count}",
                f"--model zipnerf {SCENES['demo']} --max_steps 500 --batch_size 512 "
                "--precision fp32", num_ranks=count) for count in (1, 2)]


def relighting_runs(args):
    """NeRV under point lights and under environment maps."""
    return [Run((), f"nerv_{lights}", f"--model nerv --dataset_name nerv --scene demo "
                f"--lights {lights} --minutes {max(args.minutes):g}")
            for lights in ("point", "env")]


def demo_runs(args):
    """The demo scene by Zip-NeRF."""
    minutes = max(args.minutes)
    return [Run((), f"demo_zipnerf_{minutes:g}min",
                f"--model zipnerf {SCENES['demo']} --minutes {minutes:g}")]


def normal_runs(args):
    """The demo scene by Zip-NeRF, and by mip-NeRF 360 with predicted normals."""
    minutes = max(args.minutes)
    return [*demo_runs(args), Run((), "demo_predicted", f"--model mipnerf360 {SCENES['demo']} "
                                  f"--predicted_normals --minutes {minutes:g}")]


TABLES = {
    "models": Table("Every scene by every model", ("scene", "model", "minutes"), model_runs,
                    note=PROTOCOL),
    "scales": Table("Several scales, with and without anti-aliasing", ("scene", "anti-aliased"),
                    scale_runs),
    "precision": Table("bfloat16 beside float32, after equal steps", ("model", "precision"),
                       precision_runs),
    "ranks": Table("One process and two, after equal steps", ("processes",), rank_runs),
    "relighting": Table("Relighting, beside the truth", (), relighting_runs,
                        bench_relighting.main),
    "outputs": Table("Videos and meshes, beside the true surface", (), demo_runs,
                     bench_outputs.main),
    "normals": Table("Normals, beside the truth", (), normal_runs, score_normals.main),
}


# Rows.


def print_table(args, table, runs):
    """Train what is missing and print the rows, or what the table's own script prints."""
    if table.report:
        table.report([str(finish(args, run, args.seeds[0])) for run in runs])
        return
    scales = any("--scales" in run.flags or "multicam" in run.flags for run in runs)
    figures = ["PSNR dB", "SSIM", *(f"1/{scale} dB" for scale in (1, 2, 4, 8) if scales)]
    print(table_head([*table.columns, *figures, "published dB", "steps", "seconds", "seeds",
                      "precision, device", "commit"]), flush=True)
    for run in runs:
        folders = [finish(args, run, seed) for seed in args.seeds]
        results = [read_result(folder) for folder in folders]
        print(table_row([*run.cells, *figure_cells(results, figures), run.published,
                         *provenance_cells(results), " ".join(map(str, args.seeds)),
                         results[0]["place"], results[0]["commit"]]), flush=True)


def finish(args, run, seed):
    """The folder of a run, trained and scored as far as it was not. Raises UserError on failure."""
    folder = args.log_dir / f"{run.name}_seed{seed}"
    checkpoints = list_checkpoints(folder)
    flags = ["--preset", "laptop", *shlex.split(run.flags), "--data_dir", args.data_dir, "--device",
             args.device, "--seed", seed, "--keep_checkpoints", 1, *shlex.split(args.flags)]
    if not checkpoints:
        train(run, [*flags, *place(folder)])
    elif step_of(checkpoints[0]) < run_flags(folder)["max_steps"]:
        train(run, ["--continue_training", *place(folder)])
    if not (scores_folder(folder) / "scores.json").exists():
        check_run(command("evaluate.py", "--run", folder, "--device", args.device))
    return folder


def train(run, words):
    """Train on the run's number of processes."""
    words = command("train.py", *words)
    if run.num_ranks > 1:
        words = [words[0], "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                 str(run.num_ranks), *words[1:]]
    check_run(words)


def read_result(folder):
    """A scored run's figures by column, and its steps, seconds, place and commit."""
    scores = json.loads((scores_folder(folder) / "scores.json").read_text())
    scales = {f"1/{2 ** int(name)} dB": values["psnr"] for name, values in scores["scales"].items()}
    return {"PSNR dB": scores["psnr"], "SSIM": scores["ssim"], **scales, "steps": scores["step"],
            "seconds": float(training_seconds(folder)(scores["step"])),
            "place": f"{scores['precision']}, {scores['device']}", "commit": scores["commit"]}


def figure_cells(results, figures):
    """The mean of each figure over the seeds, and its standard deviation."""
    return [spread([result[name] for result in results if name in result],
                   3 if name == "SSIM" else 2) for name in figures]


def spread(values, digits):
    """Mean and, of two values or more, standard deviation; "-" of none."""
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean + (f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else "")


def provenance_cells(results):
    """Steps and seconds of the seeds: one number, or the smallest and the largest."""
    cells = []
    for name in ("steps", "seconds"):
        low, high = (f"{f(result[name] for result in results):,.0f}" for f in (min, max))
        cells.append(low if low == high else f"{low} to {high}")
    return cells


def draw_curves(args, runs):
    """A picture for each scene, in the folder of the runs: PSNR against seconds of the longest."""
    longest = f"_{max(args.minutes):g}min"
    for scene in args.scenes:
        chosen = [run for run in runs if run.cells[0] == scene and run.name.endswith(longest)]
        folders = [str(args.log_dir / f"{run.name}_seed{args.seeds[0]}") for run in chosen]
        plot_curves.main([*folders, "--labels", *(run.cells[1] for run in chosen), "--smooth", "5",
                          "--log", "--title", scene, "--out",
                          str(args.log_dir / f"curves_{scene}.png")])


if __name__ == "__main__":
    run_script(main)
