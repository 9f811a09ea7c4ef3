"""The learning rate as a pure function of the step."""

import math

from torch.optim.lr_scheduler import LambdaLR


def learning_rate(step, lr_init, lr_final, max_steps, lr_delay_steps=0, lr_delay_mult=1.0):
    """Log-linear decay from `lr_init` to `lr_final`, with a warm-up (mip-NeRF's official code).

    step: steps done; beyond `max_steps` the rate stays at `lr_final`.
    lr_delay_steps: length of the warm-up, during which the rate is multiplied by a quarter period
        of a sine that rises from `lr_delay_mult` to 1; 0 for none.
    """
    progress = min(max(step / max_steps, 0.0), 1.0)
    rate = math.exp((1 - progress) * math.log(lr_init) + progress * math.log(lr_final))
    if lr_delay_steps > 0:
        warm_up = math.sin(0.5 * math.pi * min(max(step / lr_delay_steps, 0.0), 1.0))
        rate *= lr_delay_mult + (1 - lr_delay_mult) * warm_up
    return rate


def scheduled_rate(config, step):
    """The learning rate of a step by the config's flags."""
    return learning_rate(
        step, config.lr_init, config.lr_final, config.max_steps,
        config.lr_delay_steps, config.lr_delay_mult,
    )


def make_scheduler(optimizer, config, step=0):
    """A PyTorch scheduler that sets `learning_rate` for the config's flags, from `step` on."""
    # LambdaLR multiplies the rate that it finds under this name.
    for group in optimizer.param_groups:
        group["initial_lr"] = 1.0
    return LambdaLR(optimizer, lambda k: scheduled_rate(config, k), last_epoch=step - 1)
