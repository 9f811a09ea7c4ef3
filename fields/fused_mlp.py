"""A field's small networks as one operation, for which a CPU has a fast kernel.

The networks are a chain of linear layers, rectified but for the last. Density is a row of the layer
after the trunk, beside the first layer of the view branch; inputs per ray (of its direction) are
added to that layer's other rows. The bottleneck, which is linear, is multiplied into that layer.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class Shape(NamedTuple):
    """The place of density in the chain, and the number of samples per ray.

    density_layer, density_row: index of the layer with density, and of its row; samples_per_ray:
    consecutive samples with the same inputs per ray.
    """

    density_layer: int
    density_row: int
    samples_per_ray: int


def query(field, features: Tensor, encoded_directions: Tensor | None, with_rgb: bool,
          samples_per_ray: int, feature_scale: float) -> Tensor:
    """Raw density and, with colours, raw colours `[M, 1 + C]` of a field with small networks.

    features: `[M, F]`; encoded_directions: `[N, E]`, inputs of the view branch if there is one;
    samples_per_ray: M / N; feature_scale: factor of the features.
    """
    weights = [layer.weight for layer in field.trunk]
    biases = [layer.bias for layer in field.trunk]
    later, per_ray = [], None
    rows, bias = [field.density.weight], [field.density.bias]
    if with_rgb and not field.use_viewdirs:
        rows, bias = [field.rgb.weight, *rows], [field.rgb.bias, *bias]
    elif with_rgb:
        first, width = field.view[0], field.bottleneck.out_features
        position = first.weight[:, :width]
        rows = [position @ field.bottleneck.weight, *rows]
        bias = [position @ field.bottleneck.bias, *bias]
        per_ray = F.linear(encoded_directions, first.weight[:, width:], first.bias)
        later = [*field.view[1:], field.rgb]
    weights += [torch.cat(rows), *(layer.weight for layer in later)]
    biases += [torch.cat(bias), *(layer.bias for layer in later)]
    weights[0] = feature_scale * weights[0]
    shape = Shape(len(field.trunk), len(weights[len(field.trunk)]) - 1, samples_per_ray)
    return FusedMLP.apply(features, per_ray, shape, *weights, *biases)


class FusedMLP(torch.autograd.Function):
    """Raw density and colours `[M, 1 + C]` of features `[M, F]`.

    shape: a `Shape`; per_ray: `[N, W]` or None; parameters: all weights, then all biases.
    """

    @staticmethod
    def forward(ctx, features, per_ray, shape, *parameters):
        from fields import kernels_mlp

        ctx.save_for_backward(features, per_ray, *parameters)
        ctx.shape = shape
        return kernels_mlp.forward(features, per_ray, *_halves(parameters), shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        from fields import kernels_mlp

        features, per_ray, *parameters = ctx.saved_tensors
        grad_features, grad_rays, grad_weights, grad_biases = kernels_mlp.backward(
            gradient, features, per_ray, *_halves(parameters), ctx.shape)
        return grad_features, grad_rays, None, *grad_weights, *grad_biases


def _halves(parameters):
    half = len(parameters) // 2
    return parameters[:half], parameters[half:]


def evaluate_layers(features: Tensor, per_ray: Tensor | None, shape: Shape, *parameters: Tensor
                    ) -> Tensor:
    """The outputs of `FusedMLP`, in PyTorch operations."""
    x, density = features, None
    weights, biases = _halves(parameters)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = F.linear(x, weight, bias)
        if layer == shape.density_layer:
            row = shape.density_row
            density, x = x[:, row : row + 1], torch.cat([x[:, :row], x[:, row + 1 :]], dim=-1)
            if per_ray is not None:
                x = x + per_ray.repeat_interleave(shape.samples_per_ray, dim=0)[: len(x)]
        if layer < len(weights) - 1:
            x = x.relu()
    return torch.cat([density, x], dim=-1)
