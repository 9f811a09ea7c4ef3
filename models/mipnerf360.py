"""mip-NeRF 360: proposals, contraction, off-axis encoding."""

from dataclasses import replace

import torch
from torch import Tensor

import coord
import stepfun
from fields.base import Field
from fields.occupancy import RayOccupancy
from models.base import RayModel
from models.build import head_config, mlp_field, mlp_proposal
from structures import Rays, RenderOutput


class MipNeRF360(RayModel):
    """mip-NeRF 360 (Barron et al., CVPR 2022): proposals, contraction, off-axis encoding.

    A small density-only proposal MLP, shared by all rounds, places the samples of the next round;
    the large MLP is evaluated only at the last round's samples. Samples lie in s, in [0, 1].
    """

    log_distance = True

    def __init__(self, config, compute_dtype=torch.float32):
        super().__init__(config)
        self.compute_dtype = compute_dtype
        self.prop_rounds, self.prop_samples = config.prop_rounds, config.prop_samples
        self.max_samples_per_level = max(config.num_samples, config.prop_samples)
        self.first_rgb_level = config.prop_rounds
        self.ray_warp, self.anneal_slope = config.ray_warp, config.anneal_slope
        self.dilation_bias, self.dilation_mult = config.dilation_bias, config.dilation_mult
        self.build_fields(config, compute_dtype)

    def build_fields(self, config, compute_dtype: torch.dtype):
        """Set `field` and the proposals."""
        head = replace(head_config(config), glo_features=config.glo_features,
                       predicts_normals=config.predicted_normals)
        self.field = mlp_field(config, compute_dtype, head)
        self.trains_normals = config.predicted_normals and config.predicted_normal_loss_mult > 0
        self.proposal = mlp_proposal(config, compute_dtype)

    def proposal_field(self, level: int) -> Field:
        """The field of a proposal round."""
        return self.proposal

    def reference_params(self) -> dict[str, Tensor]:
        return (self.field.reference_params("NerfMLP_0/Dense_{index}/{kind}")
                | self.proposal.reference_params("PropMLP_0/Dense_{index}/{kind}"))

    def normalized_distance(self, rays: Rays, t: Tensor) -> Tensor:
        return coord.construct_ray_warps(self.ray_warp, rays.near, rays.far).t_to_s(t)

    @property
    def samples_evenly(self) -> bool:
        return super().samples_evenly and self.ray_warp == "linear"

    def render_levels(self, rays: Rays, train_frac: float, rng, ray_occupancy: RayOccupancy | None,
                      density_normals: bool = False,
                      with_rgb: bool = True) -> list[RenderOutput]:
        """Render one level per round. Proposal weights are annealed by `train_frac`.

        with_rgb: whether the last round has colours; proposals have none.
        """
        warps = coord.construct_ray_warps(self.ray_warp, rays.near, rays.far)
        outputs: list[RenderOutput] = []
        samples_so_far = 1
        for level in range(self.prop_rounds + 1):
            is_last = level == self.prop_rounds
            field = self.field if is_last else self.proposal_field(level)
            count = self.num_samples if is_last else self.prop_samples
            dilation = self.dilation_bias + self.dilation_mult / samples_so_far
            sdist = self.sample_level(rays, outputs, count, dilation, train_frac, rng)
            samples_so_far *= count
            tdist = warps.s_to_t(sdist)
            if ray_occupancy is None:
                samples = self.query_field(field, tdist, rays, rng, with_rgb=is_last and with_rgb,
                                           density_normals=is_last and density_normals)
            else:
                samples = self.query_occupied(
                    field, tdist, rays, ray_occupancy, is_last and with_rgb,
                    is_last and density_normals)
            outputs.append(self.composite(samples, tdist, sdist, rays, rng))
        return outputs

    @torch.no_grad()
    def sample_level(self, rays: Rays, outputs: list[RenderOutput], count: int, dilation: float,
                     train_frac: float, rng) -> Tensor:
        """Fenceposts `[..., count + 1]` in s: even in the first round, else from the one before."""
        jitter = self._random(torch.rand, (*rays.shape, 1), rays.origins, rng)
        if not outputs:
            sdist = torch.cat([torch.zeros_like(rays.near), torch.ones_like(rays.near)], dim=-1)
            logits = torch.zeros_like(rays.near)
            return stepfun.sample_intervals(sdist, logits, count, jitter, domain=(0.0, 1.0))
        sdist, weights = outputs[-1].sdist, outputs[-1].weights
        if dilation > 0:
            sdist, weights = stepfun.max_dilate_weights(
                sdist, weights, dilation, (0.0, 1.0), renormalize=True)
            sdist, weights = sdist[..., 1:-1], weights[..., 1:-1]
        # Schlick's bias: uniform at first (mip-NeRF 360, section 3.2).
        anneal = self.anneal_slope * train_frac / ((self.anneal_slope - 1) * train_frac + 1)
        # Avoid NaN for an empty ray, and from 0 log 0 at the first step.
        logits = anneal * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
        logits = logits.where(sdist[..., 1:] > sdist[..., :-1], -torch.inf)
        return stepfun.sample_intervals(sdist, logits, count, jitter, domain=(0.0, 1.0))
