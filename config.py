"""Every flag of the project, once: its type, default, help, and the presets that change defaults.

A preset or a dataset changes *defaults*, so a flag that was typed always wins, and `--help` shows
the values that would be used. Order: base < dataset < model < preset < `--config` file <
command line.
"""

import argparse
import json
import math
import os
import re
from pathlib import Path

from runtime.errors import UserError

# What the official configurations of each dataset set.
DATASET_DEFAULTS = {
    # Cameras on a hemisphere, which one ellipse does not follow.
    "blender": {"factor": 1, "white_bkgd": True, "near": 2.0, "far": 6.0, "path": "spherical"},
    "multicam": {"factor": 1, "white_bkgd": True, "path": "spherical"},
    "llff": {
        "factor": 4,
        "white_bkgd": False,
        "ndc": True,
        "ray_shape": "cylinder",
        "density_noise": 1.0,
    },
    # Own captures see far into their surroundings.
    "colmap": {"factor": 4, "white_bkgd": False, "lindisp": True},
    "nerfstudio": {"factor": 1, "white_bkgd": False, "lindisp": True},
    "nerv": {"factor": 1, "white_bkgd": True, "near": 2.0, "far": 6.0, "path": "spherical"},
}

# An inward-facing LLFF capture has no common forward direction, so neither NDC nor its cylinders.
SPHERIFY_DEFAULTS = {"ndc": False, "ray_shape": "cone"}

# Hash grids for two CPU cores.
DEMO_GRIDS = {
    "prop_rounds": 1,
    "prop_samples": 48,
    "prop_finest": [128],
    "prop_features": 2,
    "prop_hidden": 32,
    "pulse_width": [0.01],
    "num_multisamples": 1,
    "grid_finest": 256,
    "grid_log2_size": 17,
    "hidden": 32,
    "bottleneck": 16,
    "view_hidden": 32,
    "view_depth": 2,
    "grid_decay_loss_mult": 0.0,
    "grid_lr_mult": 3.0,
    "batch_size": 1024,
    "micro_batch": 1024,
    "lr_init": 1e-2,
    "lr_final": 5e-4,
    "lr_delay_steps": 50,
    "lr_delay_mult": 0.01,
    "log_every": 100,
}

# Networks for two CPU cores, behind proposals.
DEMO_NETWORKS = {
    "prop_samples": 32,
    "prop_hidden": 64,
    "prop_depth": 2,
    "num_samples": 16,
    "hidden": 128,
    "depth": 4,
    "skip": 2,
    "bottleneck": 64,
    "view_hidden": 64,
    "lr_init": 6e-3,
    "lr_final": 3e-4,
    "lr_delay_steps": 100,
    "grad_max_norm": 0.0,
    "log_every": 100,
    "eval_every": 1500,
    "save_every": 500,
}

# What NeRV has besides a geometry, for two CPU cores.
DEMO_SURFACES = {
    "dataset_name": "nerv",
    "model": "nerv",
    "visibility_features": 16,
    "visibility_hidden": 64,
    "visibility_depth": 3,
    "bounce_directions": 8,
    "eval_every": 1500,
    "save_every": 500,
}

PRESETS = {
    "paper": {
        "batch_size": 4096,
        "max_steps": 1_000_000,
        "lr_init": 5e-4,
        "lr_final": 5e-6,
        "lr_delay_steps": 2500,
        "lr_delay_mult": 0.01,
    },
    "demo": {
        "num_samples": 16,
        "hidden": 128,
        "depth": 4,
        "skip": 2,
        "view_hidden": 64,
        "max_deg": 10,
        "batch_size": 128,
        "micro_batch": 128,
        "max_steps": 7500,
        "lr_init": 6e-3,
        "lr_final": 3e-4,
        "lr_delay_steps": 100,
        "log_every": 100,
        "eval_every": 1500,
        "save_every": 500,
    },
    "paper360": {
        "model": "mipnerf360",
        "batch_size": 16384,
        "max_steps": 250_000,
        "lr_init": 2e-3,
        "lr_final": 2e-5,
    },
    "demo360": DEMO_NETWORKS | {
        "model": "mipnerf360",
        "batch_size": 128,
        "micro_batch": 128,
        "max_steps": 7500,
    },
    "paperzip": {
        "model": "zipnerf",
        "batch_size": 65536,
        "max_steps": 25_000,
        "lr_init": 1e-2,
        "lr_final": 1e-3,
        "lr_delay_steps": 2500,
    },
    "demozip": DEMO_GRIDS | {
        "model": "zipnerf",
        "fine_loss_mult": 1.0,
        "charbonnier_loss_mult": 0.0,
        "max_steps": 1900,
        "eval_every": 950,
        "save_every": 475,
    },
    "demonerv": DEMO_GRIDS | DEMO_SURFACES | {
        "nerv_field": "hash",
        "max_steps": 6000,
    },
    "demonervmlp": DEMO_NETWORKS | DEMO_SURFACES | {
        "nerv_field": "mlp",
        "prop_rounds": 1,
        "max_deg": 8,
        "batch_size": 256,
        "micro_batch": 256,
        "max_steps": 9000,
        "geometry_share": 0.55,
        "visibility_share": 0.15,
    },
    "debug": {
        "bounce_directions": 4,
        "visibility_finest": 16,
        "visibility_hidden": 16,
        "visibility_depth": 2,
        "prop_rounds": 1,
        "prop_finest": [16],
        "pulse_width": [0.03],
        "grid_coarsest": 8,
        "grid_finest": 32,
        "grid_log2_size": 12,
        "prop_samples": 12,
        "prop_hidden": 16,
        "prop_depth": 2,
        "bottleneck": 16,
        "grad_max_norm": 0.0,
        "num_samples": 12,
        "hidden": 24,
        "depth": 3,
        "skip": 2,
        "view_hidden": 16,
        "max_deg": 8,
        "batch_size": 128,
        "max_steps": 40,
        "lr_init": 3e-3,
        "lr_final": 3e-4,
        "lr_delay_steps": 10,
        "log_every": 10,
        "eval_every": 20,
        "save_every": 20,
    },
}

