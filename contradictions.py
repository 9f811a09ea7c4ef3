"""Which flags exclude each other."""

from collections.abc import Iterator

from presets import SYNTHETIC
from runtime.flags import Config


def contradictions(c: Config) -> Iterator[str]:
    """A sentence for each pair of flags of a `Config` that exclude each other."""
    for check in (_loss_conflicts, _nerv_conflicts, _sampling_conflicts, _data_conflicts):
        yield from check(c)


def _loss_conflicts(c: Config) -> Iterator[str]:
    coarse = c.coarse_loss_mult and c.model == "mipnerf" and c.num_levels > 1
    if not (c.fine_loss_mult or c.charbonnier_loss_mult or coarse):
        yield "no colour loss has a weight above 0, so nothing is learnt; set --fine_loss_mult"
    for name in ("antialiased_interlevel_loss_mult", "grid_decay_loss_mult"):
        if getattr(c, name) and c.geometry != "zipnerf":
            yield (f"--{name} {getattr(c, name):g} is for hash grids: --model zipnerf, or nerv "
                   "with --nerv_field hash")
    normals = c.predicted_normals and c.model == "mipnerf360"
    for name in ("orientation_loss_mult", "predicted_normal_loss_mult"):
        if getattr(c, name) and not normals:
            yield (f"--{name} {getattr(c, name):g} is for --model mipnerf360 with "
                   "--predicted_normals")
    if normals and not (c.orientation_loss_mult or c.predicted_normal_loss_mult):
        yield ("--predicted_normals learns nothing, because --orientation_loss_mult and "
               "--predicted_normal_loss_mult are 0; set one of them")
    if c.visibility_loss_mult and c.model != "nerv":
        yield f"--visibility_loss_mult {c.visibility_loss_mult:g} is for --model nerv"


def _nerv_conflicts(c: Config) -> Iterator[str]:
    if c.geometry_share + c.visibility_share >= 1:
        yield (f"--geometry_share {c.geometry_share:g} and --visibility_share "
               f"{c.visibility_share:g} leave no steps for stage 3, the surfaces; their sum must "
               "be below 1")
    if c.model != "nerv":
        return
    if c.dataset_name != "nerv":
        yield (f"--model nerv needs known lights, which --dataset_name {c.dataset_name} does not "
               "have; give --dataset_name nerv")
    if c.first_lit_step >= c.max_steps:
        yield (f"--max_steps {c.max_steps} ends before surfaces are shaded; raise it, or lower "
               "--geometry_share or --visibility_share")
    for name in ("contraction", "opaque_background"):
        if getattr(c, name):
            yield f"--{name} is not for --model nerv, whose light comes from outside the scene"
    if c.ray_warp == "reciprocal":
        yield "--ray_warp reciprocal divides by t, and --model nerv marches rays from t = 0"


def _sampling_conflicts(c: Config) -> Iterator[str]:
    grids = c.geometry == "zipnerf"
    if c.glo_features and not c.use_viewdirs:
        yield f"--glo_features {c.glo_features} enters the view branch; drop --no-use_viewdirs"
    if c.min_deg >= c.max_deg:
        yield f"--min_deg {c.min_deg} must be below --max_deg {c.max_deg}"
    if c.ray_warp == "reciprocal" and c.near == 0 and c.model != "mipnerf":
        yield "--ray_warp reciprocal divides by near; set --near above 0, or another --ray_warp"
    if c.num_samples < 2 and c.model != "mipnerf":
        yield f"--num_samples {c.num_samples} must be at least 2 for --model {c.model}"
    for name in ("prop_finest", "pulse_width") if grids else ():
        if len(getattr(c, name)) != c.prop_rounds:
            yield (f"--{name} has {len(getattr(c, name))} numbers, and --prop_rounds is "
                   f"{c.prop_rounds}; give one number per round")
    names = ["grid_finest", "prop_finest"] + ["visibility_finest"] * (c.model == "nerv")
    for name in names if grids else ():
        finest = getattr(c, name)
        if min(finest if name == "prop_finest" else (finest,)) < c.grid_coarsest:
            yield f"--grid_coarsest {c.grid_coarsest} must not be above --{name} {finest}"


def _data_conflicts(c: Config) -> Iterator[str]:
    if not c.scene:
        yield "--scene is empty; give the name of a scene, or the path of its folder"
    low, high = c.bg_range
    if low > high:
        yield f"--bg_range {low:g} {high:g} must name the lower number first"
    if low < high and c.dataset_name in SYNTHETIC:
        yield (f"--bg_range {low:g} {high:g} draws the background at random, and the images of "
               f"--dataset_name {c.dataset_name} are composited on one; give the same number twice")
    if c.scales != tuple(sorted({1, *c.scales})):
        yield (f"--scales {' '.join(map(str, c.scales))} must begin with 1 and continue with "
               "larger factors, such as --scales 1 2 4 8")
    if c.dataset_name != "llff" and (c.ndc or c.spherify):
        yield "--ndc and --spherify are for --dataset_name llff"
    if c.spherify and c.ndc:
        yield "--spherify and --ndc exclude each other: NDC is for forward-facing captures"
    if c.units == "file" and c.ndc:
        yield "--units file has no meaning in NDC, whose numbers have no length; give --no-ndc"
    if c.refine_cameras and c.dataset_name in ("multicam", "nerv"):
        yield (f"--refine_cameras needs images with a camera of their own and unknown light, which "
               f"--dataset_name {c.dataset_name} does not have; leave the flag out")
    if c.environment and c.relight != "environment":
        yield "--environment is for --relight environment"
