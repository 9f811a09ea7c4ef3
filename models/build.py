"""Fields of the sizes that a config gives."""

from torch import nn

from fields import hash_grid
from fields.hash import HashField
from fields.mlp import MLPField


def mlp_field(config, compute_dtype, **others):
    """A network of the config's size."""
    return MLPField(
        hidden=config.hidden, depth=config.depth, skip=config.skip, min_deg=config.min_deg,
        max_deg=config.max_deg, density_bias=config.density_bias, contraction=config.contraction,
        basis=config.basis, init=config.weight_init, compute_dtype=compute_dtype, **others,
    )


def mlp_proposal(config, compute_dtype):
    """The small network of all proposal rounds."""
    return MLPField(
        hidden=config.prop_hidden, depth=config.prop_depth, skip=config.skip, has_rgb=False,
        min_deg=config.min_deg, max_deg=config.max_deg, density_bias=config.density_bias,
        contraction=config.contraction, basis=config.basis, init=config.weight_init,
        compute_dtype=compute_dtype,
    )


def hash_field(config, compute_dtype, **others):
    """A grid and networks of the config's size."""
    return _hash_field(config, compute_dtype, config.grid_finest, features=config.grid_features,
                       hidden=config.hidden, depth=config.depth, **others)


def hash_proposals(config, compute_dtype):
    """A small grid for each proposal round."""
    return nn.ModuleList(
        _hash_field(config, compute_dtype, finest, features=config.prop_features,
                    hidden=config.prop_hidden, depth=config.prop_depth, has_rgb=False)
        for finest in config.prop_finest
    )


def _hash_field(config, compute_dtype, finest, **others):
    return HashField(
        levels=hash_grid.make_levels(config.grid_coarsest, finest, config.grid_log2_size),
        num_multisamples=config.num_multisamples, downweight=config.downweight,
        density_bias=config.density_bias, contraction=config.contraction,
        init=config.weight_init, compute_dtype=compute_dtype, **others,
    )


def head_config(config):
    """What the fields of finest levels have between features and colour."""
    return dict(
        bottleneck=config.bottleneck, view_hidden=config.view_hidden,
        view_depth=config.view_depth, view_skip=config.view_skip,
        use_viewdirs=config.use_viewdirs, view_deg=config.view_deg,
        rgb_padding=config.rgb_padding,
    )