# mip-NeRF 360: the released configuration's method, with a schedule for one card of 8 to 12 GB.
MODEL_DEFAULTS = {
    "mipnerf360": {
        "num_samples": 32, "hidden": 1024, "bottleneck": 256, "weight_init": "he",
        "fine_loss_mult": 0.0, "coarse_loss_mult": 0.0, "charbonnier_loss_mult": 1.0,
        "interlevel_loss_mult": 1.0, "distortion_loss_mult": 0.01,
        "lr_init": 1e-3, "lr_final": 1e-5, "lr_delay_steps": 512,
        "adam_eps": 1e-6, "grad_max_norm": 1e-3,
    },
    "zipnerf": {
        "num_samples": 32, "hidden": 64, "depth": 1, "prop_hidden": 64, "prop_depth": 1,
        "bottleneck": 256, "view_hidden": 256, "view_depth": 3, "view_skip": 2,
        "weight_init": "he", "dilation_bias": 0.0, "dilation_mult": 0.0,
        "fine_loss_mult": 0.0, "coarse_loss_mult": 0.0, "charbonnier_loss_mult": 1.0,
        "antialiased_interlevel_loss_mult": 0.01, "distortion_loss_mult": 0.01,
        "grid_decay_loss_mult": 0.1, "batch_size": 8192, "lr_init": 1.25e-3, "lr_final": 1.25e-4,
        "lr_delay_steps": 20_000, "lr_delay_mult": 1e-8, "adam_beta2": 0.99, "adam_eps": 1e-15,
    },
}

# NeRV's geometry is one of the others; what it shows is compared after a tone map.
NERV_DEFAULTS = {"fine_loss_mult": 1.0, "charbonnier_loss_mult": 0.0, "visibility_loss_mult": 6.7}

NERV_FIELDS = {"hash": "zipnerf", "mlp": "mipnerf360"}

# What an unbounded capture wants of it: all of space, near and far, behind everything a wall.
UNBOUNDED = {"colmap", "nerfstudio"}

UNBOUNDED_DEFAULTS = {
    "mipnerf360": {
        "lindisp": False, "contraction": True, "ray_warp": "reciprocal", "basis": "icosahedron",
        "max_deg": 12, "opaque_background": True,
    },
    "zipnerf": {
        "lindisp": False, "contraction": True, "ray_warp": "power", "opaque_background": True,
    },
}

# Before a plain background, which is what most pixels show, absolute errors are least in an empty
# scene, and mipnerf360 stays there. Zip-NeRF's grids decay the more on Blender's scenes.
BOUNDED_DEFAULTS = {
    "mipnerf360": {"fine_loss_mult": 1.0, "charbonnier_loss_mult": 0.0},
    "zipnerf": {"grid_decay_loss_mult": 10.0},
    "nerv": NERV_DEFAULTS,
}

# Where photographs look one way, all light comes from something: else dark things become
# transparent before black (fern by zipnerf: 24.1 dB with it, 23.1 dB without, and wrong distances).
LLFF_DEFAULTS = {
    "mipnerf360": {"opaque_background": True}, "zipnerf": {"opaque_background": True},
}

# The official Blender configuration draws each batch from a single image.
PAPER_BLENDER_DEFAULTS = {"batching": "single_image"}

# Flags that say where a run lies and how it is called, and are no property of the run.
PLACE_FLAGS = {"config", "preset", "run", "log_dir", "exp_name", "continue_training"}

# What the reader of a finished run may set, and what a continued run may change: where the data
# lie now, the device, and how pictures are made. All else comes from the checkpoint.
PICTURE_FLAGS = {
    "data_dir", "scene", "device", "split", "chunk", "lpips", "save_images", "path", "frames",
    "fps", "width", "height", "zoom", "dolly", "skip_empty", "visualize_depth", "visualize_normals",
    "visualize_components", "relight", "environment", "grid_size", "sigma_threshold", "x_range",
    "y_range", "z_range", "mesh_format", "keep_unseen", "min_component",
}

CONTINUABLE = PICTURE_FLAGS | {
    "log_every", "eval_every", "save_every", "keep_checkpoints", "max_steps", "final_eval",
    "pixel_memory", "micro_batch", "compile",
}

# How pictures of a nerv are shaded, which training depends on too: a reader alone may change it.
SHADING_FLAGS = {"shade_at", "bounce_directions", "march_shadows"}

READER_FLAGS = PICTURE_FLAGS | SHADING_FLAGS

