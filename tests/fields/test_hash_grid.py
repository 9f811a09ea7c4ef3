"""The hash encoding against grid_sample and finite differences; kernels against PyTorch."""

import itertools
import sys

import numpy as np
import pytest
import torch

from fields import hash_grid
from fields.hash_grid import encode, encode_torch, make_levels
from scripts import bench_hash_grid

DOUBLE = torch.float64


def random_case(num_groups, num_members, features, levels=None, dtype=torch.float32):
    levels = levels or make_levels(3, 50, 9)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(num_groups, num_members, 3, generator=generator, dtype=dtype)
    weights = torch.rand(num_groups, num_members, len(levels.num_entries), generator=generator,
                         dtype=dtype)
    table = torch.randn(levels.table_size, features, generator=generator, dtype=dtype)
    return points, weights, table, levels


def test_levels_double_and_are_dense_while_they_fit_the_table():
    levels = make_levels(4, 70, 10)
    assert levels.resolutions == (4, 8, 16, 32, 64)
    assert levels.num_entries == (64, 512, 1024, 1024, 1024)
    assert levels.offsets == (0, 64, 576, 1600, 2624) and levels.table_size == 3648
    assert make_levels(5, 9, 10).resolutions == (5,)
    assert make_levels(8, 16, 9).num_entries == (512, 512)  # 8^3 entries fit exactly.


@pytest.mark.parametrize("encode_by", [encode, encode_torch])
def test_a_dense_level_is_trilinear(encode_by):
    """Trilinear interpolation between cell centres by `grid_sample`, with nothing outside."""
    levels = make_levels(6, 6, 12)
    points, weights, table, levels = random_case(300, 1, 3, levels)
    points[:4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.01, 0.5, 0.99], [1, 0, 0.5]])[:, None]
    volume = table.reshape(1, 6, 6, 6, 3).permute(0, 4, 3, 2, 1)  # z, y, x
    wanted = torch.nn.functional.grid_sample(
        volume, 2 * points[None, :, :, None] - 1, align_corners=False)[0, :, :, 0, 0].T
    found = encode_by(points, torch.ones_like(weights), table, levels)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encode_by", [encode, encode_torch])
def test_hashed_cells_use_the_hash_as_table_index(encode_by):
    _, _, table, levels = random_case(1, 1, 2, make_levels(200, 200, 9))
    for corner in itertools.product((-1, 0, 1, 77, 199, 200), repeat=3):
        # In unsigned 32-bit arithmetic. The cells -1 and 200 are met halfway, at the border.
        x, y, z = (np.uint32(np.int64(c) & 0xFFFFFFFF) for c in corner)
        with np.errstate(over="ignore"):
            entry = int(x ^ (y * np.uint32(19349663)) ^ (z * np.uint32(83492791))) % 512
        leaf = table.clone().requires_grad_()
        point = ((torch.tensor(corner) + 0.5) / 200).clamp(0, 1)[None, None]
        encode_by(point, torch.ones(1, 1, 1), leaf, levels).sum().backward()
        expected = 0.5 ** sum(c in (-1, 200) for c in corner)
        assert float(leaf.grad[entry, 0]) == pytest.approx(expected, abs=2e-2), corner


