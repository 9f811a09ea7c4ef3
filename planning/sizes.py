"""Sizes of the hash grids, from the photographs.

A plan is made once, before the first step, and becomes part of the run's flags: a stopped run that
is resumed ends as an unbroken one does. Typed flags are never replaced.
"""

import math

import torch

from config import Config
from datasets import NeRFDataset
from fields.hash import CONTRACTED_RADIUS

# At least so many of the finest cells lie side by side in a pixel at the middle of the scene.
CELLS_PER_PIXEL = 1.25

# Pixels for each entry of a level's table, and the range of its size (log2).
PIXELS_PER_ENTRY, LOG2_SIZES = 8, (17, 21)

# The finest proposal cells are this many of the finest cells wide.
CELLS_PER_PROPOSAL_CELL = 4

# Rays that tell the width of a pixel.
NUM_RAYS = 4096


def plan_sizes(config: Config, dataset: NeRFDataset) -> Config:
    """The flags of a run with hash grids as fine as the photographs, under preset laptop.

    Other presets and models keep their sizes.
    """
    if config.preset != "laptop" or config.model != "zipnerf":
        return config
    finest = 2 ** math.ceil(math.log2(CELLS_PER_PIXEL * pixels_per_side(config, dataset)))
    finest = max(finest, CELLS_PER_PROPOSAL_CELL * config.grid_coarsest)
    num_pixels = len(dataset.scene.pixels)
    log2_size = int(math.log2(num_pixels / PIXELS_PER_ENTRY))
    return with_planned(
        config, grid_finest=finest, prop_finest=(finest // CELLS_PER_PROPOSAL_CELL,),
        grid_log2_size=min(max(log2_size, LOG2_SIZES[0]), LOG2_SIZES[1]))


def pixels_per_side(config: Config, dataset: NeRFDataset) -> float:
    """The side of the cube that the grids cover, in pixel widths at the middle of the scene.

    The middle is the mean of near and far, or, in contracted space, a distance of 1: the cameras
    are scaled so that most lie within 1 of the scene's middle.
    """
    rays = dataset.batch(NUM_RAYS, torch.Generator().manual_seed(0)).rays
    side = float((dataset.scene.box[1] - dataset.scene.box[0]).max())
    middle = (rays.near + rays.far) / 2
    if config.contraction:
        side, middle = 2 * CONTRACTED_RADIUS, torch.ones_like(middle)
    # A radius is the width times 1 / sqrt(3) (mip-NeRF's 2 / sqrt(12)).
    widths = math.sqrt(3) * rays.radii
    if config.ray_shape == "cone":
        widths = widths * middle
    return side / float(widths.median())


def with_planned(config: Config, **values) -> Config:
    """The flags with planned values in place of defaults; given ones stay."""
    return config.replace(**{name: value for name, value in values.items()
                             if name not in config.given})