# What only some configs read: for which it is, whether a config is one, and the flags.
ONLY_FOR = [
    ("--model mipnerf", lambda config: config.model == "mipnerf",
     {"num_levels", "lindisp", "resample_padding", "density_noise", "coarse_loss_mult"}),
    ("models with proposals, which mipnerf has not", lambda config: config.model != "mipnerf",
     {"ray_warp", "prop_rounds", "prop_samples", "prop_hidden", "prop_depth", "anneal_slope",
      "dilation_bias", "dilation_mult"}),
    ("networks, not hash grids", lambda config: not has_grids(config),
     {"skip", "basis", "min_deg", "max_deg"}),
    ("hash grids: --model zipnerf, or nerv with --nerv_field hash",
     lambda config: has_grids(config),
     {"prop_finest", "prop_features", "pulse_width", "grid_coarsest", "grid_finest",
      "grid_log2_size", "grid_features", "num_multisamples", "downweight", "grid_lr_mult"}),
    ("--model nerv", lambda config: config.model == "nerv",
     {"nerv_field", "shade_at", "visibility_features", "visibility_hidden", "visibility_depth",
      "bounce_directions", "march_shadows", "light_samples", "geometry_share",
      "visibility_share", "visualize_components", "relight", "environment"}),
    ("--model nerv with hash grids", lambda config: nerv_geometry(config) == "zipnerf",
     {"visibility_finest"}),
    ("--dataset_name nerv", lambda config: config.dataset_name == "nerv",
     {"lights", "light_intensity"}),
    ("--lights point", lambda config: config.lights == "point", {"light_intensity"}),
    ("formats that do not say which views are for tests",
     lambda config: config.dataset_name in {"llff", *UNBOUNDED}, {"llffhold"}),
    ("--path zoom", lambda config: config.path == "zoom", {"zoom", "dolly"}),
]


def get_config(argv=None):
    """Parse flags (`sys.argv[1:]` when None) into an `argparse.Namespace` with every field set.

    Raises UserError for a `--config` file that cannot be read or holds an unknown key; argparse
    itself exits with status 2 for a wrong command line.
    """
    parser = _build_parser()
    layers = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "dataset_name", "model", "nerv_field", "config"):
        layers.add_argument(f"--{name}")
    layers.add_argument("--spherify", action=argparse.BooleanOptionalAction)
    early, _ = layers.parse_known_args(argv)

    from_file = _read_config_file(early.config, parser) if early.config else {}
    for name in ("preset", "dataset_name", "model"):
        typed, read = getattr(early, name), from_file.get(name)
        if early.config and typed not in (None, read):
            parser.error(f"--{name} {typed} was given, but --config {early.config} holds the "
                         f"settings of {read}; drop one of the two")
    preset = early.preset or from_file.get("preset")
    dataset = early.dataset_name or from_file.get("dataset_name")
    of_preset = PRESETS.get(preset, {})
    dataset = dataset or of_preset.get("dataset_name", "blender")
    spherify = from_file.get("spherify") if early.spherify is None else early.spherify
    parser.set_defaults(**DATASET_DEFAULTS.get(dataset, {}))
    if dataset == "llff" and spherify:
        parser.set_defaults(**SPHERIFY_DEFAULTS)
    for name in ("model", "nerv_field"):
        typed, meant = getattr(early, name), of_preset.get(name)
        if None not in (typed, meant) and typed != meant:
            parser.error(f"--preset {preset} is for --{name} {meant}, and --{name} {typed} was "
                         "given; drop one of the two")
    model = early.model or from_file.get("model") or of_preset.get("model")
    geometry = model
    if model == "nerv":
        field = from_file.get("nerv_field") or of_preset.get("nerv_field", "hash")
        geometry = NERV_FIELDS.get(early.nerv_field or field)
    parser.set_defaults(**MODEL_DEFAULTS.get(geometry, {}))
    if dataset in UNBOUNDED:
        parser.set_defaults(**UNBOUNDED_DEFAULTS.get(model, {}))
    else:
        parser.set_defaults(**BOUNDED_DEFAULTS.get(model, {}))
    if dataset == "llff":
        parser.set_defaults(**LLFF_DEFAULTS.get(model, {}))
    parser.set_defaults(**of_preset)
    if preset == "paper" and dataset == "blender":
        parser.set_defaults(**PAPER_BLENDER_DEFAULTS)
    parser.set_defaults(**from_file)
    config = parser.parse_args(argv)
    _check_together(config, parser)
    return config


