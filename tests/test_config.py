"""The command line: presets are defaults, typed flags win, every flag is read."""

import ast
import json
from pathlib import Path

import pytest

from cameras.paths import PATHS
from config import (
    DATASET_DEFAULTS,
    ONLY_FOR,
    PRESETS,
    _build_parser,
    check_typed_flags,
    get_config,
    run_folder,
    typed_flags,
)
from datasets import DATASETS
from loss import LOSSES
from model import MODELS, build_model
from runtime.errors import UserError, run_script

ROOT = Path(__file__).parents[1]
SCRIPTS = [path for path in ROOT.glob("*.py") if path.name != "config.py"]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_preset_changes_defaults_and_a_typed_flag_wins_over_it_in_any_order(preset):
    plain = get_config(["--preset", preset])
    assert all(getattr(plain, name) == value for name, value in PRESETS[preset].items())
    assert get_config(["--max_steps", "7", "--preset", preset]).max_steps == 7
    assert get_config(["--preset", preset, "--max_steps", "7"]).max_steps == 7


def test_a_preset_brings_its_model_with_the_models_defaults():
    config = get_config(["--preset", "demozip"])
    assert config.model == "zipnerf" and config.view_skip == 2 and config.hidden == 32
    assert get_config(["--preset", "paper360"]).hidden == 1024
    assert get_config(["--preset", "demo360", "--model", "mipnerf360"]).model == "mipnerf360"
    with pytest.raises(SystemExit):
        get_config(["--preset", "demo360", "--model", "mipnerf"])


def test_a_preset_brings_the_fields_of_a_nerv_with_their_defaults(capsys):
    config = get_config(["--preset", "demonervmlp"])
    assert (config.model, config.nerv_field) == ("nerv", "mlp")
    assert not config.antialiased_interlevel_loss_mult and config.interlevel_loss_mult
    for preset, other in (("demonervmlp", "hash"), ("demonerv", "mlp")):
        with pytest.raises(SystemExit):
            get_config(["--preset", preset, "--nerv_field", other])
        assert f"and --nerv_field {other} was given" in capsys.readouterr().err


@pytest.mark.parametrize("value", [7, [], ["a"], [0], [None, 512], ["512", "2048"], [True]])
def test_flags_of_several_numbers_want_numbers_from_a_file(tmp_path, value):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"prop_finest": value}))
    with pytest.raises(UserError, match="prop_finest = "):
        get_config(["--config", str(file)])
    file.write_text(json.dumps({"model": "zipnerf", "prop_finest": [64, 128]}))
    assert get_config(["--config", str(file)]).prop_finest == [64, 128]


def test_a_wrong_choice_among_numbers_is_said(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"num_multisamples": 3}))
    with pytest.raises(UserError, match="num_multisamples = 3; one of 1, 6 is wanted"):
        get_config(["--config", str(file)])


@pytest.mark.parametrize("dataset", sorted(DATASET_DEFAULTS))
def test_dataset_changes_defaults_and_a_typed_flag_wins_over_it(dataset):
    config = get_config(["--dataset_name", dataset])
    for name, value in DATASET_DEFAULTS[dataset].items():
        assert getattr(config, name) == value
    assert get_config(["--dataset_name", dataset, "--factor", "3"]).factor == 3


def test_paper_preset_is_the_official_configuration():
    config = get_config(["--preset", "paper"])
    official = {
        "max_steps": 1_000_000, "batch_size": 4096, "lr_init": 5e-4, "lr_final": 5e-6,
        "lr_delay_steps": 2500, "lr_delay_mult": 0.01, "num_samples": 128, "num_levels": 2,
        "hidden": 256, "depth": 8, "skip": 4, "view_hidden": 128, "view_depth": 1, "max_deg": 16,
        "view_deg": 4, "resample_padding": 0.01, "density_bias": -1.0, "rgb_padding": 0.001,
        "coarse_loss_mult": 0.1, "white_bkgd": True, "near": 2.0, "far": 6.0,
        "ray_shape": "cone", "density_noise": 0.0, "batching": "single_image",
    }
    assert {name: getattr(config, name) for name in official} == official


def test_paper_preset_on_llff_is_the_official_configuration():
    config = get_config(["--preset", "paper", "--dataset_name", "llff"])
    official = {"ndc": True, "ray_shape": "cylinder", "density_noise": 1.0, "white_bkgd": False,
                "factor": 4, "batching": "all_images", "llffhold": 8}
    assert {name: getattr(config, name) for name in official} == official


def test_spherified_captures_have_cones_and_no_ndc():
    config = get_config(["--dataset_name", "llff", "--spherify"])
    assert (config.ndc, config.ray_shape) == (False, "cone")


def test_booleans_can_be_switched_both_ways():
    assert get_config(["--no-white_bkgd"]).white_bkgd is False
    assert get_config(["--dataset_name", "llff", "--white_bkgd"]).white_bkgd is True


