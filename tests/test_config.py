"""From command lines, files and checkpoints to a config, and what may change once a run exists."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import config as config_module
from config import (
    BY_NAME,
    FLAGS,
    SCRIPTS,
    UserError,
    check_all_read,
    default_config,
    get_config,
    loaded_config,
    override,
    saved_flags,
    shading_name,
    steps_before,
    with_preset,
)
from runtime.errors import UserError as RuntimeUserError
from runtime.flags import RENDERABLE, RESUMABLE
from runtime.run_folder import run_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def file(tmp_path):
    """A function that writes flags to a JSON file and returns its path."""
    def write(**values):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(values))
        return str(path)

    return write


# From words to values.

@pytest.mark.parametrize("changes", [
    {}, {"model": "zipnerf"}, {"model": "mipnerf360", "dataset_name": "colmap"},
    {"model": "nerv", "nerv_field": "mlp"}, {"preset": "laptop", "model": "zipnerf", "hidden": 16},
    {"preset": "debug", "dataset_name": "llff", "prop_finest": [16]},
])
def test_default_config_equals_the_same_command_line(changes):
    words = []
    for name, value in changes.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    assert default_config(**changes) == get_config(words)


def test_default_config_rejects_unknown_flags():
    with pytest.raises(UserError, match="no flag --hiden.*did you mean --hidden"):
        default_config(hiden=3)
    assert RuntimeUserError is UserError


def test_typed_flags_and_given_values_are_remembered(file):
    config = get_config(["--config", file(max_steps=9), "--no-final_eval", "--prop_finest", "64"])
    assert config.typed == {"config", "final_eval", "prop_finest"}
    assert config.given["max_steps"] == 9 and config.given["prop_finest"] == (64,)
    assert get_config(config) is config


def test_an_empty_command_line_names_no_preset_and_a_scene():
    config = get_config([])
    assert config.preset is None and config.scene == "demo" and not config.given


def test_booleans_can_be_switched_both_ways():
    assert get_config(["--no-final_eval"]).final_eval is False
    assert get_config(["--dataset_name", "llff", "--no-ndc"]).ndc is False


@pytest.mark.parametrize("flag", ["--batch", "--unknown_flag"])
def test_shortened_or_unknown_flags_end_with_status_2(flag, capsys):
    with pytest.raises(SystemExit) as error:
        get_config([flag, "1"])
    assert error.value.code == 2 and flag in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["--batch_size", "0"], ["--max_steps", "-1"], ["--lr_init", "nan"], ["--lr_init", "0"],
    ["--density_noise", "-1"], ["--seed", "-1"], ["--seed", "99999999999999999999999"],
    ["--density_bias", "nan"], ["--factor", "2.5"], ["--preset", "demozip"],
    ["--zoom", "0"], ["--zoom", "nan"], ["--fps", "0"], ["--frames", "-1"], ["--width", "0"],
    ["--grid_size", "7"], ["--x_range", "1"], ["--y_range", "0", "inf"], ["--path", "round"],
    ["--sigma_threshold", "0"], ["--min_component", "1.5"], ["--grid_size", "100000"],
    ["--width", "1000000"], ["--x_range", "0", "1e30"],
])
def test_values_out_of_range_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as error:
        get_config(words)
    assert error.value.code == 2 and words[0] in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["--min_deg", "5", "--max_deg", "5"], ["--fine_loss_mult", "0", "--coarse_loss_mult", "0"],
    ["--dataset_name", "llff", "--spherify", "--ndc"], ["--ndc"], ["--scene", ""],
    ["--model", "nerv", "--dataset_name", "blender"], ["--model", "zipnerf", "--prop_rounds", "1"],
])
def test_flags_that_exclude_each_other_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as error:
        get_config(words)
    assert error.value.code == 2 and "error: " in capsys.readouterr().err


# Config files.

def test_a_file_gives_defaults_below_typed_flags(file):
    path = file(max_steps=9, dataset_name="llff", x_range=[-1, 2.5])
    config = get_config(["--config", path])
    assert (config.max_steps, config.dataset_name, config.ray_shape) == (9, "llff", "cylinder")
    assert config.x_range == (-1, 2.5)
    assert get_config(["--config", path, "--max_steps", "5"]).max_steps == 5
    with pytest.raises(UserError, match="max_step, which is not a flag"):
        get_config(["--config", file(max_step=9)])


def test_a_file_gives_the_preset_and_the_model_that_it_names(file):
    path = file(preset="laptop", model="zipnerf", dataset_name="nerv")
    assert get_config(["--config", path]) == default_config(
        preset="laptop", model="zipnerf", dataset_name="nerv", config=path)


@pytest.mark.parametrize("words", [["--preset", "paper"], ["--dataset_name", "blender"],
                                   ["--model", "zipnerf"]])
def test_a_file_and_a_typed_flag_that_chooses_defaults_exclude_each_other(words, file, capsys):
    path = file(dataset_name="llff", max_steps=9)
    with pytest.raises(SystemExit) as error:
        get_config(["--config", path, *words])
    assert error.value.code == 2 and "drop one" in capsys.readouterr().err
    get_config(["--config", path, "--dataset_name", "llff"])


def test_a_saved_config_reproduces_itself(file):
    config = get_config(["--preset", "debug", "--dataset_name", "llff", "--seed", "3"])
    again = get_config(["--config", file(**saved_flags(config))])
    assert saved_flags(again) == saved_flags(config)
    assert "preset" in saved_flags(config) and "exp_name" not in saved_flags(config)


# The preset that no one typed.

def test_with_preset_equals_the_flag_on_the_command_line():
    for words in ([], ["--model", "zipnerf", "--hidden", "16"], ["--scene", "a/b"]):
        for preset in ("gpu", "laptop"):
            config = with_preset(get_config(words), preset)
            assert config == get_config([*words, "--preset", preset])
            assert config.typed == get_config(words).typed


def test_with_preset_keeps_replaced_values():
    assert with_preset(get_config([]).replace(hidden=5), "laptop").hidden == 5


def test_a_training_without_preset_may_fit_either_size():
    words = ["--model", "zipnerf", "--prop_finest", "64"]
    config = get_config(words, "train")
    assert with_preset(config, "laptop").prop_finest == (64,)
    with pytest.raises(UserError, match="with --preset gpu, --prop_finest has 1 numbers"):
        with_preset(config, "gpu")
    for rest, script in (([], None), (["--preset", "gpu"], "train"), (["--ndc"], "train")):
        with pytest.raises(SystemExit):
            get_config([*words, *rest], script)


# Flags that have no effect.

@pytest.mark.parametrize("words,message", [
    (["--model", "zipnerf", "--num_levels", "3"], "--num_levels is for --model mipnerf and has no"),
    (["--prop_rounds", "1"], "--prop_rounds is for models with proposals"),
    (["--model", "zipnerf", "--skip", "2"], "--skip is for MLPs"),
    (["--model", "mipnerf360", "--grid_lr_mult", "2"], "--grid_lr_mult is for hash grids"),
    (["--geometry_share", "0.3"], "--geometry_share is for --model nerv and has no"),
    (["--lights", "env"], "--lights is for --dataset_name nerv"),
    (["--llffhold", "4"], "--llffhold is for captures"),
    (["--path", "spiral", "--zoom", "3"], "--zoom is for --path zoom"),
    (["--model", "nerv", "--nerv_field", "mlp", "--visibility_finest", "32"], "with hash grids"),
    (["--dataset_name", "nerv", "--lights", "env", "--light_intensity", "2"], "--lights point"),
])
def test_typed_flags_without_effect_are_errors(words, message):
    with pytest.raises(UserError, match=message):
        check_all_read(get_config(words))


@pytest.mark.parametrize("words", [
    ["--preset", "laptop", "--model", "zipnerf"], ["--preset", "laptop", "--model", "mipnerf360"],
    ["--model", "nerv", "--lights", "env"], ["--model", "nerv", "--nerv_field", "mlp"],
    ["--dataset_name", "llff", "--llffhold", "4"], ["--path", "zoom", "--dolly"],
    ["--model", "nerv", "--nerv_field", "mlp", "--skip", "2"],
])
def test_flags_that_are_read_are_taken(words):
    check_all_read(get_config(words))


# Flags that may change once a run exists.

def run_of(*words):
    """The config of a run, as its checkpoint gives it back."""
    return loaded_config(json.loads(json.dumps(saved_flags(get_config(list(words))))))


@pytest.mark.parametrize("words", [
    [], ["--preset", "laptop", "--model", "zipnerf"], ["--model", "nerv", "--lights", "env"],
    ["--dataset_name", "llff", "--scene", "a/b", "--x_range", "0", "1"],
])
def test_a_checkpoint_gives_its_config_back(words):
    assert saved_flags(run_of(*words)) == saved_flags(get_config(words))


def test_flags_newer_than_a_checkpoint_have_the_defaults_of_its_model():
    saved = saved_flags(get_config(["--model", "zipnerf"]))
    assert loaded_config({name: saved[name] for name in saved if name != "view_depth"}
                         ).view_depth == 3
    assert loaded_config(saved | {"a_flag_of_the_past": 1}) == loaded_config(saved)


def test_flags_newer_than_a_checkpoint_may_have_another_value_in_older_runs(monkeypatch):
    from dataclasses import replace

    newer = replace(BY_NAME["adam_eps"], before=1e-3)
    monkeypatch.setattr(config_module, "BY_NAME", BY_NAME | {"adam_eps": newer})
    assert loaded_config({}).adam_eps == 1e-3
    assert loaded_config({"adam_eps": 1e-4}).adam_eps == 1e-4


@pytest.mark.parametrize("words,scopes,taken", [
    (["--device", "cpu"], RESUMABLE, True), (["--device", "cpu"], RENDERABLE, True),
    (["--max_steps", "300000"], RESUMABLE, True), (["--max_steps", "300000"], RENDERABLE, False),
    (["--shade_at", "surface"], RESUMABLE, False), (["--shade_at", "surface"], RENDERABLE, True),
    (["--hidden", "8"], RESUMABLE, False), (["--hidden", "8"], RENDERABLE, False),
    (["--hidden", "64"], RESUMABLE, True), (["--hidden", "64"], RENDERABLE, True),
])
def test_scopes_limit_what_resuming_and_rendering_may_change(words, scopes, taken):
    run, command_line = run_of("--model", "nerv"), get_config(words)
    name = words[0].removeprefix("--")
    if taken:
        changed = override(run, command_line, scopes)
        assert getattr(changed, name) == getattr(command_line, name)
        assert changed.replace(**{name: getattr(run, name)}) == run
        assert run == run_of("--model", "nerv")
    else:
        with pytest.raises(UserError, match=f"{words[0]} .* cannot change"):
            override(run, command_line, scopes)


def test_a_script_may_allow_further_flags():
    run = run_of("--model", "nerv")
    command_line = get_config(["--model", "nerv", "--lights", "env"])
    with pytest.raises(UserError, match="--lights env was given, but this run .* point"):
        override(run, command_line, RENDERABLE)
    assert override(run, command_line, RENDERABLE, {"lights"}).lights == "env"


def test_places_are_never_taken_into_a_run():
    command_line = get_config(["--log_dir", "x", "--run", "y", "--continue_training"])
    assert override(run_of(), command_line, RESUMABLE) == run_of()


def test_flags_without_effect_on_a_run_are_errors():
    with pytest.raises(UserError, match="has no effect here"):
        override(run_of(), get_config(["--march_shadows"]), RENDERABLE)


def test_a_run_keeps_its_preset():
    run = run_of("--preset", "laptop", "--model", "zipnerf")
    assert run.preset == "laptop"
    same, other = (get_config(["--model", "zipnerf", "--preset", p]) for p in ("laptop", "paper"))
    assert override(run, same, RESUMABLE) == override(run, same, RENDERABLE) == run
    # When rendering, --preset only finds the run folder; a resumed training cannot change it.
    assert override(run, other, RENDERABLE) == run
    with pytest.raises(UserError, match="--preset paper was given, but .* started with laptop"):
        override(run, other, RESUMABLE)


def test_a_run_without_a_preset_can_be_resumed_with_one():
    run = loaded_config({"model": "zipnerf", "hidden": 32})
    command_line = get_config(["--model", "zipnerf", "--preset", "laptop"])
    assert override(run, command_line, RESUMABLE) == run


def test_run_folders_follow_from_flags(tmp_path):
    def folder(*flags):
        return run_folder(get_config(["--data_dir", str(tmp_path), *flags])).as_posix()

    assert folder() == folder("--preset", "debug") == "log/blender_demo_mipnerf"
    assert folder("--model", "nerv") == "log/nerv_demo_nerv"
    (tmp_path / "nerf_synthetic" / "lego").mkdir(parents=True)
    assert folder() == "log/blender_lego_mipnerf"
    assert get_config(["--data_dir", str(tmp_path)]).scene == "lego"


def test_file_names_tell_shading_that_differs_from_the_runs():
    run = default_config(model="nerv")
    assert shading_name(run, run) == ""
    other = run.replace(shade_at="surface", bounce_directions=8, march_shadows=True)
    assert shading_name(other, run) == "_surface_bounce8_marched"
    assert shading_name(run, other) == "_samples_bounce128_unmarched"


def test_stages_begin_at_whole_steps():
    assert steps_before(0.55 + 0.15, 9000) == 6300 and (0.55 + 0.15) * 9000 > 6300
    assert (steps_before(0.5, 3), steps_before(0, 10), steps_before(1, 10)) == (2, 0, 10)
    assert default_config(model="nerv", max_steps=100).first_lit_step == 55


# Help.

def page(capsys, *words, script="train"):
    with pytest.raises(SystemExit) as ended:
        get_config([*words, "--help"], script)
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("model", BY_NAME["model"].kind)
def test_help_fits_a_screen(script, model, capsys):
    lines = page(capsys, "--model", model, script=script).splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 100


def test_help_shows_what_the_configuration_reads_and_its_values(capsys):
    plain, zip_nerf = page(capsys), page(capsys, "--model", "zipnerf", "--preset", "laptop")
    assert "--num_levels N" in plain and "--grid_finest" not in plain
    assert "--num_levels" not in zip_nerf and "finest level (256)" in zip_nerf
    assert "steps (1900)" in zip_nerf and "steps (200000)" in plain
    assert "--spherify" not in plain.replace("[no-]", "")
    assert "--spherify" in page(capsys, "--dataset_name", "llff").replace("[no-]", "")


def test_the_help_of_rendering_scripts_lists_the_flags_they_may_change(capsys):
    text = page(capsys, script="visualize")
    assert "--frames" in text and "--chunk" in text and "--hidden" not in text
    assert "--grid_size" in page(capsys, script="extract_mesh")
    assert "--lights" in page(capsys, "--model", "nerv", script="evaluate")
    assert "--march_shadows" in page(capsys, "--model", "nerv", script="visualize").replace(
        "[no-]", "")


def test_help_all_shows_every_flag(capsys):
    with pytest.raises(SystemExit):
        get_config(["--help", "all"], "train")
    text = capsys.readouterr().out.replace("[no-]", "")
    assert all(f"  --{name} " in text for name in BY_NAME)
    assert sum(map(len, FLAGS.values())) == len(BY_NAME)


def test_scripts_name_groups_and_flags_that_exist():
    for script in SCRIPTS.values():
        assert set(script.groups) <= FLAGS.keys()
        assert {*script.also, *script.hidden} <= BY_NAME.keys()


@pytest.mark.parametrize("words,status,text", [
    (["--help"], 0, "usage: "), (["--hiden", "3"], 2, "did you mean --hidden?"),
    (["--config", "none.json"], 2, "error: --config none.json is missing"),
])
def test_scripts_answer_before_anything_heavy_is_imported(words, status, text, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import config, sys\nconfig.early_config('train')\nprint('not reached')\n")
    result = subprocess.run([sys.executable, script, *words], capture_output=True, text=True,
                            env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == status and text in result.stdout + result.stderr
    assert "not reached" not in result.stdout and "Traceback" not in result.stderr


def test_config_and_what_it_imports_use_the_standard_library_only():
    code = ("import sys; before = set(sys.modules); import config; "
            "print(*{name.split('.')[0] for name in set(sys.modules) - before})")
    imported = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                              text=True, check=True).stdout.split()
    assert set(imported) <= {*sys.stdlib_module_names, "config", "contradictions", "presets",
                             "runtime"}