def _check_together(config, parser):
    """End with status 2 where flags contradict one another."""
    if config.min_deg >= config.max_deg:
        parser.error(f"--min_deg {config.min_deg} must be below --max_deg {config.max_deg}")
    coarse = config.coarse_loss_mult and config.model == "mipnerf" and config.num_levels > 1
    if not (config.fine_loss_mult or config.charbonnier_loss_mult or coarse):
        parser.error("no colour loss has a weight above 0: nothing is learnt; set --fine_loss_mult")
    for name in ("antialiased_interlevel_loss_mult", "grid_decay_loss_mult"):
        if getattr(config, name) and not has_grids(config):
            parser.error(f"--{name} {getattr(config, name):g} is for hash grids: --model zipnerf, "
                         "or nerv with --nerv_field hash")
    if config.model == "nerv" and config.dataset_name != "nerv":
        parser.error(f"--model nerv wants to know the lights, which --dataset_name "
                     f"{config.dataset_name} does not tell; give --dataset_name nerv")
    for name in ("contraction", "opaque_background"):
        if config.model == "nerv" and getattr(config, name):
            parser.error(f"--{name} is not for --model nerv, whose light comes from outside")
    if config.model == "nerv" and config.ray_warp == "reciprocal":
        parser.error("--ray_warp reciprocal is not for --model nerv: it marches from surfaces on, "
                     "at t = 0, by which this divides")
    if config.visibility_loss_mult and config.model != "nerv":
        parser.error(f"--visibility_loss_mult {config.visibility_loss_mult:g} is for --model nerv")
    if config.geometry_share + config.visibility_share >= 1:
        parser.error(f"--geometry_share {config.geometry_share:g} and --visibility_share "
                     f"{config.visibility_share:g} leave no steps for the surfaces; together they "
                     "must be below 1")
    if config.model == "nerv" and first_lit_step(config) >= config.max_steps:
        parser.error(f"--max_steps {config.max_steps} ends before surfaces are shaded; give more "
                     "of them, or a smaller --geometry_share or --visibility_share")
    if config.ray_warp == "reciprocal" and config.near == 0 and config.model != "mipnerf":
        parser.error("--ray_warp reciprocal divides by near; give a --near above 0, or another "
                     "--ray_warp")
    if has_grids(config):
        for name in ("prop_finest", "pulse_width"):
            values = getattr(config, name)
            if len(values) != config.prop_rounds:
                parser.error(f"--{name} has {len(values)} numbers, and --prop_rounds is "
                             f"{config.prop_rounds}; give one for each round")
        if min(config.grid_finest, *config.prop_finest) < config.grid_coarsest:
            parser.error(f"--grid_coarsest {config.grid_coarsest} must not be above --grid_finest "
                         f"{config.grid_finest} and --prop_finest {config.prop_finest}")
        if config.model == "nerv" and config.visibility_finest < config.grid_coarsest:
            parser.error(f"--grid_coarsest {config.grid_coarsest} must not be above "
                         f"--visibility_finest {config.visibility_finest}")
    if config.num_samples < 2 and config.model != "mipnerf":
        parser.error(f"--num_samples {config.num_samples} must be at least 2 for {config.model}")
    if config.dataset_name != "llff" and (config.ndc or config.spherify):
        parser.error("--ndc and --spherify are for --dataset_name llff")
    if config.environment and config.relight != "environment":
        parser.error("--environment is for --relight environment")
    if config.spherify and config.ndc:
        parser.error("--spherify and --ndc exclude each other: NDC is for forward-facing captures")


def has_grids(config):
    """Whether the fields are hash grids; else they are networks."""
    return "zipnerf" in (config.model, nerv_geometry(config))


def nerv_geometry(config):
    """The model whose geometry a NeRV has; None for other models."""
    return NERV_FIELDS[config.nerv_field] if config.model == "nerv" else None


def first_lit_step(config):
    """The number of steps after which a NeRV's surfaces are shaded."""
    return steps_before(config.geometry_share + config.visibility_share, config.max_steps)


def steps_before(share, max_steps):
    """The fewest steps that are a share of all."""
    # Rounded at first: 0.55 of 9,000 is a little more than 4,950 to a computer.
    return math.ceil(round(share * max_steps, 6))


def check_flags():
    """Answer --help and a wrong command line at once, before a script imports what is heavy."""
    try:
        get_config()
    except UserError:
        pass  # The script says it, when it reads its flags.


def typed_flags(argv=None):
    """Names of the flags that stand on the command line itself, presets and files left out."""
    parser = _build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    return set(vars(parser.parse_args(argv)))


def default_config(**changes):
    """The configuration of an empty command line, with `changes` applied (for tests and tools)."""
    config = get_config([])
    for name, value in changes.items():
        if not hasattr(config, name):
            raise UserError(f"there is no flag --{name}; `python train.py --help` lists them.")
        setattr(config, name, value)
    return config


def run_folder(config):
    """The run folder: `--run`, or `--exp_name` in `--log_dir`, or <dataset>_<scene>_<model>."""
    if config.run:
        return Path(config.run)
    if config.exp_name:
        return Path(config.log_dir) / config.exp_name
    name = Path(resolve_scene(config)).name
    return Path(config.log_dir) / f"{config.dataset_name}_{name}_{config.model}"


def resolve_scene(config):
    """The scene's name or absolute path; where none was given, lego if downloaded, else the demo.

    It is kept in `config.scene`, so that a run finds its data from any folder.
    """
    if config.scene is None:
        lego = Path(config.data_dir) / "nerf_synthetic" / "lego"
        config.scene = "lego" if config.dataset_name == "blender" and lego.is_dir() else "demo"
    elif os.sep in config.scene or Path(config.scene).is_dir():
        config.scene = str(Path(config.scene).absolute())
    return config.scene


def as_name(value):
    """A number as part of a file's name: equal for equal numbers alone."""
    return repr(value).removesuffix(".0")


def shading_name(config, own):
    """What tells pictures that are shaded otherwise than by a run's `own` flags from those of the
    run, as part of a file's name; empty where they are shaded alike."""
    words = {"shade_at": config.shade_at, "bounce_directions": f"bounce{config.bounce_directions}",
             "march_shadows": "marched" if config.march_shadows else "unmarched"}
    return "".join(f"_{word}" for name, word in words.items()
                   if getattr(config, name) != getattr(own, name))