@pytest.mark.parametrize("flag", ["--batch", "--unknown_flag"])
def test_shortened_or_unknown_flags_end_with_status_2(flag, capsys):
    with pytest.raises(SystemExit) as error:
        get_config([flag, "1"])
    assert error.value.code == 2
    assert flag in capsys.readouterr().err


@pytest.mark.parametrize("flag,value", [
    ("--batch_size", "0"), ("--max_steps", "-1"), ("--lr_init", "nan"), ("--lr_init", "0"),
    ("--density_noise", "-1"), ("--seed", "-1"), ("--seed", "99999999999999999999999"),
    ("--density_bias", "nan"), ("--factor", "2.5"),
])
def test_numbers_out_of_range_end_with_status_2(flag, value, capsys):
    with pytest.raises(SystemExit) as error:
        get_config([flag, value])
    assert error.value.code == 2
    assert flag in capsys.readouterr().err


def test_help_shows_the_presets_values(capsys):
    with pytest.raises(SystemExit):
        get_config(["--preset", "paper", "--help"])
    assert "default: 1000000" in capsys.readouterr().out


def test_config_file_gives_defaults_and_unknown_keys_are_errors(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"max_steps": 9, "dataset_name": "llff"}))
    config = get_config(["--config", str(path)])
    assert (config.max_steps, config.dataset_name, config.ray_shape) == (9, "llff", "cylinder")
    assert get_config(["--config", str(path), "--max_steps", "5"]).max_steps == 5
    path.write_text(json.dumps({"max_step": 9}))
    with pytest.raises(UserError, match="max_step"):
        get_config(["--config", str(path)])
    path.write_text("[1]")
    with pytest.raises(UserError, match="list"):
        get_config(["--config", str(path)])


def test_saved_config_reproduces_itself(tmp_path):
    config = get_config(["--preset", "debug", "--dataset_name", "llff", "--seed", "3"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(vars(config)))
    again = get_config(["--config", str(path)])
    assert vars(again) | {"config": None} == vars(config)


@pytest.mark.parametrize("content,words", [
    ({"white_bkgd": "no"}, "true and false"), ({"max_steps": None}, "max_steps"),
    ({"max_steps": True}, "true and false"), ({"batch_size": 0}, "batch_size"),
    ({"scene": 5}, "text is wanted"), ({"data_dir": None}, "text is wanted"),
    ({"ray_shape": "cube"}, "cone, cylinder"), ({"hidden": [1]}, "hidden"),
])
def test_wrong_values_in_a_config_file_are_one_sentence(content, words, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        get_config(["--config", str(path)])


@pytest.mark.parametrize("flags", [["--preset", "paper"], ["--dataset_name", "blender"]])
def test_a_config_file_and_a_typed_preset_or_dataset_contradict(flags, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"dataset_name": "llff", "max_steps": 9}))
    with pytest.raises(SystemExit) as error:
        get_config(["--config", str(path), *flags])
    assert error.value.code == 2 and "drop one" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [
    ["--min_deg", "5", "--max_deg", "5"], ["--fine_loss_mult", "0", "--coarse_loss_mult", "0"],
    ["--dataset_name", "llff", "--spherify", "--ndc"], ["--ndc"],
    ["--num_levels", "1", "--fine_loss_mult", "0"],
])
def test_flags_that_contradict_one_another_end_with_status_2(flags, capsys):
    with pytest.raises(SystemExit) as error:
        get_config(flags)
    assert error.value.code == 2


def test_run_folder_follows_from_the_flags(tmp_path):
    def folder(*flags):
        return run_folder(get_config(["--data_dir", str(tmp_path), *flags])).as_posix()

    assert folder() == "log/blender_demo_mipnerf"
    assert folder("--scene", "a/b/fox", "--log_dir", "x") == "x/blender_fox_mipnerf"
    assert folder("--exp_name", "y") == "log/y"
    assert folder("--exp_name", "y", "--run", "z/run") == "z/run"
    (tmp_path / "nerf_synthetic" / "lego").mkdir(parents=True)
    assert folder() == "log/blender_lego_mipnerf"
    assert folder("--dataset_name", "llff") == "log/llff_demo_mipnerf"


def test_typed_flags_are_those_on_the_command_line():
    assert typed_flags(["--preset", "debug", "--no-ndc"]) == {"preset", "ndc"}


def test_every_flag_is_read_and_every_read_is_a_flag():
    flags = {action.dest for action in _build_parser()._actions} - {"help"}
    read = set()
    for path in SCRIPTS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in ("config", "flags"):
                    read.add(node.attr)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                if node.value.attr == "config":
                    read.add(node.attr)
    assert read <= flags, read - flags
    by_config_itself = {"preset", "config", "run", "log_dir", "exp_name"}
    by_loss = {f"{name}_loss_mult" for name in LOSSES}
    assert not flags - read - by_config_itself - by_loss


def test_choices_of_the_command_line_are_the_tables_of_the_code():
    choices = {action.dest: action.choices for action in _build_parser()._actions}
    assert set(choices["model"]) == set(MODELS)
    assert set(choices["dataset_name"]) == set(DATASETS) == set(DATASET_DEFAULTS)
    assert set(choices["path"]) == {*PATHS, "zoom", "still", "auto"}


