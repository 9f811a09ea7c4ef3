"""Presets and other conditional defaults: their values, which typed flags override."""

import itertools

import pytest

from config import BY_NAME, Config, default_config, get_config
from contradictions import contradictions
from presets import DEFAULTS, NERV_GEOMETRY, PRESETS

DATASETS, MODELS = BY_NAME["dataset_name"].kind, BY_NAME["model"].kind
CHOOSING = {"preset", "dataset_name", "model", "nerv_field", "spherify", "geometry", "unbounded",
            "predicted_normals"}


def given(*words):
    """A config's values, but for the name of the preset."""
    return vars(get_config(list(words)).replace(preset=None))


@pytest.mark.parametrize("preset,model,field", [
    *itertools.product(PRESETS, MODELS, NERV_GEOMETRY)])
def test_every_preset_goes_with_every_model_and_dataset(preset, model, field):
    for dataset in ["nerv"] if model == "nerv" else DATASETS:
        config = get_config(["--preset", preset, "--model", model, "--dataset_name", dataset,
                             "--nerv_field", field])
        assert (config.preset, config.model, config.dataset_name) == (preset, model, dataset)


def test_rows_name_flags_and_hold_values_that_could_be_typed():
    for condition, values in DEFAULTS:
        assert condition.keys() <= CHOOSING and values.keys() <= BY_NAME.keys()
        for name, value in values.items():
            items = value if BY_NAME[name].nargs else (value,)
            kind = BY_NAME[name].kind
            assert isinstance(items, tuple)
            for item in items:
                assert (isinstance(item, bool) if kind is bool else item in kind
                        if isinstance(kind, tuple) else kind(str(item)) == item), name


def test_every_row_applies_to_some_configuration():
    axes = [(None, *PRESETS), DATASETS, MODELS, NERV_GEOMETRY, (False, True)]
    configs = [default_config(preset=p, dataset_name=d, model=m, nerv_field=f, spherify=s)
               for p, d, m, f, s in itertools.product(*axes)]
    configs.append(default_config(model="mipnerf360", predicted_normals=True))
    for condition, values in DEFAULTS:
        changed = [c for c in configs
                   if all(getattr(c, name) == value for name, value in values.items())]
        assert changed, condition


def test_gpu_is_what_no_preset_gives():
    for model in MODELS:
        assert given("--model", model, "--preset", "gpu") == given("--model", model)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_typed_flag_wins_over_a_preset_in_any_order(preset):
    assert get_config(["--max_steps", "7000", "--preset", preset]).max_steps == 7000
    assert get_config(["--preset", preset, "--max_steps", "7000"]).max_steps == 7000


@pytest.mark.parametrize("dataset,values", [
    ("blender", {"factor": 1, "bg_range": (1.0, 1.0), "near": 2.0, "far": 6.0,
                 "path": "spherical"}),
    ("multicam", {"factor": 1, "bg_range": (1.0, 1.0), "near": None, "path": "spherical"}),
    ("llff", {"factor": 4, "bg_range": (0.0, 0.0), "ndc": True, "ray_shape": "cylinder"}),
    ("colmap", {"factor": 4, "bg_range": (0.0, 0.0), "lindisp": True, "path": "auto"}),
    ("nerfstudio", {"factor": 1, "bg_range": (0.0, 0.0), "lindisp": True}),
    ("nerv", {"factor": 1, "bg_range": (1.0, 1.0), "near": 2.0, "far": 6.0, "path": "spherical"}),
])
def test_a_dataset_changes_defaults_and_a_typed_flag_wins_over_it(dataset, values):
    config = get_config(["--dataset_name", dataset])
    assert {name: getattr(config, name) for name in values} == values
    assert get_config(["--dataset_name", dataset, "--factor", "3"]).factor == 3


def test_nerv_brings_its_dataset_and_the_paper_its_mlps():
    assert get_config(["--model", "nerv"]).dataset_name == "nerv"
    assert get_config(["--model", "nerv", "--preset", "laptop"]).nerv_field == "hash"
    paper = get_config(["--model", "nerv", "--preset", "paper"])
    assert (paper.nerv_field, paper.hidden, paper.depth, paper.batch_size) == ("mlp", 256, 8, 512)
    hashed = ["--model", "nerv", "--nerv_field", "hash"]
    assert given(*hashed, "--preset", "paper") == given(*hashed)