def saved_flags(config):
    """The flags that make a run what it is, as a `dict`: what checkpoints and config.json keep."""
    return {name: value for name, value in vars(config).items() if name not in PLACE_FLAGS}


def apply_typed_flags(config, flags, argv, changeable):
    """Put the flags that were typed (`argv`) into a run's `config`.

    Raises UserError for one outside `changeable` that differs from the run's.
    """
    for name in sorted(typed_flags(argv) - PLACE_FLAGS):
        old, new = getattr(config, name), getattr(flags, name)
        if old != new and name not in changeable:
            raise UserError(f"--{name} {new} was given, but this run was started with {old} and "
                            "keeps it; leave the flag out, or start a new run.")
        setattr(config, name, new)
    check_typed_flags(config, argv)


def check_typed_flags(config, argv=None):
    """Raise UserError for a flag that was typed (`argv`) and that nothing reads under `config`."""
    typed = typed_flags(argv)
    for readers, is_one, names in ONLY_FOR:
        for name in sorted(typed & names):
            if not is_one(config):
                raise UserError(f"--{name} is for {readers}, and nothing would read it here; leave "
                                "it out.")


def _read_config_file(path, parser):
    try:
        values = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"--config {path} cannot be read ({error}); give a JSON file.") from None
    except ValueError as error:
        raise UserError(f"--config {path} is not valid JSON: {error}.") from None
    known = {action.dest for action in parser._actions} - {"help"}
    unknown = sorted(set(values) - known) if isinstance(values, dict) else [type(values).__name__]
    if unknown:
        raise UserError(
            f"--config {path} holds {', '.join(unknown)}, which no flag is called; "
            "the keys are the flags' names as `python train.py --help` lists them."
        )
    for action in parser._actions:
        if action.dest in values:
            _check_value(action, values[action.dest], path)
    return values


def _check_value(action, value, path):
    """Hold a value of a config file to the rules of its flag."""
    if value is None and action.default is None:
        return
    if isinstance(action, argparse.BooleanOptionalAction) != isinstance(value, bool):
        raise UserError(f"--config {path} has {action.dest} = {value!r}; true and false are for "
                        "switches, and for nothing else.")
    if action.nargs in (2, "+"):
        counts = [2] if action.nargs == 2 else range(1, 100)
        if not isinstance(value, list) or len(value) not in counts:
            wanted = "two numbers" if action.nargs == 2 else "numbers"
            raise UserError(f"--config {path} has {action.dest} = {value!r}; {wanted} in "
                            "brackets are wanted.")
        for part in value:
            if isinstance(part, bool) or not isinstance(part, int | float):
                raise UserError(f"--config {path} has {action.dest} = {value!r}; {part!r} is no "
                                "number.")
            _check_value(argparse.Action([], action.dest, type=action.type), part, path)
        return
    if action.type is None and not isinstance(value, bool | str):
        raise UserError(f"--config {path} has {action.dest} = {value!r}; a text is wanted.")
    try:
        parsed = action.type(str(value)) if action.type else value
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"--config {path} has {action.dest} = {value!r}: {error}.") from None
    if action.choices and parsed not in action.choices:
        raise UserError(f"--config {path} has {action.dest} = {value!r}; one of "
                        f"{', '.join(map(str, action.choices))} is wanted.")


def _build_parser():
    parser = argparse.ArgumentParser(
        description="mip-NeRF in PyTorch. The scripts share these flags.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    # argparse takes -1. and -1e3 for flags, not for numbers.
    parser._negative_number_matcher = re.compile(r"^-(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$")
    _add_run_flags(parser.add_argument_group("run"))
    _add_data_flags(parser.add_argument_group("data"))
    _add_model_flags(parser.add_argument_group("model"))
    _add_training_flags(parser.add_argument_group("training"))
    _add_logging_flags(parser.add_argument_group("logging and checkpoints"))
    _add_evaluation_flags(parser.add_argument_group("evaluation"))
    _add_video_flags(parser.add_argument_group("videos"))
    _add_mesh_flags(parser.add_argument_group("meshes"))
    return parser


def positive_int(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} was given, a whole number above 0 is wanted")
    return value


def _positive_float(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} was given, a number above 0 is wanted")
    return value


def _nonnegative(kind):
    def parse(text):
        value = kind(text)
        if not 0 <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} was given, a number of at least 0 is wanted")
        return value

    return parse


def _seed(text):
    value = _nonnegative_int(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} was given, a number below 2^63 is wanted")
    return value


def _between(kind, low, high):
    def parse(text):
        value = kind(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text} was given, a number from {low} to {high} is wanted")
        return value

    return parse


def _finite_float(text):
    value = float(text)
    if not abs(value) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} was given, a finite number is wanted")
    return value


_nonnegative_int = _nonnegative(int)

_nonnegative_float = _nonnegative(float)

_side = _between(int, 1, 16384)

_grid_size = _between(int, 8, 2048)

_coordinate = _between(float, -1e6, 1e6)

_share = _between(float, 0, 1)


