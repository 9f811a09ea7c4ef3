"""Build the fields of a config's sizes."""

import torch
from torch import nn

from fields import hash_grid
from fields.base import Head, Trunk
from fields.hash import HashField
from fields.mlp import MLPField


def head_config(config) -> Head:
    """The `Head` of the finest level's field."""
    return Head(
        bottleneck=config.bottleneck, view_hidden=config.view_hidden,
        view_depth=config.view_depth, view_skip=config.view_skip, view_deg=config.view_deg,
        use_viewdirs=config.use_viewdirs, rgb_padding=config.rgb_padding,
    )


def mlp_field(config, compute_dtype: torch.dtype, head: Head | None,
              has_density: bool = True) -> MLPField:
    """The MLP of the finest level."""
    trunk = Trunk(config.hidden, config.depth, config.skip)
    return _mlp_field(config, compute_dtype, trunk, head, has_density)


def mlp_proposal(config, compute_dtype: torch.dtype) -> MLPField:
    """The density-only MLP of all proposal rounds."""
    trunk = Trunk(config.prop_hidden, config.prop_depth, config.skip)
    return _mlp_field(config, compute_dtype, trunk, None, True)


def _mlp_field(config, compute_dtype, trunk, head, has_density):
    return MLPField(
        trunk, head, min_deg=config.min_deg, max_deg=config.max_deg,
        density_bias=config.density_bias, contraction=config.contraction, basis=config.basis,
        init=config.weight_init, compute_dtype=compute_dtype, has_density=has_density,
    )


def hash_field(config, compute_dtype: torch.dtype, head: Head | None, has_density: bool = True,
               finest: int | None = None) -> HashField:
    """The hash grid and MLPs of the finest level.

    finest: cells per side of the finest grid level, `config.grid_finest` if None.
    """
    trunk = Trunk(config.hidden, config.depth)
    return _hash_field(config, compute_dtype, trunk, head, has_density,
                       finest or config.grid_finest, config.grid_features)


def hash_proposals(config, compute_dtype: torch.dtype) -> nn.ModuleList:
    """A small density-only hash field for each proposal round."""
    trunk = Trunk(config.prop_hidden, config.prop_depth)
    return nn.ModuleList(
        _hash_field(config, compute_dtype, trunk, None, True, finest, config.prop_features)
        for finest in config.prop_finest
    )


def _hash_field(config, compute_dtype, trunk, head, has_density, finest, features):
    return HashField(
        trunk, head, features=features,
        levels=hash_grid.make_levels(config.grid_coarsest, finest, config.grid_log2_size),
        num_multisamples=config.num_multisamples, downweight=config.downweight,
        append_scale=config.append_scale,
        density_bias=config.density_bias, contraction=config.contraction,
        init=config.weight_init, compute_dtype=compute_dtype, has_density=has_density,
    )
