"""Every flag, once; `get_config` resolves a command line into an immutable `Config`.

A value is the last that applies of: the flag's default below, the rows of `presets.DEFAULTS` whose
condition holds, the `--config` file, the command line. All scripts read the same flags.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from contradictions import contradictions
from presets import DEFAULTS, NERV_GEOMETRY, PRESETS, UNBOUNDED
from runtime import flags, process
from runtime.errors import UserError, exit_on_user_error, run_script  # noqa: F401  (re-exported)
from runtime.flags import PLACE, RENDER, RESUME, SHADE, START, Flag, OneOf, freeze, integer, number
from runtime.help_page import Script, print_help
from runtime.run_folder import run_folder, scene_of  # noqa: F401  (re-exported)

# Conditions under which flags are read, and their names in messages.
MIPNERF = {"geometry": "mipnerf"}, "--model mipnerf"
PREDICTED_NORMALS = {"model": "mipnerf360"}, "--model mipnerf360"
MIPNERF360 = {"geometry": "mipnerf360"}, "the MLPs of --model mipnerf360 or nerv"
PROPOSALS = {"geometry": ("mipnerf360", "zipnerf")}, "models with proposals, not mipnerf"
MLPS = {"geometry": ("mipnerf", "mipnerf360")}, "MLPs, not hash grids"
GRIDS = {"geometry": "zipnerf"}, "hash grids: --model zipnerf, or nerv with --nerv_field hash"
NERV = {"model": "nerv"}, "--model nerv"
NERV_GRIDS = {"model": "nerv", "geometry": "zipnerf"}, "--model nerv with hash grids"
LIT_SCENES = {"dataset_name": "nerv"}, "--dataset_name nerv"
POINT_LIGHTS = {"dataset_name": "nerv", "lights": "point"}, "--dataset_name nerv --lights point"
LLFF = {"dataset_name": "llff"}, "--dataset_name llff"
CAPTURES = {"dataset_name": ("llff", "colmap", "nerfstudio")}, "captures, not synthetic scenes"
SEE_THROUGH = {"opaque_background": False}, "scenes without an opaque background"
ZOOM = {"path": "zoom"}, "--path zoom"
DENSITY_MESH = {"method": "density"}, "--method density"
WITHOUT_TEXTURE = {"texture": None}, "meshes without --texture"
REFINED = {"refine_cameras": True}, "--refine_cameras"
LPIPS = {"lpips": ("vgg", "alex")}, "--lpips vgg or alex"
UNLIT = {"model": ("mipnerf360", "zipnerf")}
WITHOUT_LIGHT = {"model": ("mipnerf", "mipnerf360", "zipnerf")}
UNLIT_MODELS = WITHOUT_LIGHT, "--model mipnerf, mipnerf360 or zipnerf"
EMBEDDED = UNLIT, "--model mipnerf360 or zipnerf"

positive_int = integer(1)
# Widths, layers and frequencies, beyond which a model fits no machine and its encoding no float32.
width, layers, frequency = integer(1, 16384), integer(1, 128), integer(1, 64)
intervals, rays = integer(1, 4096), integer(1, 1 << 20)
positive, not_negative, fraction = number(above=0), number(0), number(0, 1)
resolution = integer(2, 1 << 20)
camera_path = OneOf(("auto", "ellipse", "spherical", "spiral", "zoom", "still"),
                    r".*\.json|[^,]+(,[^,]+)+",
                    "a file that ends with .json, or names of training images like a,b,c")

FLAGS = {
    "run": [
        Flag("preset", PRESETS, None, "paper: as published; gpu: for one 8-12 GB GPU; "
             "laptop: minutes on two CPU cores; debug: seconds", scope=START,
             unset="gpu, or laptop on a CPU"),
        Flag("config", str, None, "JSON file of flags, such as a run's config.json",
             metavar="FILE", scope=PLACE, shown=False),
        Flag("log_dir", str, "log", "folder of all runs", metavar="FOLDER", scope=PLACE),
        Flag("exp_name", str, None, "name of the run folder", metavar="NAME", scope=PLACE,
             unset="<dataset>_<scene>_<model>"),
        Flag("run", str, None, "an existing run folder", metavar="FOLDER", scope=PLACE),
        Flag("device", ("auto", "cpu", "cuda", "mps"), "auto", "auto: CUDA, else MPS, else CPU",
             scope=RENDER),
        Flag("seed", integer(0, 2**63 - 1), 0, "determines weights, pixels, jitter and noise"),
        Flag("precision", ("auto", "fp32", "bf16"), "auto", "of linear layers; auto: bf16 "
             "where fast (zipnerf: on GPUs)"),
        Flag("chunk", positive_int, None, "rays rendered at once", scope=RENDER,
             unset="as many as fit"),
    ],
    "data": [
        Flag("data_dir", str, "data", "folder of the datasets", metavar="FOLDER", scope=RENDER),
        Flag("dataset_name", ("blender", "colmap", "llff", "multicam", "nerfstudio", "nerv"),
             "blender", "format of the data"),
        Flag("scene", str, None, "name of the scene, or path of its folder (./fox)",
             metavar="NAME", scope=RENDER),
        Flag("factor", positive_int, 1, "downsampling factor of the images"),
        Flag("scales", (1, 2, 4, 8), (1,), "train and score at these downsampling factors "
             "together, beginning with 1", nargs="+", only=CAPTURES, shown=False),
        Flag("batching", ("all_images", "single_image"), "all_images", "sample a batch from all "
             "images, or from one image per step", shown=False),
        Flag("pixel_memory", not_negative, 4.0, "memory budget for pixels per machine; larger "
             "sets are memory-mapped", metavar="GB", scope=RESUME, shown=False),
        Flag("lights", ("point", "env"), "point", "images under point lights or environment maps",
             only=LIT_SCENES),
        Flag("light_intensity", positive, None, "scale of the point lights", only=POINT_LIGHTS,
             unset="the value in the files, or that of the released scenes", shown=False),
        Flag("bg_range", fraction, (1.0, 1.0), "background: drawn in this range; its middle in "
             "images", nargs=2, metavar=("LOW", "HIGH"), shown=WITHOUT_LIGHT),
        Flag("near", not_negative, None, "t at which rays begin", unset="the dataset's"),
        Flag("far", positive, None, "t at which rays end", unset="the dataset's"),
        Flag("units", ("scene", "file"), "scene", "of --near, --far and the box of a mesh: the "
             "scene's, aligned and scaled, or its files'", shown=False),
        Flag("ndc", bool, False, "normalized device coordinates, for forward-facing captures",
             shown=LLFF[0]),
        Flag("spherify", bool, False, "inward-facing captures: centre and scale the cameras, no "
             "NDC", shown=LLFF[0]),
        Flag("llffhold", integer(0), 8, "every n-th view is a test view (0: none)",
             only=CAPTURES),
        Flag("alpha", ("composite", "mask"), "composite", "transparent pixels: composited onto "
             "the background, or left out", only=CAPTURES, shown=False),
    ],
    "model": [
        Flag("model", ("mipnerf", "mipnerf360", "zipnerf", "nerv"), "mipnerf", "model to train"),
        Flag("nerv_field", tuple(sorted(NERV_GEOMETRY)), "hash", "hash grids, or MLPs as in the "
             "paper", only=NERV),
        Flag("num_levels", integer(1, 8), 2, "sampling levels, coarse to fine", only=MIPNERF),
        Flag("num_samples", intervals, 128, "intervals per ray and level"),
        Flag("hidden", width, 256, "width of the trunk"),
        Flag("depth", layers, 8, "layers of the trunk"),
        Flag("skip", positive_int, 4, "the encoding is concatenated again after every layer "
             "whose index is a positive multiple of this", only=MLPS, shown=False),
        Flag("bottleneck", width, None, "width between trunk and view branch",
             unset="--hidden", shown=False),
        Flag("view_hidden", width, 128, "width of the view branch", shown=False),
        Flag("view_depth", layers, 1, "layers of the view branch", shown=False),
        Flag("view_skip", positive_int, 4, "as --skip, in the view branch", shown=False),
        Flag("use_viewdirs", bool, True, "colour depends on the view direction", shown=False),
        Flag("min_deg", integer(0, 63), 0, "lowest frequency 2^n of positions", only=MLPS,
             shown=False),
        Flag("max_deg", frequency, 16, "one above the highest frequency 2^n", only=MLPS),
        Flag("view_deg", frequency, 4, "frequencies of view directions", shown=False),
        Flag("ray_shape", ("cone", "cylinder"), "cone", "shape of a pixel's ray"),
        Flag("lindisp", bool, False, "coarse samples linear in disparity, not distance",
             only=MIPNERF),
        Flag("resample_padding", not_negative, 0.01, "added to the blurred coarse weights before "
             "resampling", only=MIPNERF, shown=False),
        Flag("density_bias", number(), -1.0, "added to raw density before the activation",
             shown=False),
        Flag("density_noise", not_negative, 0.0, "standard deviation of noise on raw density in "
             "training", only=MIPNERF, shown=False),
        Flag("weight_init", ("glorot", "he"), "glorot", "uniform initialisation of weights",
             shown=False),
        Flag("contraction", bool, False, "contract unbounded space into a ball of radius 2",
             shown=UNLIT),
        Flag("basis", ("axes", "icosahedron"), "axes", "directions of the positional encoding",
             only=MLPS, shown=False),
        Flag("opaque_background", bool, False, "the last interval of a ray is opaque",
             shown=False),
        Flag("ray_warp", ("linear", "reciprocal", "piecewise", "power"), "linear",
             "spacing of samples along a ray", only=PROPOSALS),
        Flag("prop_rounds", integer(1, 8), 2, "proposal rounds", only=PROPOSALS),
        Flag("prop_samples", integer(2, 4096), 64, "intervals per proposal round",
             only=PROPOSALS),
        Flag("prop_hidden", width, 256, "width of the proposal field", only=PROPOSALS,
             shown=MIPNERF360[0]),
        Flag("prop_depth", layers, 4, "layers of the proposal field", only=PROPOSALS,
             shown=MIPNERF360[0]),
        Flag("anneal_slope", positive, 10.0, "slope of the annealing of proposal weights",
             only=PROPOSALS, shown=False),
        Flag("dilation_bias", not_negative, 0.0025, "dilation of proposal weights, in s",
             only=PROPOSALS, shown=False),
        Flag("dilation_mult", not_negative, 0.5, "further dilation, in mean intervals of the "
             "previous round", only=PROPOSALS, shown=False),
        Flag("grid_coarsest", integer(2, 1024), 16, "cells per side of the coarsest level",
             only=GRIDS, shown=False),
        Flag("grid_finest", resolution, 8192, "cells per side of the finest level", only=GRIDS),
        Flag("grid_log2_size", integer(4, 24), 21, "log2 of the table's entries per level",
             only=GRIDS),
        Flag("grid_features", integer(1, 16), 4, "features per entry", only=GRIDS, shown=False),
        Flag("prop_finest", resolution, (512, 2048), "--grid_finest of each proposal round",
             nargs="+", metavar="N", only=GRIDS),
        Flag("prop_features", integer(1, 16), 1, "features per entry of the proposal grids",
             only=GRIDS, shown=False),
        Flag("num_multisamples", (1, 6), 6, "multisamples per interval; 1 is faster", only=GRIDS),
        Flag("downweight", bool, True, "attenuate grid levels finer than the pixel "
             "(anti-aliasing)", only=GRIDS),
        Flag("append_scale", bool, True, "each grid level has a feature of its attenuation",
             only=GRIDS, shown=False),
        Flag("pulse_width", positive, (0.03, 0.003), "pulse width in s of the anti-aliased "
             "interlevel loss, per round", nargs="+", metavar="S", only=GRIDS, shown=False),
        Flag("rgb_padding", not_negative, 0.001, "extends the sigmoid of colours beyond [0, 1]",
             shown=False),
        Flag("glo_features", integer(0, 4096), 0, "size of each training image's appearance "
             "embedding (0: none); zero in all renderings", only=EMBEDDED, shown=False),
        Flag("predicted_normals", bool, False, "a layer that predicts normals (Ref-NeRF)",
             only=PREDICTED_NORMALS, shown=False),
        Flag("visibility_finest", resolution, 64, "--grid_finest of the visibility field; finer "
             "grids overfit the sampled directions", only=NERV_GRIDS, shown=False),
        Flag("visibility_features", width, 8, "bottleneck of the visibility field",
             only=NERV, shown=False),
        Flag("visibility_hidden", width, 128, "width of the visibility field's view "
             "branch", only=NERV, shown=False),
        Flag("visibility_depth", layers, 4, "layers of the visibility field's view branch",
             only=NERV, shown=False),
        Flag("shade_at", ("samples", "surface"), "samples", "shade every sample, or only "
             "each ray's expected surface", only=NERV, scope=SHADE),
        Flag("bounce_directions", intervals, 128, "directions sampled for indirect light",
             only=NERV, scope=SHADE),
        Flag("march_shadows", bool, False, "rendering: march shadow rays through the density",
             only=NERV, scope=SHADE),
        Flag("light_samples", intervals, 32, "maximum number of lights sampled in training and "
             "for indirect light", only=NERV, shown=False),
    ],
    "training": [
        Flag("minutes", positive, None, "length of the training, which plans --max_steps",
             scope=RESUME, before=None, unset="not planned"),
        Flag("max_steps", positive_int, 200_000, "optimisation steps", scope=RESUME),
        Flag("batch_size", rays, 2048, "rays per step, over all ranks"),
        Flag("micro_batch", rays, None, "rays per forward pass", scope=RESUME,
             unset="64 for MLPs on a CPU, else 2048"),
        Flag("compile", bool, False, "train with torch.compile (for GPUs)", scope=RESUME),
        Flag("lr_init", positive, 5e-4, "initial learning rate"),
        Flag("lr_final", positive, 5e-6, "final learning rate"),
        Flag("lr_delay_steps", integer(0), 2500, "warm-up steps"),
        Flag("lr_delay_mult", positive, 0.01, "initial multiple of the rate in warm-up",
             shown=False),
        Flag("grid_lr_mult", positive, 1.0, "multiple of the rate for hash grids", only=GRIDS),
        Flag("robust", bool, False, "ignore what moves between photographs (RobustNeRF)",
             only=UNLIT_MODELS),
        Flag("refine_cameras", bool, False, "also learn small corrections of the training "
             "cameras (CamP)", shown=WITHOUT_LIGHT),
        Flag("camera_lr_init", positive, 1e-4, "initial learning rate of the cameras",
             only=REFINED, shown=REFINED[0]),
        Flag("camera_lr_final", positive, 1e-5, "final learning rate of the cameras",
             only=REFINED, shown=REFINED[0]),
        Flag("camera_lr_delay_steps", integer(0), 2500, "warm-up steps of the cameras",
             only=REFINED, shown=REFINED[0]),
        Flag("adam_beta2", number(0.5, 0.99999), 0.999, "Adam's beta2", shown=False),
        Flag("adam_eps", positive, 1e-8, "Adam's epsilon", shown=False),
        Flag("grad_max_norm", not_negative, 0.0, "clip gradients to this norm (0: never)",
             shown=False),
        Flag("fine_loss_mult", not_negative, 1.0, "weight of the finest level's squared error"),
        Flag("coarse_loss_mult", not_negative, 0.1, "weight of the coarser levels' squared error",
             only=MIPNERF),
        Flag("charbonnier_loss_mult", not_negative, 0.0, "weight of the finest level's "
             "Charbonnier error", shown=UNLIT),
        Flag("interlevel_loss_mult", not_negative, 0.0, "weight of the interlevel loss",
             shown=False),
        Flag("antialiased_interlevel_loss_mult", not_negative, 0.0, "weight of Zip-NeRF's "
             "interlevel loss", shown=False),
        Flag("grid_decay_loss_mult", not_negative, 0.0, "weight of the decay of grid features",
             shown=False),
        Flag("distortion_loss_mult", not_negative, 0.0, "weight of the distortion loss",
             shown=False),
        Flag("depth_points", not_negative, 0.0, "weight of the distances to points triangulated "
             "from the training images; falls to 0 at half of the training (0: no points)",
             only=(WITHOUT_LIGHT, "models without light, not nerv"), shown=False),
        Flag("visibility_loss_mult", not_negative, 0.0, "weight of the visibility field's error",
             shown=False),
        Flag("orientation_loss_mult", not_negative, 0.0, "weight of Ref-NeRF's orientation loss",
             shown=False),
        Flag("predicted_normal_loss_mult", not_negative, 0.0, "weight of Ref-NeRF's loss of "
             "predicted normals", shown=False),
        Flag("geometry_share", fraction, 0.4, "fraction of the steps in stage 1 (geometry)",
             only=NERV),
        Flag("visibility_share", fraction, 0.15, "fraction of the steps in stage 2 (visibility)",
             only=NERV),
    ],
    "logging": [
        Flag("log_every", positive_int, 100, "steps between logged scalars", scope=RESUME),
        Flag("eval_every", integer(0), 5000, "steps between validation images (0: none)",
             scope=RESUME),
        Flag("save_every", positive_int, 5000, "steps between checkpoints", scope=RESUME),
        Flag("keep_checkpoints", positive_int, 2, "number of newest checkpoints kept",
             scope=RESUME, shown=False),
        Flag("continue_training", bool, False, "resume from the newest valid checkpoint",
             scope=PLACE),
        Flag("final_eval", bool, True, "score the test split after training", scope=RESUME),
    ],
    "evaluation": [
        Flag("split", ("train", "val", "test"), "test", "split to score", scope=RENDER),
        Flag("lpips", ("none", "vgg", "alex"), "none", "also LPIPS (pip install lpips)",
             scope=RENDER),
        Flag("lpips_weights", str, None, "torchvision's weights of that network", metavar="FILE",
             only=LPIPS, scope=RENDER, shown=LPIPS[0], unset="downloaded"),
        Flag("camera_test_steps", integer(0), 100, "steps that refine each test camera before it "
             "is scored", only=REFINED, scope=RENDER, shown=REFINED[0]),
        Flag("save_images", bool, True, "write rgb, depth and normal images and a contact sheet",
             scope=RENDER),
        Flag("normals_from", ("depth", "density", "predicted"), "depth", "normals shown: of the "
             "distance map, of the density's gradient, or of --predicted_normals", scope=RENDER),
    ],
    "video": [
        Flag("path", camera_path, "auto",
             "auto: ellipse or spiral; ellipse: fitted to the cameras; spherical: circle around "
             "the scene; spiral: helix, or LLFF's spiral; zoom: to --zoom and back; still: fixed; "
             "or a file path.json of view.py, or training images: a,b,c", scope=RENDER),
        Flag("frames", integer(1, 100_000), 120, "number of frames", scope=RENDER),
        Flag("fps", integer(1, 1000), 30, "frames per second", scope=RENDER),
        Flag("width", integer(1, 16384), None, "frame width in pixels", scope=RENDER,
             unset="from --height, else the training images'"),
        Flag("height", integer(1, 16384), None, "frame height in pixels", scope=RENDER,
             unset="from --width, else the training images'"),
        Flag("zoom", number(1e-3, 1e3), 2.0, "zoom to this multiple of the focal length and "
             "back", only=ZOOM, scope=RENDER),
        Flag("dolly", bool, False, "move the camera instead of changing the focal length",
             only=ZOOM, scope=RENDER),
        Flag("skip_empty", bool, True, "skip empty space with an occupancy grid", scope=RENDER),
        Flag("exact", bool, False, "render as for scores, not by the fast path", only=GRIDS,
             scope=RENDER),
        Flag("visualize_depth", bool, False, "also a video of distances", scope=RENDER),
        Flag("visualize_normals", bool, False, "also a video of world normals", scope=RENDER),
        Flag("save_depth", bool, False, "also an OpenEXR file for each frame: distances and depths "
             "in units of the scene's files", scope=RENDER),
        Flag("transparent", bool, False, "also frames (PNG) and a video (WebM) with alpha",
             only=SEE_THROUGH, scope=RENDER),
        Flag("visualize_components", bool, False, "also videos of albedo, roughness, shading "
             "normals, visibility, direct and indirect light", only=NERV, scope=RENDER),
        Flag("relight", ("none", "light", "environment"), "none", "none: lights of the first "
             "training image; light: one that orbits the scene; environment: a rotating map",
             only=NERV, scope=RENDER),
        Flag("environment", str, None, "equirectangular map for --relight environment", only=NERV,
             metavar="FILE", scope=RENDER, unset="that of the first training image"),
    ],
    "viewer": [
        Flag("host", str, "127.0.0.1", "address to listen on; 0.0.0.0: every network",
             metavar="ADDRESS", scope=PLACE),
        Flag("port", integer(1, 65535), 8080, "port of the viewer; the next free one if it is "
             "taken", scope=PLACE),
    ],
    "mesh": [
        Flag("grid_size", integer(8, 2048), 256, "grid points along the longest side of the box",
             scope=RENDER),
        Flag("method", ("density", "tsdf"), "density", "density: isosurface of the density; tsdf: "
             "fused distances from the training views (default for photographs)", scope=RENDER),
        Flag("sigma_threshold", positive, None, "density of the surface", only=DENSITY_MESH,
             scope=RENDER, unset="estimated from the training rays"),
        *[Flag(f"{axis}_range", number(-1e9, 1e9), None, f"{axis} range of the box, in ray "
               "coordinates, or see --units", nargs=2, metavar=("FROM", "TO"), scope=RENDER,
               unset="what training views see") for axis in "xyz"],
        Flag("faces", integer(4, 100_000_000), None, "decimate the mesh to this number of faces",
             scope=RENDER, unset="all, or 50000 with --texture"),
        Flag("texture", integer(16, 16384), None, "write GLB, and OBJ with MTL and PNG, with a "
             "texture of this many texels along each side", metavar="SIZE", scope=RENDER,
             unset="vertex colours"),
        Flag("mesh_format", ("ply", "obj", "glb"), "ply", "file format", only=WITHOUT_TEXTURE,
             scope=RENDER),
        Flag("keep_unseen", bool, False, "keep surfaces that no training view sees",
             only=DENSITY_MESH, scope=RENDER),
        Flag("min_component", fraction, 0.01, "drop components below this fraction of the "
             "largest", scope=RENDER),
    ],
    "export": [
        Flag("format", ("html", "ply", "cameras"), "html", "html: one page that renders the model "
             "in a browser; ply: surface points with colours and normals; cameras: "
             "transforms.json and a COLMAP model", scope=RENDER),
        Flag("num_points", positive_int, 200_000, "about so many surface points", scope=RENDER),
    ],
}
BY_NAME: dict[str, Flag] = {flag.name: flag for group in FLAGS.values() for flag in group}

# Contents of each script's --help; --help all shows every flag.
RENDERING = frozenset({RENDER, SHADE, PLACE})
FIND_RUN = ("Give --run FOLDER, or the flags of the training that name its run folder: --exp_name, "
            "or --dataset_name, --scene and --model.")
SCRIPTS = {
    "train": Script(
        "Train a model on a scene. Values are those of --preset gpu unless another one is given.",
        ("run", "data", "model", "training", "logging", "evaluation"),
        hidden=("run", "march_shadows", "normals_from")),
    "evaluate": Script(f"Score a trained model. {FIND_RUN}",
                       ("run", "data", "model", "evaluation"), RENDERING,
                       also=("lights",)),
    "visualize": Script(f"Render a video of a trained model. {FIND_RUN}",
                        ("run", "model", "video"), RENDERING, also=("normals_from",)),
    "view": Script(f"Look at a trained model, or one in training, in the browser. {FIND_RUN}",
                   ("run", "viewer"), RENDERING, also=("exact", "skip_empty", "normals_from",
                                                       "shade_at", "bounce_directions")),
    "extract_mesh": Script(f"Extract a coloured mesh from a trained model. {FIND_RUN}",
                           ("run", "model", "mesh"), RENDERING, also=("exact",)),
    "export": Script(f"Write a trained model as a page, points or cameras. {FIND_RUN}",
                     ("run", "export"), RENDERING),
}
ANY_SCRIPT = Script("Flags of all scripts.", tuple(FLAGS))


class Config(flags.Config):
    """The resolved flags of a run. Values change by `config.replace(name=value)` only."""

    __slots__ = ()

    @property
    def unbounded(self) -> bool:
        """Whether a capture shows endless surroundings, unlike a scene in a box or in NDC."""
        inward_llff = self.dataset_name == "llff" and self.spherify
        return self.dataset_name in UNBOUNDED or inward_llff

    @property
    def geometry(self) -> str:
        """The model whose sampling and fields are used: NeRV's are those of another model."""
        return NERV_GEOMETRY.get(self.nerv_field, "") if self.model == "nerv" else self.model

    @property
    def first_lit_step(self) -> int:
        """The number of steps after which NeRV's surfaces are shaded."""
        return steps_before(self.geometry_share + self.visibility_share, self.max_steps)


