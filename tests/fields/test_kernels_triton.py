"""Triton's kernels against PyTorch and numba: on a GPU, or without one in Triton's interpreter."""

import importlib.util

import pytest
import torch

from fields.hash_grid import KernelEncode, encode, encode_torch, kernels_for, make_levels

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None,
                                reason="triton is not installed; pip install triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAN, INF = float("nan"), float("inf")
# Two dense levels, of which one fits its table exactly, and a hashed one.
LEVELS = make_levels(4, 16, 9)


def random_case(num_groups, num_members, features, dtype=torch.float32, levels=LEVELS):
    generator = torch.Generator().manual_seed(0)
    shape = num_groups, num_members
    points = torch.rand(*shape, 3, generator=generator)
    weights = torch.rand(*shape, len(levels.num_entries), generator=generator)
    table = torch.randn(levels.table_size, features, generator=generator).to(dtype)
    return points.to(DEVICE), weights.to(DEVICE), table.to(DEVICE)


def encode_triton(points, weights, table, levels):
    from fields import kernels_triton

    return KernelEncode.apply(points, weights, table, levels, kernels_triton)


def value_and_gradients(encode_by, points, weights, table, levels=LEVELS):
    inputs = [x.clone().requires_grad_() for x in (points, table)]
    features = encode_by(inputs[0], weights, inputs[1], levels)
    upstream = torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return features.detach(), *torch.autograd.grad(features, inputs, upstream)


def check_equal(points, weights, table, levels=LEVELS, twins=(encode, encode_torch), rtol=1e-4):
    found = value_and_gradients(encode_triton, points, weights, table, levels)
    for twin in twins:
        wanted = value_and_gradients(twin, points, weights, table, levels)
        for a, b, tolerance in zip(found, wanted, (1e-5, 1e-3, 1e-4), strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, atol=max(tolerance, rtol / 10), rtol=rtol)


@pytest.mark.parametrize("num_groups,num_members,features", [
    (0, 6, 4), (1, 1, 1), (129, 1, 4), (5, 6, 1), (3, 2, 3)])
def test_kernels_equal_their_twins_in_value_and_gradient(num_groups, num_members, features):
    check_equal(*random_case(num_groups, num_members, features))


@pytest.mark.parametrize("dtype,rtol", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_tables_are_read_and_get_gradients_of_their_precision(dtype, rtol):
    """The sum over points is in float32: PyTorch's in half precision is coarser."""
    points, weights, table = random_case(40, 2, 2, dtype)
    found = value_and_gradients(encode_triton, points, weights, table)
    exact = value_and_gradients(encode_torch, points, weights, table.float())
    assert found[0].dtype == torch.float32 and found[2].dtype == dtype
    for a, b, tolerance in zip(found, exact, (1e-5, 1e-4, rtol), strict=True):
        torch.testing.assert_close(a.float(), b, atol=10 * tolerance, rtol=tolerance)


def test_points_at_borders_and_outside_equal_their_twins():
    """Half a cell from the border lies the outermost centre, where the slope jumps."""
    values = [0.0, 1.0, 0.5 / 8, 1 - 0.5 / 8, 1e-30, 1 - 2**-24, -3.0, 7.5, -0.0, 1e30, NAN, INF,
              -INF]
    points, weights, table = random_case(3 * len(values) + 1, 1, 2)
    for i, value in enumerate(values):
        for axis in range(3):
            points[3 * i + axis, :, axis] = value
    points[-1] = NAN
    check_equal(points, weights, table)


def test_views_of_larger_tensors_are_read_by_their_strides():
    points, weights, table = random_case(20, 2, 2)
    points, table = points.repeat(1, 1, 2)[..., :3], table.repeat(1, 2)[:, :2]
    weights = weights.transpose(0, 1).contiguous().transpose(0, 1)
    assert not points.is_contiguous() and not weights.is_contiguous()
    check_equal(points, weights, table)


def test_a_large_hashed_level_wraps_at_32_bits_like_its_twins():
    """Coordinates times primes exceed 31 bits, and most of a large table is reached."""
    points, weights, table = random_case(60, 1, 1, levels=make_levels(8192, 8192, 21))
    check_equal(points, weights, table, make_levels(8192, 8192, 21))


def test_gradients_of_zero_are_added_nowhere():
    from fields import kernels_triton

    points, weights, table = random_case(130, 1, 2)
    gradient = torch.zeros(130, 2 * len(LEVELS.num_entries), device=DEVICE)
    gradient[7] = 1.0
    found = kernels_triton.table_gradient(gradient, points, weights, table, LEVELS)
    wanted = kernels_triton.table_gradient(gradient[7:8], points[7:8], weights[7:8], table, LEVELS)
    torch.testing.assert_close(found, wanted)
    gradient[7] = NAN
    found = kernels_triton.table_gradient(gradient, points, weights, table, LEVELS)
    assert found.isnan().any()  # So that a loss that is not finite is reported.


def test_constants_of_levels_are_copied_once_per_device():
    from fields import kernels_triton

    device = torch.device(DEVICE)
    again = make_levels(4, 16, 9)
    assert kernels_triton._constants(LEVELS, device) is kernels_triton._constants(again, device)


def test_kernels_are_chosen_by_device_and_precision(monkeypatch):
    points, _, table = random_case(1, 1, 1)

    def name(device, points=points, table=table):
        where = type("Points", (), {"device": torch.device(device), "dtype": points.dtype})
        kernels = kernels_for(where, table)
        return kernels and kernels.__name__

    assert name("cpu") == "fields.kernels_numba" and name("cuda") == "fields.kernels_triton"
    assert name("cuda", table=table.half()) == "fields.kernels_triton"
    assert name("cpu", table=table.half()) is None
    assert name("mps") is None and name("cuda", points=points.double()) is None
    monkeypatch.setattr("fields.hash_grid.has_triton", lambda: False)
    assert name("cuda") is None