def test_the_fields_of_nerv_have_the_defaults_of_their_geometry():
    config = get_config(["--model", "nerv", "--preset", "laptop", "--nerv_field", "mlp"])
    assert not config.antialiased_interlevel_loss_mult and config.interlevel_loss_mult
    assert (config.hidden, config.max_steps, config.geometry_share) == (128, 9000, 0.55)
    config = get_config(["--model", "nerv", "--preset", "laptop"])
    assert config.antialiased_interlevel_loss_mult and not config.interlevel_loss_mult
    assert (config.hidden, config.max_steps, config.geometry_share) == (32, 6000, 0.4)


# The released configurations, from the gin files and defaults of google/mipnerf,
# google-research/multinerf and jonbarron/camp_zipnerf.
MIPNERF = {
    "max_steps": 1_000_000, "batch_size": 4096, "lr_init": 5e-4, "lr_final": 5e-6,
    "lr_delay_steps": 2500, "lr_delay_mult": 0.01, "adam_beta2": 0.999, "adam_eps": 1e-8,
    "grad_max_norm": 0.0, "num_samples": 128, "num_levels": 2, "hidden": 256, "depth": 8, "skip": 4,
    "bottleneck": None, "view_hidden": 128, "view_depth": 1, "min_deg": 0, "max_deg": 16,
    "view_deg": 4, "resample_padding": 0.01, "density_bias": -1.0, "rgb_padding": 0.001,
    "weight_init": "glorot", "fine_loss_mult": 1.0, "coarse_loss_mult": 0.1,
    "charbonnier_loss_mult": 0.0, "lindisp": False, "contraction": False,
    "opaque_background": False,
}
MIPNERF360 = {
    "max_steps": 250_000, "batch_size": 16_384, "lr_init": 2e-3, "lr_final": 2e-5,
    "lr_delay_steps": 512, "lr_delay_mult": 0.01, "adam_beta2": 0.999, "adam_eps": 1e-6,
    "grad_max_norm": 1e-3, "num_samples": 32, "prop_hidden": 256, "prop_depth": 4, "depth": 8,
    "skip": 4, "bottleneck": 256, "view_hidden": 128, "view_depth": 1, "view_deg": 4,
    "density_bias": -1.0, "rgb_padding": 0.001, "weight_init": "he", "coarse_loss_mult": 0.0,
    "interlevel_loss_mult": 1.0, "anneal_slope": 10.0, "dilation_bias": 0.0025,
    "dilation_mult": 0.5,
}
ZIPNERF = {
    "max_steps": 200_000, "batch_size": 8192, "lr_init": 1.25e-3, "lr_final": 1.25e-4,
    "lr_delay_steps": 20_000, "lr_delay_mult": 1e-8, "adam_beta2": 0.99, "adam_eps": 1e-15,
    "grad_max_norm": 0.0, "num_samples": 32, "prop_rounds": 2, "prop_samples": 64,
    "prop_finest": (512, 2048), "prop_features": 1, "grid_coarsest": 16, "grid_finest": 8192,
    "grid_features": 4, "grid_log2_size": 21, "grid_lr_mult": 1.0, "append_scale": True,
    "downweight": True, "num_multisamples": 6, "prop_hidden": 64, "prop_depth": 1, "hidden": 64,
    "depth": 1, "bottleneck": 256, "view_hidden": 256, "view_depth": 3, "view_skip": 2,
    "view_deg": 4, "density_bias": -1.0, "rgb_padding": 0.001, "weight_init": "he",
    "fine_loss_mult": 0.0, "coarse_loss_mult": 0.0, "charbonnier_loss_mult": 1.0,
    "antialiased_interlevel_loss_mult": 0.01, "pulse_width": (0.03, 0.003),
    "distortion_loss_mult": 0.01, "dilation_bias": 0.0, "dilation_mult": 0.0,
    "anneal_slope": 10.0, "contraction": True, "opaque_background": False,
    "batching": "all_images",
}
IN_A_BOX = {
    "hidden": 256, "prop_rounds": 1, "prop_samples": 128, "basis": "axes", "max_deg": 16,
    "adam_eps": 1e-8, "ray_warp": "linear", "contraction": False,
}
RELEASED = {
    ("mipnerf", "blender"): MIPNERF | {
        "near": 2.0, "far": 6.0, "bg_range": (1.0, 1.0), "ray_shape": "cone", "density_noise": 0.0,
        "batching": "single_image"},
    ("mipnerf", "multicam"): MIPNERF | {
        "bg_range": (1.0, 1.0), "ray_shape": "cone", "density_noise": 0.0,
        "batching": "all_images"},
    ("mipnerf", "llff"): MIPNERF | {
        "factor": 4, "ndc": True, "bg_range": (0.0, 0.0), "ray_shape": "cylinder",
        "density_noise": 1.0, "batching": "all_images", "llffhold": 8},
    ("mipnerf360", "colmap"): MIPNERF360 | {
        "hidden": 1024, "prop_rounds": 2, "prop_samples": 64, "basis": "icosahedron", "max_deg": 12,
        "near": 0.2, "far": 1e6, "ray_warp": "reciprocal", "contraction": True,
        "opaque_background": True, "fine_loss_mult": 0.0, "charbonnier_loss_mult": 1.0,
        "distortion_loss_mult": 0.01, "batching": "all_images", "llffhold": 8},
    ("mipnerf360", "blender"): MIPNERF360 | IN_A_BOX | {
        "near": 2.0, "far": 6.0, "bg_range": (1.0, 1.0), "opaque_background": False,
        "fine_loss_mult": 1.0, "charbonnier_loss_mult": 0.0, "distortion_loss_mult": 0.0,
        "batching": "single_image"},
    ("mipnerf360", "llff"): MIPNERF360 | IN_A_BOX | {
        "factor": 4, "ndc": True, "ray_shape": "cylinder", "opaque_background": True,
        "fine_loss_mult": 0.0, "charbonnier_loss_mult": 1.0, "distortion_loss_mult": 0.01,
        "batching": "all_images"},
    ("zipnerf", "colmap"): ZIPNERF | {
        "near": 0.0, "far": 1e6, "ray_warp": "power", "grid_decay_loss_mult": 0.1,
        "bg_range": (0.0, 1.0)},
    ("zipnerf", "blender"): ZIPNERF | {
        "near": 2.0, "far": 6.0, "ray_warp": "linear", "grid_decay_loss_mult": 10.0,
        "bg_range": (1.0, 1.0)},
}