def get_config(argv: Sequence[str] | Config | None = None, script: str | None = None) -> Config:
    """The `Config` of a command line (`sys.argv[1:]` if None; a `Config` is returned as it is).

    script: a key of `SCRIPTS`, whose flags `--help` shows. Exits with status 2 for a wrong command
    line. Raises UserError for a `--config` file that cannot be used.
    """
    if isinstance(argv, Config):
        return argv
    parser, typed, wanted_help = flags.parse(BY_NAME, argv)
    from_file = flags.read_json(typed["config"], BY_NAME) if typed.get("config") else {}
    conflict = _conflict_with_file(typed, from_file)
    if conflict:
        parser.error(conflict)
    config = resolve(from_file | typed, typed)
    if wanted_help:
        print_help(SCRIPTS.get(script or "", ANY_SCRIPT), FLAGS, config, wanted_help == "all")
    message = _first_contradiction(config, script == "train")
    if message:
        parser.error(message)
    return config


def with_preset(config: Config, preset: str) -> Config:
    """The `Config` of the same flags under another preset.

    Raises UserError if a given flag contradicts the preset.
    """
    config = resolve(config.given | {"preset": preset}, config.typed)
    message = _first_contradiction(config)
    if message:
        raise UserError(f"with --preset {preset}, {message}.")
    return config


