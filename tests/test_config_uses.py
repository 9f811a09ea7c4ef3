"""Flags and the code that reads them: each is read, and choices are the tables of the code."""

import ast
from pathlib import Path

import pytest

from config import BY_NAME, FLAGS, get_config
from datasets import DATASETS
from loss import LOSSES
from model import MODELS, build_model

ROOT = Path(__file__).parents[1]
FILES = [path for pattern in ("*.py", "*/*.py") for path in ROOT.glob(pattern)
         if path.name not in ("config.py", "contradictions.py")
         and path.parent.name not in ("tests", "scripts")]

# Attributes of a `Config` besides flags.
OTHERS = {"geometry", "first_lit_step", "replace", "given", "typed"}


def attributes_of_configs(path):
    """Names read as `config.<name>`, `flags.<name>` or `<anything>.config.<name>` in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", None)
            if name == "config":
                yield node.attr


def test_every_flag_is_read_and_every_read_is_a_flag():
    read = {name for path in FILES for name in attributes_of_configs(path)} - OTHERS
    assert read <= BY_NAME.keys(), read - BY_NAME.keys()
    by_config_itself = {"preset", "config", "run", "log_dir", "exp_name"}
    by_loss = {f"{name}_loss_mult" for name in LOSSES}
    assert not BY_NAME.keys() - read - by_config_itself - by_loss


def test_choices_of_the_command_line_are_the_tables_of_the_code():
    from cameras.paths import PATHS

    assert set(BY_NAME["model"].kind) == set(MODELS)
    assert set(BY_NAME["dataset_name"].kind) == set(DATASETS)
    assert set(BY_NAME["path"].kind.words) == {*PATHS, "zoom", "still", "auto"}
    assert {name for name in BY_NAME if name.endswith("_loss_mult")} == {
        f"{name}_loss_mult" for name in LOSSES}


KINDS = {"mipnerf": [], "mipnerf360": [], "zipnerf": [], "nerv": [],
         "nerv of MLPs": ["--nerv_field", "mlp"]}


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
    words = ["--preset", "debug", "--model", kind.split()[0], *KINDS[kind]]
    config = Recorder(get_config(words))
    build_model(config)
    names = {flag.name for flag in FLAGS["model"]} - {"model"}
    refused = {name for name in names if not BY_NAME[name].is_read(config.config)}
    # All models keep it for telling whether a grid of equal cells is fine enough.
    read = config.read - ({"lindisp"} if kind != "mipnerf" else set())
    if kind == "nerv of MLPs":
        read -= {"grid_finest", "visibility_finest"}  # Read, and of no use to MLPs.
    assert refused == names - read
