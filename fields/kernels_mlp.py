"""A field's small networks on a CPU: all layers of a block of samples in one pass, by numba.

Activations of a block stay in the cache: `[rows, samples]`, so that samples fill the vector
registers. The backward pass computes them again, for samples whose gradient is not 0 alone. Rows
and inner sizes of weights are padded with zeros to multiples of `simd.ROWS`. Tensors go in and come
out; `fused_mlp.py` says what is computed, and tests compare it with the layers in PyTorch.
"""

import numpy as np
import torch
import torch.nn.functional as F

from fields.simd import COLUMNS, LANES, OUTER_ROWS, ROWS, add_outer, add_product
from runtime.compiled import compiled, run_on_threads

# Samples of a block, and groups of rays with sums of their own: so many threads can work, and the
# order of sums does not depend on how many do.
BLOCK, GROUPS = 256, 16

ZERO = np.float32(0)


def forward(features, per_ray, weights, biases, shape):
    """Raw density and raw colours `[M, 1 + C]`; arguments as of `fused_mlp.FusedMLP`."""
    channels = len(weights[-1]) - (shape.density_layer == len(weights) - 1)
    outputs = features.new_empty(len(features), 1 + channels)
    run_on_threads(_forward, GROUPS, _array(features), _rays(per_ray, features),
                   *_packed(weights, biases), *shape, outputs.numpy())
    return outputs


def backward(gradient, features, per_ray, weights, biases, shape):
    """Gradients by the features, the inputs per ray, all weights and all biases.

    gradient: by what `forward` returns.
    """
    grad_features = torch.zeros_like(features)
    rays = _rays(per_ray, features)
    grad_rays = np.zeros_like(rays)
    parameters, sizes = _packed(weights, biases)
    sums = np.zeros((GROUPS, len(parameters)), np.float32)
    run_on_threads(_backward, GROUPS, _array(gradient), _array(features), rays, parameters, sizes,
                   *shape, grad_features.numpy(), grad_rays, sums)
    layers = torch.from_numpy(sums.sum(axis=0)).split([rows * (inner + 1) for rows, inner in sizes])
    grad_weights, grad_biases = [], []
    for layer, (rows, inner), weight in zip(layers, sizes, weights, strict=True):
        grad_weights.append(layer[rows:].reshape(rows, inner)[:len(weight), :weight.shape[1]])
        grad_biases.append(layer[:len(weight)])
    return (grad_features, None if per_ray is None else torch.from_numpy(grad_rays),
            grad_weights, grad_biases)


def _array(tensor):
    return tensor.detach().contiguous().numpy()


def _rays(per_ray, features):
    """Inputs per ray as an array `[N, W]`, of no columns if there are none."""
    return _array(features.new_zeros(1, 0) if per_ray is None else per_ray)


def _packed(weights, biases):
    """All parameters in one array, and the padded (rows, inner) of each layer.

    A layer's biases stand before its weights.
    """
    parts, sizes = [], []
    for weight, bias in zip(weights, biases, strict=True):
        rows, inner = (-size % ROWS for size in weight.shape)
        padded = F.pad(weight.detach(), (0, inner, 0, rows))
        parts += [F.pad(bias.detach(), (0, rows)), padded.flatten()]
        sizes.append(padded.shape)
    return torch.cat(parts).numpy(), np.array(sizes)


@compiled()
def _offsets(sizes):
    """Offsets of each layer's parameters, and of its inputs in the buffer of activations."""
    parameters, rows = np.zeros(len(sizes) + 1, np.int64), np.zeros(len(sizes) + 2, np.int64)
    for layer in range(len(sizes)):
        parameters[layer + 1] = parameters[layer] + sizes[layer, 0] * (sizes[layer, 1] + 1)
        rows[layer + 1] = rows[layer] + sizes[layer, 1]
    rows[-1] = rows[-2] + sizes[-1, 0]
    return parameters, rows


@compiled()
def _load(values, samples, first_value, inputs):
    """The values of samples as columns, then zeros up to a multiple of `COLUMNS` columns.

    Returns the number of these columns. Rows without a value are zeros.
    """
    count, width = len(samples), values.shape[1] - first_value
    columns = (count + COLUMNS - 1) // COLUMNS * COLUMNS
    for row in range(len(inputs)):
        used = count if row < width else 0
        index = np.uintp(first_value + row)
        for column in range(used):
            inputs[row, column] = values[samples[column], index]
        for column in range(used, columns):
            inputs[row, column] = ZERO
    return columns


@compiled()
def _start(outputs, bias, columns):
    """Fill a layer's outputs with its biases."""
    for row in range(len(bias)):
        value = bias[row]
        for column in range(columns):
            outputs[row, column] = value


@compiled()
def _add_rays(outputs, per_ray, starts):
    """Add inputs per ray; starts: pairs (first column, ray) of a block, and its end."""
    for index in range(len(starts) - 1):
        first, last, ray = starts[index, 0], starts[index + 1, 0], starts[index, 1]
        for row in range(per_ray.shape[1]):
            value = per_ray[ray, row]
            for column in range(last - first):
                outputs[row, first + np.uintp(column)] += value


