"""Zip-NeRF: mip-NeRF 360's sampling of anti-aliased hash grids."""

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

import coord
from fields.base import Field
from models.build import hash_field, hash_proposals, head_config
from models.mipnerf360 import MipNeRF360
from structures import RenderOutput

# The distortion loss of contracted scenes is measured in P(premult t, lambda), as in the released
# code, where far spreads cost little: ten times as far away, the same spread costs 1/18.
DISTORTION_PREMULT = 10_000
DISTORTION_LAMBDA = -0.25


class ZipNeRF(MipNeRF360):
    """Zip-NeRF (Barron et al., ICCV 2023): mip-NeRF 360's sampling of anti-aliased hash grids.

    Each proposal round has a hash grid of its own, finer from round to round.
    """

    def build_fields(self, config, compute_dtype: torch.dtype):
        head = replace(head_config(config), glo_features=config.glo_features, glo_affine=True)
        self.field = hash_field(config, compute_dtype, head)
        self.proposals = hash_proposals(config, compute_dtype)
        self.pulse_widths = config.pulse_width

    def proposal_field(self, level: int) -> Field:
        return cast(Field, self.proposals[level])

    def reference_params(self) -> dict[str, Tensor]:
        parameters: dict[str, Tensor] = {}
        for i, field in enumerate([*self.proposals, self.field]):
            parameters |= field.reference_params(f"MLP_{i}/Dense_{{index}}/{{kind}}")
            parameters |= field.reference_grids(f"grid_{i}")
        return parameters

    def distortion_fenceposts(self, output: RenderOutput) -> Tensor:
        if self.contraction:
            return coord.power_ladder(DISTORTION_PREMULT * output.tdist, DISTORTION_LAMBDA)
        return super().distortion_fenceposts(output)