@pytest.mark.parametrize("words", [
    ["--zoom", "0"], ["--zoom", "nan"], ["--fps", "0"], ["--frames", "-1"], ["--width", "0"],
    ["--grid_size", "7"], ["--x_range", "1"], ["--y_range", "0", "inf"], ["--path", "round"],
    ["--sigma_threshold", "0"], ["--min_component", "1.5"], ["--grid_size", "100000"],
    ["--width", "1000000"], ["--x_range", "0", "1e30"],
])
def test_flags_of_videos_and_meshes_are_held_to_their_ranges(words, capsys):
    with pytest.raises(SystemExit) as error:
        get_config(words)
    assert error.value.code == 2 and words[0] in capsys.readouterr().err


@pytest.mark.parametrize("low", ["-1", "-1.", "-.5", "-1e-1", "-2.5E+0"])
def test_negative_numbers_may_be_written_in_any_way(low):
    assert get_config(["--x_range", low, "1"]).x_range == [float(low), 1]
    assert get_config(["--density_bias", low]).density_bias == float(low)


def test_memory_that_is_not_there_is_one_sentence(capsys):
    for error in (MemoryError("2 PiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        def main(error=error):
            raise error

        with pytest.raises(SystemExit) as ended:
            run_script(main)
        assert ended.value.code == 2 and "not enough memory" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="a fault"):
        run_script(lambda: (_ for _ in ()).throw(RuntimeError("a fault")))


def test_a_range_may_stand_in_a_config_file(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"x_range": [-1, 2.5]}')
    assert get_config(["--config", str(path)]).x_range == [-1, 2.5]
    for wrong in ("[1]", "3", '["a", 1]', "[1, Infinity]"):
        path.write_text(f'{{"x_range": {wrong}}}')
        with pytest.raises(UserError, match="x_range"):
            get_config(["--config", str(path)])


def test_config_imports_the_standard_library_only():
    import sys

    tree = ast.parse((ROOT / "config.py").read_text())
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import)
                for a in n.names}
    imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= set(sys.stdlib_module_names), imported


KINDS = {
    "mipnerf": [], "mipnerf360": [], "zipnerf": [],
    "nerv": ["--dataset_name", "nerv"], "nerv of networks": ["--dataset_name", "nerv",
                                                            "--nerv_field", "mlp"],
}


class Recorder:
    """A config that notes which flags are read."""

    def __init__(self, config):
        self.config, self.read = config, set()

    def __getattr__(self, name):
        self.read.add(name)
        return getattr(self.config, name)

    @property
    def __dict__(self):
        return vars(self.config)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flag_of_the_model_is_read_when_it_is_built_or_refused_when_it_is_typed(kind):
    model = kind.split()[0]
    words = ["--preset", "debug", "--model", model, *KINDS[kind]]
    config = Recorder(get_config(words))
    build_model(config)
    groups = {group.title: group for group in _build_parser()._action_groups}
    names = {action.dest for action in groups["model"]._group_actions} - {"model"}
    refused = {name for _, is_one, flags in ONLY_FOR if not is_one(config.config)
               for name in flags} & names
    # All models keep it for telling whether a grid of equal cells is fine enough.
    read = config.read - ({"lindisp"} if model != "mipnerf" else set())
    if kind == "nerv of networks":
        read -= {"grid_finest", "visibility_finest"}  # Read, and of no use to networks.
    assert refused == names - read


@pytest.mark.parametrize("words,message", [
    (["--model", "zipnerf", "--num_levels", "3"], "--num_levels is for --model mipnerf,"),
    (["--prop_rounds", "1"], "--prop_rounds is for models with proposals"),
    (["--model", "zipnerf", "--skip", "2"], "--skip is for networks"),
    (["--model", "mipnerf360", "--grid_lr_mult", "2"], "--grid_lr_mult is for hash grids"),
    (["--geometry_share", "0.3"], "--geometry_share is for --model nerv,"),
    (["--lights", "env"], "--lights is for --dataset_name nerv"),
    (["--llffhold", "4"], "--llffhold is for formats"),
    (["--path", "spiral", "--zoom", "3"], "--zoom is for --path zoom"),
])
def test_typed_flags_that_nothing_would_read_are_refused(words, message):
    config = get_config(words)
    with pytest.raises(UserError, match=message):
        check_typed_flags(config, words)


@pytest.mark.parametrize("words", [
    ["--preset", "demozip"], ["--preset", "demo360"], ["--preset", "demonerv", "--lights", "env"],
    ["--preset", "demonervmlp"],
    ["--dataset_name", "llff", "--llffhold", "4"], ["--path", "zoom", "--dolly"],
    ["--model", "nerv", "--dataset_name", "nerv", "--nerv_field", "mlp", "--skip", "2"],
])
def test_flags_that_are_read_are_taken(words):
    check_typed_flags(get_config(words), words)
