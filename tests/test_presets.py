"""Presets and other conditional defaults: their values, which typed flags override."""

import itertools

import pytest

from config import BY_NAME, Config, default_config, get_config
from contradictions import contradictions
from presets import DEFAULTS, NERV_GEOMETRY, PRESETS

DATASETS, MODELS = BY_NAME["dataset_name"].kind, BY_NAME["model"].kind
CHOOSING = {"preset", "dataset_name", "model", "nerv_field", "spherify", "geometry",
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
    ("blender", {"factor": 1, "white_bkgd": True, "near": 2.0, "far": 6.0, "path": "spherical"}),
    ("multicam", {"factor": 1, "white_bkgd": True, "near": None, "path": "spherical"}),
    ("llff", {"factor": 4, "white_bkgd": False, "ndc": True, "ray_shape": "cylinder"}),
    ("colmap", {"factor": 4, "white_bkgd": False, "lindisp": True, "path": "auto"}),
    ("nerfstudio", {"factor": 1, "white_bkgd": False, "lindisp": True}),
    ("nerv", {"factor": 1, "white_bkgd": True, "near": 2.0, "far": 6.0, "path": "spherical"}),
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


def test_paper_preset_is_the_released_configuration():
    config = get_config(["--preset", "paper"])
    released = {
        "max_steps": 1_000_000, "batch_size": 4096, "lr_init": 5e-4, "lr_final": 5e-6,
        "lr_delay_steps": 2500, "lr_delay_mult": 0.01, "num_samples": 128, "num_levels": 2,
        "hidden": 256, "depth": 8, "skip": 4, "view_hidden": 128, "view_depth": 1, "max_deg": 16,
        "view_deg": 4, "resample_padding": 0.01, "density_bias": -1.0, "rgb_padding": 0.001,
        "coarse_loss_mult": 0.1, "white_bkgd": True, "near": 2.0, "far": 6.0,
        "ray_shape": "cone", "density_noise": 0.0, "batching": "single_image",
    }
    assert {name: getattr(config, name) for name in released} == released


def test_paper_preset_on_llff_is_the_released_configuration():
    config = get_config(["--preset", "paper", "--dataset_name", "llff"])
    released = {"ndc": True, "ray_shape": "cylinder", "density_noise": 1.0, "white_bkgd": False,
                "factor": 4, "batching": "all_images", "llffhold": 8}
    assert {name: getattr(config, name) for name in released} == released


@pytest.mark.parametrize("model,released", [
    ("mipnerf360", {"batch_size": 16384, "max_steps": 250_000, "lr_init": 2e-3, "lr_final": 2e-5,
                    "hidden": 1024, "prop_samples": 64, "num_samples": 32, "ray_warp": "reciprocal",
                    "contraction": True, "basis": "icosahedron", "max_deg": 12,
                    "charbonnier_loss_mult": 1.0, "fine_loss_mult": 0.0}),
    ("zipnerf", {"batch_size": 65536, "max_steps": 25_000, "lr_init": 1e-2, "lr_final": 1e-3,
                 "prop_finest": (512, 2048), "grid_finest": 8192, "grid_log2_size": 21,
                 "contraction": True, "ray_warp": "power", "grid_decay_loss_mult": 0.1}),
])
def test_paper_preset_on_captures_is_the_released_configuration(model, released):
    config = get_config(["--preset", "paper", "--model", model, "--dataset_name", "colmap"])
    assert {name: getattr(config, name) for name in released} == released


def test_spherified_captures_have_cones_and_no_ndc():
    config = get_config(["--dataset_name", "llff", "--spherify"])
    assert (config.ndc, config.ray_shape) == (False, "cone")


def test_no_config_can_alter_the_table():
    for _, values in DEFAULTS:
        assert not any(isinstance(value, list | dict | set) for value in values.values())


@pytest.mark.parametrize("changes,message", [
    ({"min_deg": 5, "max_deg": 5}, "--min_deg 5 must be below --max_deg 5"),
    ({"fine_loss_mult": 0.0, "coarse_loss_mult": 0.0}, "no colour loss"),
    ({"fine_loss_mult": 0.0, "num_levels": 1}, "no colour loss"),
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