def early_config(script: str) -> Config:
    """`get_config` before a script's heavy imports, so `--help` and errors are instant.

    Also makes the settings of the process that must precede them, and says what takes so long.
    """
    with exit_on_user_error():
        config = get_config(None, script)
    process.prepare()
    if os.environ.get("RANK", "0") == "0":
        print("Starting PyTorch ...", flush=True)
    return config


def default_config(**changes: Any) -> Config:
    """A `Config` from flags given in Python, without a command line or checks (tests and tools).

    Raises UserError for a name that is no flag.
    """
    flags.check_names(changes, BY_NAME)
    return resolve({name: freeze(value) for name, value in changes.items()})


def resolve(given: dict[str, Any], typed: Collection[str] = ()) -> Config:
    """The `Config` of some given flags, with defaults for all others."""
    values = flags.resolve(BY_NAME, DEFAULTS, given, Config)
    scene = scene_of(Config(values))
    return Config(values | {"scene": scene}, given, typed)


def _conflict_with_file(typed: Mapping[str, Any], from_file: Mapping[str, Any]) -> str | None:
    """A sentence about a typed flag that contradicts the `--config` file, or None.

    Only flags that choose defaults can.
    """
    for name in ("preset", "dataset_name", "model") if typed.get("config") else ():
        in_file = from_file.get(name)
        if typed.get(name, in_file) != in_file:
            return (f"--{name} {typed[name]} would choose other defaults than --config "
                    f"{typed['config']}, which has {in_file or 'none'}; drop one of the two")
    return None