@pytest.mark.parametrize("model,dataset", RELEASED)
def test_preset_paper_is_the_released_configuration(model, dataset):
    config = get_config(["--preset", "paper", "--model", model, "--dataset_name", dataset])
    released = RELEASED[model, dataset]
    assert {name: getattr(config, name) for name in released} == released


def test_preset_gpu_is_the_released_method_on_another_schedule():
    schedule = {"max_steps", "batch_size", "lr_init", "lr_final", "batching"}
    for (model, dataset), released in RELEASED.items():
        config = get_config(["--preset", "gpu", "--model", model, "--dataset_name", dataset])
        for name in released.keys() - schedule:
            assert getattr(config, name) == released[name], (model, dataset, name)


def test_spherified_captures_have_cones_and_no_ndc():
    config = get_config(["--dataset_name", "llff", "--spherify"])
    assert (config.ndc, config.ray_shape) == (False, "cone")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", ["mipnerf360", "zipnerf"])
def test_inward_facing_llff_captures_are_unbounded_as_colmap_s(model, preset):
    inward, colmap = (
        get_config(["--preset", preset, "--model", model, "--dataset_name", *words])
        for words in (["llff", "--spherify"], ["colmap"]))
    differing = {name for name in vars(colmap) if getattr(colmap, name) != getattr(inward, name)}
    assert differing <= {"dataset_name", "spherify", "exp_name", "density_noise"}


@pytest.mark.parametrize("preset,model,dataset,weight", [
    ("laptop", "zipnerf", "llff", 0.1), ("laptop", "zipnerf", "colmap", 0.1),
    ("laptop", "zipnerf", "nerfstudio", 0.1), ("laptop", "zipnerf", "blender", 0.0),
    ("laptop", "mipnerf360", "llff", 0.0), ("debug", "zipnerf", "llff", 0.0),
    ("paper", "zipnerf", "colmap", 0.0),
])
def test_points_are_for_photographs_on_a_laptop(preset, model, dataset, weight):
    config = get_config(["--preset", preset, "--model", model, "--dataset_name", dataset])
    assert config.depth_points == weight