@compiled(fastmath={"reassoc"})
def _add_ray_gradients(gradient, grad_rays, starts):
    """The backward of `_add_rays`."""
    for index in range(len(starts) - 1):
        first, last, ray = starts[index, 0], starts[index + 1, 0], starts[index, 1]
        for row in range(grad_rays.shape[1]):
            total = ZERO
            for column in range(last - first):
                total += gradient[row, first + np.uintp(column)]
            grad_rays[ray, row] += total


@compiled()
def _ray_starts(samples, samples_per_ray, starts):
    """The pairs of `_add_rays` for ascending samples, written to `starts`; returns those used."""
    count, following = 0, np.uintp(0)
    for column in range(len(samples)):
        if samples[column] >= following:
            ray = samples[column] // np.uintp(samples_per_ray)
            following = (ray + np.uintp(1)) * np.uintp(samples_per_ray)
            starts[count, 0], starts[count, 1] = column, ray
            count += 1
    starts[count, 0] = len(samples)
    return starts[:count + 1]


@compiled()
def _multiply(weights, rows, inner, inputs, outputs, columns):
    """Add the product of a layer's weights and inputs to its outputs."""
    stride = inputs.shape[1]
    w, x, y = weights.ctypes.data, inputs.ctypes.data, outputs.ctypes.data
    for column in range(0, columns, COLUMNS):
        for row in range(0, rows, ROWS):
            add_product(w + 4 * row * inner, inner, 1, x + 4 * column, stride,
                        y + 4 * (row * stride + column), stride, inner)


@compiled()
def _multiply_transposed(weights, rows, inner, gradient, outputs, columns):
    """The gradient by a layer's inputs from that by its outputs."""
    stride = gradient.shape[1]
    w, x, y = weights.ctypes.data, gradient.ctypes.data, outputs.ctypes.data
    for row in range(inner):
        for column in range(columns):
            outputs[row, column] = ZERO
    for column in range(0, columns, COLUMNS):
        for row in range(0, inner, ROWS):
            add_product(w + 4 * row, 1, inner, x + 4 * column, stride,
                        y + 4 * (row * stride + column), stride, rows)