def _add_run_flags(group):
    flag = group.add_argument
    flag("--preset", choices=sorted(PRESETS), help="a set of defaults: 'paper' is the official "
         "configuration, 'demo' is sized for two CPU cores, 'paper360', 'demo360', 'paperzip', "
         "'demozip', 'demonerv' and 'demonervmlp' are the like of the other models, 'debug' runs "
         "in seconds")
    flag("--config", metavar="FILE", help="JSON file of flags, such as a run's config.json")
    flag("--log_dir", default="log", help="where run folders are made")
    flag("--exp_name", help="name of the run folder (<dataset>_<scene>_<model> if not given)")
    flag("--run", metavar="FOLDER", help="an existing run folder, for the scripts that read one")
    flag("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
         help="'auto' takes CUDA, then Apple's MPS, then the CPU")
    flag("--seed", type=_seed, default=0,
         help="weights, pixels drawn, jitter and noise all follow from it")
    flag("--precision", choices=["auto", "fp32", "bf16"], default="auto",
         help="of the linear layers; 'auto' is bf16 where the device has instructions for it")


def _add_data_flags(group):
    flag = group.add_argument
    flag("--data_dir", default="data", help="folder that holds the datasets")
    flag("--dataset_name", choices=sorted(DATASET_DEFAULTS), default="blender",
         help="format of the scene")
    flag("--scene", help="a scene's name, or the path of its folder (if not given: lego when it "
         "has been downloaded, else the procedural demo scene)")
    flag("--factor", type=positive_int, default=1, help="downscaling of the images")
    flag("--batching", choices=["all_images", "single_image"], default="all_images",
         help="draw a batch's pixels from all images, or from one image a step")
    flag("--pixel_memory", type=_nonnegative_float, default=4.0, metavar="GB",
         help="pictures that are larger in all are read from a file made beside the scene, of "
         "which only what is touched takes memory; the ranks of a machine share it")
    flag("--lights", choices=["point", "env"], default="point",
         help="of a nerv scene, the pictures under point lights, or under environments")
    flag("--light_intensity", type=_positive_float,
         help="of a nerv scene's lights, by which their weights are multiplied (the files' own, if "
         "not given, or what fits the released scenes)")
    flag("--white_bkgd", action=argparse.BooleanOptionalAction, default=True,
         help="composite on white (otherwise on black)")
    flag("--near", type=_nonnegative_float, help="nearest t of a ray (the dataset's own if not "
         "given)")
    flag("--far", type=_positive_float, help="farthest t of a ray (the dataset's own if not given)")
    flag("--ndc", action=argparse.BooleanOptionalAction, default=False,
         help="normalized device coordinates, for forward-facing LLFF scenes")
    flag("--spherify", action=argparse.BooleanOptionalAction, default=False,
         help="LLFF captures that face inward: centre and scale the cameras, no NDC")
    flag("--llffhold", type=positive_int, default=8, help="every n-th view is a test view, in "
         "formats that do not say which are")