def test_no_config_can_alter_the_table():
    for _, values in DEFAULTS:
        assert not any(isinstance(value, list | dict | set) for value in values.values())


@pytest.mark.parametrize("changes,message", [
    ({"min_deg": 5, "max_deg": 5}, "--min_deg 5 must be below --max_deg 5"),
    ({"fine_loss_mult": 0.0, "coarse_loss_mult": 0.0}, "no colour loss"),
    ({"fine_loss_mult": 0.0, "num_levels": 1}, "no colour loss"),
    ({"bg_range": (0.5, 0.2)}, "--bg_range 0.5 0.2 must name the lower number first"),
    ({"bg_range": (0.0, 1.0)}, "--bg_range 0 1 draws the background at random"),
    ({"grid_decay_loss_mult": 1.0}, "--grid_decay_loss_mult 1 is for hash grids"),
    ({"antialiased_interlevel_loss_mult": 0.5}, "is for hash grids"),
    ({"visibility_loss_mult": 1.0}, "is for --model nerv"),
    ({"model": "nerv", "dataset_name": "blender"}, "give --dataset_name nerv"),
    ({"model": "nerv", "contraction": True}, "--contraction is not for --model nerv"),
    ({"model": "nerv", "opaque_background": True}, "--opaque_background is not for"),
    ({"model": "nerv", "ray_warp": "reciprocal"}, "marches rays from t = 0"),
    ({"model": "nerv", "max_steps": 2}, "ends before surfaces are shaded"),
    ({"model": "nerv", "preset": "laptop", "geometry_share": 0.999999999, "visibility_share": 0.0},
     "ends before surfaces are shaded"),
    ({"model": "nerv", "preset": "laptop", "visibility_finest": 8}, "above --visibility_finest 8"),
    ({"geometry_share": 0.6, "visibility_share": 0.4}, "must be below 1"),
    ({"model": "zipnerf", "ray_warp": "reciprocal", "near": 0.0}, "divides by near"),
    ({"model": "zipnerf", "num_samples": 1}, "must be at least 2"),
    ({"model": "zipnerf", "prop_rounds": 1}, "--prop_finest has 2 numbers"),
    ({"model": "zipnerf", "pulse_width": (0.1,)}, "--pulse_width has 1 numbers"),
    ({"model": "zipnerf", "grid_coarsest": 1024}, "must not be above --prop_finest (512, 2048)"),
    ({"model": "zipnerf", "grid_finest": 8}, "must not be above --grid_finest 8"),
    ({"ndc": True}, "are for --dataset_name llff"), ({"spherify": True}, "--dataset_name llff"),
    ({"dataset_name": "llff", "spherify": True, "ndc": True}, "exclude each other"),
    ({"environment": "x.exr"}, "--relight environment"), ({"scene": ""}, "--scene is empty"),
])
def test_flags_that_exclude_each_other_are_one_sentence(changes, message):
    assert any(message in sentence for sentence in contradictions(default_config(**changes)))


def test_near_misses_exclude_nothing():
    for changes in ({"min_deg": 4, "max_deg": 5}, {"coarse_loss_mult": 0.0}, {"near": 0.0},
                    {"fine_loss_mult": 0.0}, {"prop_rounds": 1}, {"num_samples": 1},
                    {"model": "nerv", "max_steps": 3}, {"ray_warp": "reciprocal", "near": 0.0},
                    {"model": "zipnerf", "grid_coarsest": 512}, {"grid_coarsest": 1024},
                    {"geometry_share": 0.6, "visibility_share": 0.39},
                    {"environment": "x.exr", "relight": "environment"}):
        assert not list(contradictions(default_config(**changes))), changes


def test_geometry_is_the_model_whose_fields_are_used():
    assert [default_config(model=m).geometry for m in MODELS] == [
        "mipnerf", "mipnerf360", "zipnerf", "zipnerf"]
    assert default_config(model="nerv", nerv_field="mlp").geometry == "mipnerf360"
    assert isinstance(default_config(), Config)
