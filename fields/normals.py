"""Normals of a field's density, by differentiation."""

from contextlib import nullcontext

import torch
from torch import Tensor

from coord import Gaussians, IsotropicGaussians
from fields.base import Field, FieldOutput, normals_from_gradients
from runtime.gradients import frozen


def query_with_normals(field: Field, gaussians: Gaussians | IsotropicGaussians,
                       *inputs) -> FieldOutput:
    """The `FieldOutput` of Gaussians `[..., S]`, with the normals of the density.

    The gradient is that of raw density, which the activation neither flattens nor steepens, with
    respect to the means before contraction, as in the released code of Ref-NeRF. A mean with
    several multisamples moves all of them. inputs: further arguments of the field. If gradients
    are enabled, the normals can be differentiated in turn, which hash grids on a CPU do not allow.
    """
    create_graph = torch.is_grad_enabled()
    isotropic = isinstance(gaussians, IsotropicGaussians)
    # The kernels of hash grids would also compute the gradient of the table.
    with torch.enable_grad(), nullcontext() if create_graph else frozen(field):
        shift = torch.zeros_like(gaussians.means[..., 0, :] if isotropic else gaussians.means)
        shift.requires_grad_()
        moved = gaussians.means + (shift[..., None, :] if isotropic else shift)
        output = field(gaussians._replace(means=moved), *inputs)
        gradient, = torch.autograd.grad(
            output.raw_density.sum(), shift, create_graph=create_graph)
    if not create_graph:
        output = FieldOutput(*(_detached(value) for value in output))
    return output._replace(density_normals=normals_from_gradients(gradient))


def _detached(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()
