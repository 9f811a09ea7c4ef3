"""mip-NeRF's network against a slow twin; shapes, randomness and rendering of every model."""

import math

import numpy as np
import pytest
import torch

import coord
from config import default_config
from coord import Gaussians
from fields.base import FieldOutput
from model import MODELS, build_model
from relighting.lights import point_lights
from rendering import render_image
from runtime.randomness import BatchRandom
from stepfun import sorted_piecewise_constant_pdf
from structures import Rays, Shading

# All sizes differ, so that none can stand in for another.
ODD = dict(num_samples=7, hidden=18, depth=5, skip=2, view_hidden=11, view_depth=2, max_deg=5,
           min_deg=1, view_deg=3, grid_finest=32, grid_log2_size=9, prop_finest=[16, 16],
           precision="fp32")


def make_rays(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(*shape, 3, generator=generator)
    one = torch.ones(*shape, 1)
    return Rays(
        origins=torch.randn(*shape, 3, generator=generator), directions=directions,
        viewdirs=torch.nn.functional.normalize(directions, dim=-1), radii=0.01 * one,
        near=2 * one, far=6 * one, lossmult=one, cam_idx=torch.zeros(*shape, 1).long(),
    ).with_lights(point_lights(torch.tensor([[3.0, 1.0, 4.0]]), torch.tensor([[50.0, 40.0, 30.0]])))


def make_model(**flags):
    return build_model(default_config(**(ODD | flags)))


def reference_arrays(field, seed=0):
    """Random weights in the official layout for a field of any size."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for i, layer in enumerate(field.layers()):
        size_out, size_in = layer.weight.shape
        scale = math.sqrt(2 / size_in)
        arrays[f"Dense_{i}_kernel"] = rng.normal(0, scale, (size_in, size_out)).astype(np.float32)
        arrays[f"Dense_{i}_bias"] = rng.normal(0, 0.1, size_out).astype(np.float32)
    return arrays


def slow_network(arrays, encoding, view_encoding, *, depth, skip, view_depth):
    """The official network, one sample at a time, in float64 NumPy."""
    def dense(i, x):
        return x @ arrays[f"Dense_{i}_kernel"].astype(float) + arrays[f"Dense_{i}_bias"]

    x = encoding
    for i in range(depth):
        x = np.maximum(dense(i, x), 0)
        if i % skip == 0 and i > 0:
            x = np.concatenate([x, encoding])
    density = np.log1p(np.exp(dense(depth, x)[0] - 1))
    x = np.concatenate([dense(depth + 1, x), view_encoding])
    for i in range(view_depth):
        x = np.maximum(dense(depth + 2 + i, x), 0)
    raw = dense(depth + 2 + view_depth, x)
    return density, 1.002 / (1 + np.exp(-raw)) - 0.001


@pytest.mark.parametrize("sizes", [
    dict(depth=8, skip=4, view_depth=1, hidden=16, view_hidden=9, max_deg=16, min_deg=0),
    dict(depth=5, skip=2, view_depth=2, hidden=13, view_hidden=7, max_deg=4, min_deg=1),
    dict(depth=3, skip=4, view_depth=3, hidden=6, view_hidden=5, max_deg=2, min_deg=0),
])
def test_network_equals_a_slow_twin(sizes):
    model = make_model(**sizes)
    arrays = reference_arrays(model.field)
    model.load_reference_params(arrays)
    means = torch.randn(2, 3, 3)
    covs = torch.rand(2, 3, 3) * 1e-3
    viewdirs = torch.nn.functional.normalize(torch.randn(2, 3), dim=-1)
    found = model.field(Gaussians(means, covs), viewdirs)
    encodings = coord.integrated_pos_enc(means, covs, sizes["min_deg"], sizes["max_deg"]).numpy()
    view_encodings = coord.pos_enc(viewdirs, 0, ODD["view_deg"]).numpy()
    layout = {key: sizes[key] for key in ("depth", "skip", "view_depth")}
    for i in range(2):
        for j in range(3):
            density, rgb = slow_network(arrays, encodings[i, j], view_encodings[i], **layout)
            assert float(found.density[i, j].detach()) == pytest.approx(density, rel=1e-4)
            np.testing.assert_allclose(found.rgb[i, j].detach(), rgb, rtol=1e-4, atol=1e-6)


def test_paper_network_has_the_official_layers():
    shapes = [tuple(layer.weight.shape) for layer in build_model(default_config()).field.layers()]
    trunk = [(256, 96)] + [(256, 256)] * 4 + [(256, 352)] + [(256, 256)] * 2
    assert shapes == [*trunk, (1, 256), (256, 256), (128, 283), (3, 128)]


def test_weights_start_glorot_uniform_and_biases_at_zero():
    for layer in build_model(default_config()).field.layers():
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert layer.weight.abs().max() <= bound
        # The standard deviation of a uniform number, within five of its own deviations.
        deviation = layer.weight.std() / (bound / math.sqrt(3))
        assert abs(deviation - 1) < 5 / math.sqrt(layer.weight.numel())
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("change,message", [
    (lambda a: a.pop("Dense_0_bias"), "Dense_0_bias"),
    (lambda a: a.update(Dense_99_bias=np.zeros(1)), "Dense_99_bias"),
    (lambda a: a.update(Dense_0_bias=np.zeros(1)), "Dense_0_bias"),
])
def test_mismatched_reference_params_raise(change, message):
    model = make_model()
    arrays = reference_arrays(model.field)
    change(arrays)
    with pytest.raises(ValueError, match=message):
        model.load_reference_params(arrays)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (2, 3)])
def test_every_model_renders_any_batch_shape(name, shape):
    model = make_model(model=name).eval()
    rays = make_rays(*shape)
    outputs = model(rays)
    for output in outputs:
        assert output.rgb.shape == (*shape, 3)
        assert torch.isfinite(output.rgb).all()
        assert (output.acc >= 0).all() and (output.acc <= 1 + 1e-6).all()
        assert (output.tdist.diff(dim=-1) >= 0).all()
        assert (output.sdist >= -1e-6).all() and (output.sdist <= 1 + 1e-6).all()
    image = render_image(model, rays, chunk=4)
    assert image.rgb.shape == (*shape, 3) and image.distance_mean.shape == shape


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_is_deterministic_in_eval_and_random_in_training(name):
    model, rays = make_model(model=name), make_rays(4)
    model.eval()
    assert torch.equal(model(rays)[-1].rgb, model(rays)[-1].rgb)
    model.train()
    rows = torch.arange(4)
    colours = [model(rays, rng=BatchRandom(s, 4).for_rows(rows))[-1].rgb for s in (1, 1, 2)]
    assert torch.equal(colours[0], colours[1]) and not torch.equal(colours[0], colours[2])
    model.train().eval()
    assert torch.equal(model(rays)[-1].rgb, model(rays)[-1].rgb)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_forward_passes_and_renderings_change_no_model(name):
    model, rays = make_model(model=name), make_rays(4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()(rays, 0.9)
    image = render_image(model.eval(), rays)
    model.set_train_frac(1.0)
    shaded = render_image(model, rays)
    other = render_image(model, rays, shading=Shading("surface", 3, True))
    assert torch.equal(render_image(model, rays).rgb, shaded.rgb)
    # Only NeRV shades surfaces, and only after its last stage has begun.
    assert torch.equal(other.rgb, shaded.rgb) == torch.equal(shaded.rgb, image.rgb) == (
        name != "nerv")
    model.set_train_frac(0.0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_passes_gradients_to_all_weights(name):
    """At least one stage of training reaches every weight."""
    model, rays = make_model(model=name).train(), make_rays(6)
    for train_frac, _ in model.stages:
        outputs = model(rays, train_frac)
        values = [v for output in outputs
                  for v in (output.rgb, *output.extras.values(), output.visibility_error)]
        sum(value.sum() for value in values if value is not None).backward()
    for parameter_name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), parameter_name
    moved = [bool((p.grad != 0).any()) for p in model.parameters()]
    assert all(moved)


def test_fine_samples_follow_the_coarse_weights():
    """A wall of density in [4, 4.2] attracts most of the fine samples."""
    model, rays = make_model(num_samples=64), make_rays(50)
    rays = type(rays)(**(vars(rays) | {"origins": torch.zeros(50, 3),
                                       "directions": rays.viewdirs}))

    def wall(gaussians, viewdirs=None, noise=None, with_rgb=True, appearance=None):
        distance = gaussians.means.norm(dim=-1)
        density = 100.0 * ((distance > 4) & (distance < 4.2))
        return FieldOutput(density, torch.zeros(*density.shape, 3))

    model.train()
    model.field.forward = wall
    coarse, fine = model(rays)
    inside = ((fine.tdist > 3.8) & (fine.tdist < 4.4)).float().mean()
    # Padding alone spreads 64 x 0.01 over the ray against a blurred mass of about 2.
    assert 0.6 < inside < 0.95
    assert (fine.tdist == 6).float().mean() < 0.05
    wanted = sorted_piecewise_constant_pdf(coarse.tdist, coarse.weights + 1e-6, 64)
    assert ((wanted > 3.9) & (wanted < 4.3)).float().mean() > 0.95


def test_density_noise_is_gaussian_and_only_in_training():
    model = make_model(density_noise=0.7)
    like = torch.zeros(400, 500)
    noise = model.train().sample_density_noise(like, None) / 0.7
    count = noise.numel()
    assert abs(noise.mean()) < 5 / math.sqrt(count)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / count)  # Uniform noise has 1.8.
    assert model.eval().sample_density_noise(like, None) is None
    assert make_model(density_noise=0.0).train().sample_density_noise(like, None) is None


def test_noise_is_added_to_raw_density():
    field = make_model().field
    gaussians = Gaussians(torch.randn(2, 3, 3), torch.rand(2, 3, 3) * 0.01)
    viewdirs = torch.nn.functional.normalize(torch.randn(2, 3), dim=-1)
    plain = field(gaussians, viewdirs).density
    raw = torch.log(torch.expm1(plain)) + 1
    noise = torch.randn(2, 3)
    wanted = torch.log1p(torch.exp(raw + noise - 1))
    torch.testing.assert_close(field(gaussians, viewdirs, noise).density, wanted,
                               atol=1e-5, rtol=1e-4)


def test_model_density_equals_the_rendered_density():
    model = make_model()
    means, covs = torch.randn(3, 4, 3), torch.rand(3, 4, 3) * 0.01
    viewdirs = torch.nn.functional.normalize(torch.randn(3, 3), dim=-1)
    rendered = model.field(Gaussians(means, covs), viewdirs).density
    torch.testing.assert_close(model.density(means, covs), rendered)
    full = torch.diag_embed(covs)
    torch.testing.assert_close(model.density(means, full), rendered)


def test_weights_depend_only_on_the_seed():
    torch.manual_seed(3)
    first = build_model(default_config(**ODD))
    state = torch.get_rng_state()
    second = build_model(default_config(**ODD))
    assert torch.equal(state, torch.get_rng_state())
    other = build_model(default_config(**(ODD | {"seed": 1})))
    assert torch.equal(first.field.trunk[0].weight, second.field.trunk[0].weight)
    assert not torch.equal(first.field.trunk[0].weight, other.field.trunk[0].weight)


@pytest.mark.parametrize("bg_rgb", [1.0, 0.0])
def test_empty_rays_show_the_background(bg_rgb):
    model = make_model(bg_range=(bg_rgb, bg_rgb), density_bias=-200.0).eval()
    output = model(make_rays(3))[-1]
    assert torch.equal(output.rgb, torch.full((3, 3), bg_rgb))
    torch.testing.assert_close(output.distance_mean, torch.full((3,), 6.0))


def test_reduced_precision_affects_linear_layers_only():
    full, reduced = make_model(max_deg=16), make_model(max_deg=16, precision="bf16")
    means = torch.rand(20, 5, 3) * 6
    covs = torch.full((20, 5, 3), 1e-10)
    inputs = []
    reduced.field.trunk[0].register_forward_hook(lambda m, args, out: inputs.append(args[0]))
    viewdirs = torch.nn.functional.normalize(torch.randn(20, 3), dim=-1)
    a = full.field(Gaussians(means, covs), viewdirs)
    b = reduced.field(Gaussians(means, covs), viewdirs)
    assert b.density.dtype == b.rgb.dtype == torch.float32
    # Had the angles been rounded to 8 bits, 2^15 x would be off by hundreds of radians.
    exact = coord.integrated_pos_enc(means.double(), covs.double(), 1, 16).float()
    assert inputs[0].dtype == torch.bfloat16
    assert (inputs[0].float() - exact.flatten(0, 1)).abs().max() < 2**-8 + 0.01
    assert (a.density - b.density).abs().max() < 0.05
    assert (a.rgb - b.rgb).abs().max() < 0.05


@pytest.mark.parametrize("chunk", [1, 3, 1000, None])
def test_images_do_not_depend_on_the_chunk(chunk):
    model, rays = make_model().eval(), make_rays(4, 5)
    whole = render_image(model, rays, chunk=20)
    torch.testing.assert_close(render_image(model, rays, chunk).rgb, whole.rgb,
                               atol=1e-6, rtol=1e-6)
    one = render_image(model, rays[2], chunk=5)
    torch.testing.assert_close(one.rgb, whole.rgb[2], atol=1e-6, rtol=1e-6)
