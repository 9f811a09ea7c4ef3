"""The exponential of the released code."""

import torch

# The exponent is clamped to about the logarithm of the largest float32.
MAX_EXPONENT = 88.0


class SafeExp(torch.autograd.Function):
    """Exponential with a clamped exponent, whose gradient passes where it is clamped."""

    @staticmethod
    def forward(ctx, x):
        value = x.clamp(max=MAX_EXPONENT).exp()
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx, gradient):
        value, = ctx.saved_tensors
        return gradient * value