def _add_model_flags(group):
    flag = group.add_argument
    flag("--model", choices=["mipnerf", "mipnerf360", "zipnerf", "nerv"], default="mipnerf",
         help="which model to train")
    flag("--num_levels", type=positive_int, default=2, help="sampling levels, coarse to fine")
    flag("--num_samples", type=positive_int, default=128, help="intervals per ray and level")
    flag("--hidden", type=positive_int, default=256, help="width of the trunk")
    flag("--depth", type=positive_int, default=8, help="layers of the trunk")
    flag("--skip", type=positive_int, default=4,
         help="the encoding is concatenated again after every layer with this index, 0 excepted")
    flag("--bottleneck", type=positive_int,
         help="width between trunk and view branch (that of the trunk if not given)")
    flag("--view_hidden", type=positive_int, default=128, help="width of the view branch")
    flag("--view_depth", type=positive_int, default=1, help="layers of the view branch")
    flag("--view_skip", type=positive_int, default=4, help="the view branch's inputs are "
         "concatenated again after every layer of it with this index, 0 excepted")
    flag("--use_viewdirs", action=argparse.BooleanOptionalAction, default=True,
         help="colour depends on the view direction")
    flag("--min_deg", type=_nonnegative_int, default=0, help="lowest frequency 2^n of positions")
    flag("--max_deg", type=positive_int, default=16, help="one above the highest frequency 2^n")
    flag("--view_deg", type=positive_int, default=4, help="frequencies of view directions")
    flag("--ray_shape", choices=["cone", "cylinder"], default="cone", help="shape of a pixel's ray")
    flag("--lindisp", action=argparse.BooleanOptionalAction, default=False,
         help="coarse samples linear in disparity (otherwise in distance)")
    flag("--resample_padding", type=_nonnegative_float, default=0.01,
         help="added to the blurred weights before the fine samples are drawn")
    flag("--density_bias", type=_finite_float, default=-1.0,
         help="added to raw density before softplus")
    flag("--density_noise", type=_nonnegative_float, default=0.0,
         help="standard deviation of normal noise on raw density while training")
    flag("--weight_init", choices=["glorot", "he"], default="glorot",
         help="how weights begin, uniform in both")
    flag("--contraction", action=argparse.BooleanOptionalAction, default=False,
         help="contract all of space into a ball of radius 2, for unbounded scenes")
    flag("--basis", choices=["axes", "icosahedron"], default="axes",
         help="directions along which positions are encoded")
    flag("--opaque_background", action=argparse.BooleanOptionalAction, default=False,
         help="nothing passes a ray's last interval")
    flag("--random_bkgd", action=argparse.BooleanOptionalAction, default=False,
         help="while training, a random colour behind each ray, so that nothing half "
         "transparent fits")
    flag("--ray_warp", choices=["linear", "reciprocal", "piecewise", "power"], default="linear",
         help="curve of distances along which mipnerf360 and zipnerf sample")
    flag("--prop_rounds", type=_between(int, 1, 8), default=2,
         help="proposal rounds of mipnerf360 and zipnerf")
    flag("--prop_samples", type=_between(int, 2, 4096), default=64,
         help="intervals per ray in a proposal round")
    flag("--prop_hidden", type=positive_int, default=256, help="width of the proposal network")
    flag("--prop_depth", type=positive_int, default=4, help="layers of the proposal network")
    flag("--anneal_slope", type=_positive_float, default=10.0,
         help="how soon the proposals' weights count in full")
    flag("--dilation_bias", type=_nonnegative_float, default=0.0025,
         help="how far in s proposals are widened")
    flag("--dilation_mult", type=_nonnegative_float, default=0.5,
         help="and how far in average intervals of the rounds before")
    flag("--grid_coarsest", type=_between(int, 2, 1024), default=16,
         help="cells along a side of zipnerf's coarsest grids")
    flag("--grid_finest", type=_between(int, 2, 1 << 20), default=8192,
         help="and at most of its finest grid; each level has twice the cells of the one before")
    flag("--grid_log2_size", type=_between(int, 4, 24), default=21,
         help="a level has at most 2^n entries; corners of finer levels share them by a hash")
    flag("--grid_features", type=_between(int, 1, 16), default=4, help="numbers per entry")
    flag("--prop_finest", type=_between(int, 2, 1 << 20), nargs="+", default=[512, 2048],
         metavar="N", help="cells along a side of the finest grid of each proposal round")
    flag("--prop_features", type=_between(int, 1, 16), default=1,
         help="numbers per entry of the proposals' grids")
    flag("--num_multisamples", type=int, choices=[1, 6], default=6,
         help="points of an interval at which zipnerf reads its grids; 1 for speed")
    flag("--downweight", action=argparse.BooleanOptionalAction, default=True,
         help="levels of a grid count the less, the smaller their cells are beside the pixel")
    flag("--pulse_width", type=_positive_float, nargs="+", default=[0.03, 0.003], metavar="S",
         help="how far in s the finest weights are blurred for the loss of each proposal round")
    flag("--rgb_padding", type=_nonnegative_float, default=0.001,
         help="how far the sigmoid of colours reaches beyond [0, 1]")
    flag("--nerv_field", choices=sorted(NERV_FIELDS), default="hash",
         help="nerv's fields: hash grids, or networks as in the paper")
    flag("--shade_at", choices=["samples", "surface"], default="samples",
         help="nerv shades all samples that count, or each ray's mean surface alone, which is "
         "faster, above all under environments")
    flag("--visibility_finest", type=_between(int, 2, 1 << 20), default=64,
         help="cells along a side of the finest grid of nerv's visibility: finer ones learn the "
         "directions that were drawn by heart")
    flag("--visibility_features", type=positive_int, default=8,
         help="what nerv's visibility keeps of a position, before it is told the direction")
    flag("--visibility_hidden", type=positive_int, default=128,
         help="width of nerv's visibility field behind that")
    flag("--visibility_depth", type=positive_int, default=4, help="and its layers")
    flag("--bounce_directions", type=positive_int, default=128,
         help="directions from which nerv takes light that was reflected once before")
    flag("--march_shadows", action=argparse.BooleanOptionalAction, default=False,
         help="in nerv's pictures, shadows of direct light from the density itself: sharper, and "
         "one more ray for each light and pixel")
    flag("--light_samples", type=positive_int, default=32,
         help="of more lights nerv takes a choice of so many, while training and for light that "
         "was reflected before")


def _add_training_flags(group):
    flag = group.add_argument
    flag("--max_steps", type=positive_int, default=200_000, help="optimisation steps")
    flag("--batch_size", type=positive_int, default=2048, help="rays per step")
    flag("--micro_batch", type=positive_int,
         help="rays carried through the model at once; their gradients add up (if not given: 64 of "
         "networks on a CPU, where they stay in its cache, else 2048)")
    flag("--compile", action=argparse.BooleanOptionalAction, default=False,
         help="train with torch.compile, for GPUs: on CPUs it was not faster")
    flag("--lr_init", type=_positive_float, default=5e-4, help="first learning rate")
    flag("--lr_final", type=_positive_float, default=5e-6, help="last learning rate")
    flag("--lr_delay_steps", type=_nonnegative_int, default=2500, help="steps of warm-up")
    flag("--lr_delay_mult", type=_positive_float, default=0.01,
         help="the warm-up starts from this multiple of the rate")
    flag("--fine_loss_mult", type=_nonnegative_float, default=1.0,
         help="weight of the finest level's colour loss")
    flag("--coarse_loss_mult", type=_nonnegative_float, default=0.1,
         help="weight of the coarser levels' colour loss")
    flag("--charbonnier_loss_mult", type=_nonnegative_float, default=0.0,
         help="weight of the finest level's smoothed absolute error")
    flag("--interlevel_loss_mult", type=_nonnegative_float, default=0.0,
         help="weight of what the proposals fail to cover")
    flag("--antialiased_interlevel_loss_mult", type=_nonnegative_float, default=0.0,
         help="weight of what zipnerf's proposals fail to cover")
    flag("--grid_decay_loss_mult", type=_nonnegative_float, default=0.0,
         help="weight of the mean squares of the grids' levels")
    flag("--distortion_loss_mult", type=_nonnegative_float, default=0.0,
         help="weight of the spread of a ray's mass")
    flag("--visibility_loss_mult", type=_nonnegative_float, default=0.0,
         help="weight of how wrong nerv's visibility field is about its density")
    flag("--geometry_share", type=_share, default=0.4,
         help="share of nerv's steps that give the geometry, before visibility is learnt")
    flag("--visibility_share", type=_share, default=0.15,
         help="and of those in which visibility is learnt too, before surfaces are shaded")
    flag("--grid_lr_mult", type=_positive_float, default=1.0,
         help="the grids' learning rate is so many times the others'")
    flag("--adam_beta2", type=_between(float, 0.5, 0.99999), default=0.999,
         help="how long Adam remembers squared gradients")
    flag("--adam_eps", type=_positive_float, default=1e-8, help="Adam's epsilon")
    flag("--grad_max_norm", type=_nonnegative_float, default=0.0,
         help="gradients are scaled down to this norm (0: never)")