@compiled()
def _add_outer(gradient, inputs, rows, inner, sums, columns):
    """Add the gradient by a layer's weights; sums: `[rows * inner, LANES]`."""
    a, b, s = gradient.ctypes.data, inputs.ctypes.data, sums.ctypes.data
    stride, row_size = gradient.shape[1], inner * LANES
    for row in range(0, rows, OUTER_ROWS):
        for column in range(0, inner, OUTER_ROWS):
            add_outer(a + 4 * row * stride, stride, b + 4 * column * stride, stride,
                      s + 4 * (row * row_size + column * LANES), row_size, columns // LANES)


@compiled(fastmath={"reassoc"})
def _add_rows(gradient, rows, sums, columns):
    """Add the gradient by a layer's biases; sums: `[rows, LANES]`, of which the first is used."""
    for row in range(rows):
        total = ZERO
        for column in range(columns):
            total += gradient[row, column]
        sums[row, 0] += total


@compiled()
def _rectify(values, rows, columns):
    """Negative numbers become 0; NaN stays."""
    for row in range(rows):
        for column in range(columns):
            value = values[row, column]
            values[row, column] = ZERO if value <= ZERO else value


@compiled()
def _rectify_gradient(gradient, values, rows, columns):
    """The backward of `_rectify`, from what it left."""
    for row in range(rows):
        for column in range(columns):
            slope = gradient[row, column]
            gradient[row, column] = ZERO if values[row, column] <= ZERO else slope


@compiled()
def _run_layers(parameters, sizes, per_ray, starts, columns, density_layer, density_row,
                activations, density):
    """All layers of a block, from the inputs in the first rows of `activations`."""
    parameter_offsets, row_offsets = _offsets(sizes)
    last = len(sizes) - 1
    for layer in range(len(sizes)):
        rows, inner = sizes[layer]
        start = parameter_offsets[layer]
        outputs = activations[row_offsets[layer + 1] : row_offsets[layer + 1] + rows]
        _start(outputs, parameters[start : start + rows], columns)
        if layer == density_layer:
            _add_rays(outputs, per_ray, starts)
        _multiply(parameters[start + rows :], rows, inner, activations[row_offsets[layer] :],
                  outputs, columns)
        if layer == density_layer:
            for column in range(columns):
                density[column] = outputs[density_row, column]
        if layer < last:
            if layer == density_layer:
                for column in range(columns):
                    outputs[density_row, column] = ZERO
            _rectify(outputs, rows, columns)


@compiled()
def _run_backward(gradient, parameters, sizes, samples, starts, columns, density_layer,
                  density_row, activations, grads, sums, grad_rays):
    """Add a block's gradients; grads: a buffer like `activations`, that of the features first."""
    parameter_offsets, row_offsets = _offsets(sizes)
    _load(gradient, samples, 1, grads[row_offsets[-2] :])
    for layer in range(len(sizes) - 1, -1, -1):
        rows, inner = sizes[layer]
        start = parameter_offsets[layer]
        inputs = activations[row_offsets[layer] :]
        above, below = grads[row_offsets[layer + 1] :], grads[row_offsets[layer] :]
        if layer == density_layer:
            _add_ray_gradients(above, grad_rays, starts)
            for column in range(len(samples)):
                above[density_row, column] = gradient[samples[column], 0]
        _add_rows(above, rows, sums[start:], columns)
        _add_outer(above, inputs, rows, inner, sums[start + rows :], columns)
        _multiply_transposed(parameters[start + rows :], rows, inner, above, below, columns)
        if layer > 0:
            _rectify_gradient(below, inputs, inner, columns)


@compiled()
def _has_gradient(gradient, sample):
    for channel in range(gradient.shape[1]):
        if gradient[sample, channel] != ZERO:
            return True
    return False


@compiled()
def _group(group, num_samples, samples_per_ray):
    """The first and last sample of a group of whole rays."""
    rays = (num_samples + samples_per_ray - 1) // samples_per_ray
    first, last = rays * group // GROUPS, rays * (group + 1) // GROUPS
    return first * samples_per_ray, min(last * samples_per_ray, num_samples)


@compiled()
def _forward_group(group, features, per_ray, parameters, sizes, density_layer, density_row,
                   samples_per_ray, outputs):
    """The outputs of a group's samples."""
    first, last = _group(group, len(features), samples_per_ray)
    row_offsets = _offsets(sizes)[1]
    activations = np.empty((row_offsets[-1], BLOCK), np.float32)
    density, starts = np.empty(BLOCK, np.float32), np.empty((BLOCK + 1, 2), np.uintp)
    samples = np.empty(BLOCK, np.uintp)
    for block in range(first, last, BLOCK):
        count = min(BLOCK, last - block)
        for column in range(count):
            samples[column] = block + column
        ray_starts = _ray_starts(samples[:count], samples_per_ray, starts)
        columns = _load(features, samples[:count], 0, activations[: row_offsets[1]])
        _run_layers(parameters, sizes, per_ray, ray_starts, columns, density_layer, density_row,
                    activations, density)
        for column in range(count):
            outputs[block + column, 0] = density[column]
            for channel in range(1, outputs.shape[1]):
                outputs[block + column, channel] = activations[
                    row_offsets[-2] + channel - 1, column]


@compiled()
def _backward_group(group, gradient, features, per_ray, parameters, sizes, density_layer,
                    density_row, samples_per_ray, grad_features, grad_rays, sums):
    """The gradients of a group's samples; sums: of the parameters, `[GROUPS, P]`."""
    first, last = _group(group, len(features), samples_per_ray)
    row_offsets = _offsets(sizes)[1]
    activations = np.empty((row_offsets[-1], BLOCK), np.float32)
    grads = np.empty((row_offsets[-1], BLOCK), np.float32)
    density, starts = np.empty(BLOCK, np.float32), np.empty((BLOCK + 1, 2), np.uintp)
    vectors = np.zeros((len(parameters), LANES), np.float32)
    samples, count = np.empty(BLOCK, np.uintp), 0
    for sample in range(first, last):
        if _has_gradient(gradient, sample):
            samples[count] = sample
            count += 1
        if count == BLOCK or (sample == last - 1 and count):
            found = samples[:count]
            ray_starts = _ray_starts(found, samples_per_ray, starts)
            columns = _load(features, found, 0, activations[: row_offsets[1]])
            _run_layers(parameters, sizes, per_ray, ray_starts, columns, density_layer,
                        density_row, activations, density)
            _run_backward(gradient, parameters, sizes, found, ray_starts, columns,
                          density_layer, density_row, activations, grads, vectors, grad_rays)
            for column in range(count):
                for feature in range(grad_features.shape[1]):
                    grad_features[found[column], feature] = grads[feature, column]
            count = 0
    for index in range(len(parameters)):
        for lane in range(LANES):
            sums[group, index] += vectors[index, lane]


@compiled()
def _forward(first_group, last_group, features, per_ray, parameters, sizes, density_layer,
             density_row, samples_per_ray, outputs):
    for group in range(first_group, last_group):
        _forward_group(group, features, per_ray, parameters, sizes, density_layer, density_row,
                       samples_per_ray, outputs)


@compiled()
def _backward(first_group, last_group, gradient, features, per_ray, parameters, sizes,
              density_layer, density_row, samples_per_ray, grad_features, grad_rays, sums):
    for group in range(first_group, last_group):
        _backward_group(group, gradient, features, per_ray, parameters, sizes, density_layer,
                        density_row, samples_per_ray, grad_features, grad_rays, sums)