def _first_contradiction(config: Config, may_choose_preset: bool = False) -> str | None:
    """A sentence about two flags that exclude each other, or None.

    A training without --preset uses gpu or laptop; flags that fit either of them are accepted.
    """
    message = next(contradictions(config), None)
    if message and may_choose_preset and config.preset is None:
        laptop = resolve(config.given | {"preset": "laptop"}, config.typed)
        return message if next(contradictions(laptop), None) else None
    return message


def check_all_read(config: Config) -> None:
    """Raise UserError for a typed flag that is unused under `config`."""
    for name in sorted(config.typed):
        flag = BY_NAME[name]
        if flag.only and not flag.is_read(config):
            raise UserError(f"--{name} is for {flag.only[1]} and has no effect here; leave it "
                            "out.")
    if config.normals_from == "predicted" and not config.predicted_normals:
        raise UserError("--normals_from predicted is for runs trained with --predicted_normals; "
                        "give density or depth.")


def override(run: Config, command_line: Config, scopes: Collection[str],
             also: Collection[str] = ()) -> Config:
    """The `Config` of a saved run, updated with the typed flags of a `command_line`.

    scopes: scopes of flags that may differ (`flags.RESUMABLE`, `flags.RENDERABLE`); also: names of
    further such flags. Raises UserError for any other flag that differs, and for unused flags.
    """
    changes = {}
    for name in sorted(command_line.typed):
        old, new, scope = getattr(run, name), getattr(command_line, name), BY_NAME[name].scope
        may_differ = scope in scopes or name in also or scope == START and old is None
        if new != old and not may_differ:
            raise UserError(f"--{name} {new} was given, but this run was started with {old}, "
                            "which cannot change; leave the flag out, or start a new run.")
        if scope not in (PLACE, START):
            changes[name] = new
    config = Config(vars(run) | changes, run.given | changes, command_line.typed)
    check_all_read(config)
    return config