def _add_logging_flags(group):
    flag = group.add_argument
    flag("--log_every", type=positive_int, default=100, help="steps between scalars")
    flag("--eval_every", type=_nonnegative_int, default=5000,
         help="steps between validation pictures (0: none)")
    flag("--save_every", type=positive_int, default=5000, help="steps between checkpoints")
    flag("--keep_checkpoints", type=positive_int, default=2, help="newest checkpoints kept")
    flag("--continue_training", action=argparse.BooleanOptionalAction, default=False,
         help="go on from the run folder's newest valid checkpoint")
    flag("--final_eval", action=argparse.BooleanOptionalAction, default=True,
         help="score the test split when training ends")


def _add_evaluation_flags(group):
    flag = group.add_argument
    flag("--split", choices=["train", "val", "test"], default="test", help="split to be scored")
    flag("--chunk", type=positive_int, help="rays rendered at once (if not given: what stays in "
         "a CPU's cache, or fills a GPU)")
    flag("--lpips", choices=["none", "vgg", "alex"], default="none",
         help="also LPIPS with this backbone (pip install lpips; fetches weights)")
    flag("--save_images", action=argparse.BooleanOptionalAction, default=True,
         help="write rgb, depth and normal pictures and a contact sheet")


def _add_video_flags(group):
    flag = group.add_argument
    flag("--path", choices=["auto", "ellipse", "spherical", "spiral", "zoom", "still"],
         default="auto",
         help="through the cameras; a circle about the scene (either an arc for cameras that look "
         "one way); a helix from its equator to its pole (LLFF's spiral); standing still and "
         "zooming; standing still; or, by how the cameras stand, ellipse or spiral")
    flag("--frames", type=_between(int, 1, 100_000), default=120, help="frames of the video")
    flag("--fps", type=_between(int, 1, 1000), default=30, help="frames per second")
    flag("--width", type=_side, help="of the frames in pixels (in proportion to --height, "
         "or the training pictures' own, if not given)")
    flag("--height", type=_side, help="of the frames in pixels (likewise)")
    flag("--zoom", type=_between(float, 1e-3, 1e3), default=2.0,
         help="the zoom path goes to so many times the focal length and back; below 1 it shows "
         "what no training view may have seen")
    flag("--dolly", action=argparse.BooleanOptionalAction, default=False,
         help="on the zoom path move the camera instead of changing the focal length")
    flag("--skip_empty", action=argparse.BooleanOptionalAction, default=True,
         help="videos: first find out where the scene is empty, and render the rest alone (scores "
         "are always of whole pictures)")
    flag("--visualize_depth", action=argparse.BooleanOptionalAction, default=False,
         help="also a video of distances")
    flag("--visualize_normals", action=argparse.BooleanOptionalAction, default=False,
         help="also a video of world normals")
    flag("--visualize_components", action=argparse.BooleanOptionalAction, default=False,
         help="of a nerv, also videos of albedo, roughness, normals of the density, visibility, "
         "direct and indirect light")
    flag("--relight", choices=["none", "light", "environment"], default="none",
         help="of a nerv: the first training picture's lights; one that goes round the scene; an "
         "environment that turns")
    flag("--environment", metavar="FILE", help="equirectangular map of linear radiance (OpenEXR, "
         "or PNG of 16 bits) that turns (the first training picture's own if not given)")


def _add_mesh_flags(group):
    flag = group.add_argument
    flag("--grid_size", type=_grid_size, default=256,
         help="grid points along the longest side of the box")
    flag("--sigma_threshold", type=_positive_float,
         help="density of the surface (if not given: what nine of ten training rays exceed where "
         "they end)")
    for axis in "xyz":
        flag(f"--{axis}_range", type=_coordinate, nargs=2, metavar=("FROM", "TO"),
             help=f"{axis} of the box, in the coordinates of rays, which are NDC for NDC scenes "
             "(if not given: what the training views see)")
    flag("--mesh_format", choices=["ply", "obj", "glb"], default="ply", help="file format")
    flag("--keep_unseen", action=argparse.BooleanOptionalAction, default=False,
         help="keep surfaces that no training view sees, or tells from the background")
    flag("--min_component", type=_share, default=0.01,
         help="pieces with less than this share of the largest one's faces are dropped")
