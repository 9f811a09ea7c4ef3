"""Which training pixels show things that move: the trimmed least squares of --robust."""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

# Cells per side of an image, in which errors are remembered.
CELLS = 32

# RobustNeRF: the fraction of pixels with a low error (0.8 as in its code; the paper writes 0.5),
# and that of low errors above which a neighbourhood counts as a whole.
QUANTILE, MIN_LOW = 0.8, 0.6

# How fast the logarithm of the threshold follows that of the quantile, over a whole training: from
# its start at 1 it takes about a fifth of the steps, in which all pixels are learnt. The most per
# step, beyond which it would swing; and the smallest threshold: 0 could not grow again.
RATE, MAX_RATE, MIN_THRESHOLD = 150.0, 0.2, 1e-8

# How much of a cell's fraction each of its pixels replaces.
CELL_RATE = 0.1


def cell_index(image: Tensor, x: Tensor, y: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Index of the cell of pixel (x, y) of an image, among those of all images; all `[...]`."""
    return (image * CELLS + y * CELLS // height) * CELLS + x * CELLS // width


class OutlierMap(nn.Module):
    """Inliers of training images: trimmed least squares (RobustNeRF, section 4.2).

    A pixel is an inlier if its error is below a quantile of all errors, or if most errors in its
    neighbourhood are. The paper takes both from the patches that make up a batch. A small batch
    then shows a few places only, which it learns badly; here batches are random pixels, and both
    are remembered from the steps before. So no part of a batch depends on another: micro-batches
    and ranks may divide it anywhere.

    threshold: the error below which a pixel's is low. low: `[N, CELLS, CELLS]`, the recent fraction
    of low errors in each cell of N images. Both are in checkpoints.
    """

    threshold: Tensor
    low: Tensor

    def __init__(self, num_images: int):
        super().__init__()
        self.register_buffer("threshold", torch.ones(()))
        self.register_buffer("low", torch.ones(num_images, CELLS, CELLS))

    def inliers(self, is_low: Tensor, cells: Tensor) -> Tensor:
        """Which pixels are inliers, bool `[n]`.

        is_low: bool `[n]`, whose error is low; cells: `[n]`, from `cell_index`.
        """
        return is_low | (self.fraction_around().flatten()[cells] > MIN_LOW)

    def fraction_around(self) -> Tensor:
        """The fraction of low errors `[N, CELLS, CELLS]` in twice a cell's width about each cell.

        As the paper decides on 8x8 pixels by the 16x16 about them.
        """
        padded = pad(self.low[:, None], (1, 1, 1, 1), mode="replicate")
        return avg_pool2d(avg_pool2d(padded, 2, 1), 2, 1)[:, 0]

    def count(self, is_low: Tensor, is_valid: Tensor, cells: Tensor) -> Tensor:
        """How many pixels have a low error, and how many there are, in each cell: `[2, N * cells]`.

        is_valid: bool `[n]`, without masked pixels. Counts of parts of a batch add up.
        """
        counts = self.low.new_zeros(2, self.low.numel())
        return counts.index_add_(1, cells, torch.stack([is_low & is_valid, is_valid]).to(counts))

    def follow(self, counts: Tensor, max_steps: int) -> Tensor:
        """Update the threshold and the cells by the `count` of a step of `max_steps`.

        Returns the step's fraction of low errors. The threshold rests where its mean is `QUANTILE`.
        """
        low, seen = counts
        fraction = low.sum() / seen.sum().clamp(min=1)
        rate = min(RATE / max_steps, MAX_RATE) * (seen.sum() > 0)
        self.threshold.mul_(torch.exp(rate * (QUANTILE - fraction))).clamp_(MIN_THRESHOLD, 1.0)
        kept = ((1 - CELL_RATE) ** seen).view_as(self.low)
        recent = (low / seen.clamp(min=1)).view_as(self.low)
        self.low.mul_(kept).add_((1 - kept) * recent)
        return fraction