def saved_flags(config: Config) -> dict[str, Any]:
    """The flags that define a run: what checkpoints and config.json keep."""
    return {name: value for name, value in vars(config).items() if BY_NAME[name].scope != PLACE}


def loaded_config(saved: Mapping[str, Any], source: str = "the checkpoint") -> Config:
    """The `Config` of a checkpoint's flags.

    Flags newer than the checkpoint take `Flag.before`, else the default that the saved ones imply.
    Raises UserError naming `source` for a value that no command line would have.
    """
    before = {name: flag.before for name, flag in BY_NAME.items() if flag.before is not ...}
    known = {name: value for name, value in saved.items() if name in BY_NAME}
    return resolve(before | flags.checked(known, BY_NAME, source))


def steps_before(fraction: float, max_steps: int) -> int:
    """The number of steps that make up at least a fraction of all."""
    # Rounded first: in floating point (0.55 + 0.15) * 9000 is a little more than 6300.
    return math.ceil(round(fraction * max_steps, 6))


def shading_name(config: Config, run: Config) -> str:
    """File-name suffix for shading flags that differ from the run's; empty if none does."""
    labels = {"shade_at": config.shade_at, "bounce_directions": f"bounce{config.bounce_directions}",
             "march_shadows": "marched" if config.march_shadows else "unmarched"}
    return "".join(f"_{label}" for name, label in labels.items()
                   if getattr(config, name) != getattr(run, name))