@pytest.mark.parametrize("encode_by", [encode, encode_torch])
def test_multisamples_are_weighted_and_averaged(encode_by):
    points, weights, table, levels = random_case(5, 6, 4)
    alone = encode_by(points.reshape(30, 1, 3), torch.ones(30, 1, 5), table, levels)
    wanted = (alone.reshape(5, 6, 5, 4) * weights[..., None]).mean(dim=1).reshape(5, 20)
    torch.testing.assert_close(encode_by(points, weights, table, levels), wanted,
                               atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encode_by", [encode, encode_torch])
def test_no_gradient_flows_to_the_weights(encode_by):
    points, weights, table, levels = random_case(5, 2, 3)
    table.requires_grad_()
    weights.requires_grad_()
    encode_by(points, weights, table, levels).sum().backward()
    assert weights.grad is None and table.grad is not None


@pytest.mark.parametrize("num_groups", [0, 1, 1300])
@pytest.mark.parametrize("num_members,features", [(1, 4), (6, 1), (2, 3)])
def test_kernels_equal_pytorch_in_value_and_gradient(num_groups, num_members, features):
    assert hash_grid.has_numba()
    points, weights, table, levels = random_case(num_groups, num_members, features)
    upstream = torch.randn(num_groups, len(levels.num_entries) * features)
    results = []
    for encode_by in (encode, encode_torch):
        inputs = [x.clone().requires_grad_() for x in (points, table)]
        found = encode_by(inputs[0], weights, inputs[1], levels)
        results.append((found.detach(), *torch.autograd.grad(found, inputs, upstream)))
    for kernel, plain, tolerance in zip(*results, (1e-5, 1e-4, 1e-3), strict=True):
        torch.testing.assert_close(kernel, plain, atol=tolerance, rtol=1e-4)


def test_pytorch_gradients_equal_finite_differences():
    points, weights, table, levels = random_case(4, 2, 2, make_levels(3, 12, 7), DOUBLE)
    # Inside cells: at their faces the slope jumps.
    points = (((points * 12).floor() + 0.2 + 0.6 * (points * 7 % 1)) / 12).requires_grad_()
    table.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda p, t: encode_torch(p, weights, t, levels), (points, table))


@pytest.mark.parametrize("encode_by", [encode, encode_torch])
@pytest.mark.parametrize("value,inside", [(-3.0, 0.0), (1.0, 1.0), (7.5, 1.0), (float("nan"), 0.0),
                                          (float("inf"), 1.0)])
def test_points_outside_are_clamped_to_the_cube(encode_by, value, inside):
    points, weights, table, levels = random_case(3, 1, 2)
    points[:, :, 1] = value
    moved = points.clone()
    moved[:, :, 1] = inside
    points.requires_grad_()
    found = encode_by(points, weights, table, levels)
    torch.testing.assert_close(found, encode_by(moved, weights, table, levels))
    slope = torch.autograd.grad(found.sum(), points)[0]
    if value != inside:
        assert (slope[:, :, 1] == 0).all()


def test_kernels_do_not_depend_on_the_number_of_threads():
    points, weights, table, levels = random_case(3000, 2, 4)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        leaf = table.clone().requires_grad_()
        found = encode(points, weights, leaf, levels)
        results.append((found, *torch.autograd.grad(found.square().sum(), leaf)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_second_derivatives_of_kernels_raise():
    points, weights, table, levels = random_case(4, 1, 2)
    points.requires_grad_()
    first, = torch.autograd.grad(encode(points, weights, table, levels).square().sum(), points,
                                 create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_missing_numba_is_logged(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "fields.kernels_numba", None)
    with caplog.at_level("INFO"):
        assert not hash_grid.has_numba.__wrapped__()
    assert "pip install -r requirements.txt" in caplog.text


def test_missing_numba_falls_back_to_pytorch(monkeypatch):
    points, weights, table, levels = random_case(10, 1, 2)
    wanted = encode(points, weights, table, levels)
    monkeypatch.setattr(hash_grid, "has_numba", lambda: False)
    torch.testing.assert_close(encode(points, weights, table, levels), wanted)
    # Other precisions have no kernel.
    found = encode(points.double(), weights.double(), table.double(), levels)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_benchmark_prints_a_row_per_implementation(capsys):
    assert bench_hash_grid.main(["--points", "64", "--rounds", "1", "--finest", "32"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert [row[0] for row in rows[2:]] == ["| kernels", "| PyTorch"]
    assert all(float(cell.rstrip(" |")) >= 0 for row in rows[2:] for cell in row[1:])
