"""Records: frozen groups of named tensors that share their batch axes."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A frozen record of tensors that share batch axes; other values pass through untouched."""

    def map(self, fn):
        """A new record with `fn` applied to each tensor, also inside dictionaries."""
        return replace(self, **{f.name: _map(fn, getattr(self, f.name)) for f in fields(self)})

    def to(self, device):
        return self.map(lambda x: x.to(device, non_blocking=True))

    def __getitem__(self, index):
        """The records at `index` of the first batch axis; scalars belong to all of them."""
        return self.map(lambda x: x[index] if x.dim() else x)


def _map(fn, value):
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, TensorRecord):
        return value.map(fn)
    if isinstance(value, dict):
        return {key: _map(fn, item) for key, item in value.items()}
    return value


def concatenate(records):
    """One record whose tensors are those of `records` (at least one), joined along axis 0.

    Scalars and values that are no tensors are taken from the first.
    """
    first = records[0]
    joined = {f.name: _concatenate([getattr(r, f.name) for r in records]) for f in fields(first)}
    return replace(first, **joined)


def _concatenate(values):
    if isinstance(values[0], TensorRecord):
        return concatenate(values)
    if isinstance(values[0], Tensor) and values[0].dim():
        return torch.cat(values)
    if isinstance(values[0], dict):
        return {key: _concatenate([v[key] for v in values]) for key in values[0]}
    return values[0]
