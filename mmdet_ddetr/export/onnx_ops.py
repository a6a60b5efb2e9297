"""The package's ops in ONNX's standard operators.

Written by hand rather than traced through plain PyTorch: a tenth of the nodes, no tensor of more than five dimensions,
which some runtimes do not take, and a form of attention without GridSample, which some have miscompiled.

Names of the dimensions: B batch, S cells of all levels together, M heads, D channels a head, Q queries, L levels,
K points.
"""

import math
import operator
from collections.abc import Callable, Sequence

import numpy as np
import torch
from onnx import defs
from onnxscript import opset20 as op
from onnxscript.values import Op, Opset

from mmdet_ddetr.ops._register import pairs

FP32 = 1
PLUGIN = 'MultiscaleDeformableAttnPlugin_TRT'  # TensorRT's, which finds it by the node's name


def translations(attention: str, has_deform_conv: bool = True) -> dict[Callable, Callable]:
    """The ``custom_translation_table`` of ``torch.onnx.export``.

    Args:
        attention: ``gridsample``; ``gather``, for indexing and arithmetic alone; ``plugin``, for a node of TensorRT's.
        has_deform_conv: whether deformable convolution becomes ONNX's DeformConv, else samples as attention does.
    """
    sample = dict(gridsample=_grid_sample, gather=_gather, plugin=_grid_sample)[attention]
    attend = _plugin if attention == 'plugin' else _levels_with(sample)

    def ms_deform_attn(value, spatial_shapes: Sequence[int], sampling_locations, attention_weights):
        K = _size(sampling_locations, 4)  # RoIAlign's depends on the map

        def locations(level, size):  # -> [B, Q, M, K, 2]
            return _level(sampling_locations, 3, level)

        return attend(value, spatial_shapes, locations, op.Reshape(attention_weights, _vector(0, 0, 0, -1)), K)

    def ms_deform_attn_fused(
        value, spatial_shapes: Sequence[int], reference_points, sampling_offsets, attention_logits
    ):
        L, K = sampling_offsets.shape[3:5]
        boxes = reference_points.shape[3] == 4
        offsets = op.Reshape(_fp32(_before_view(sampling_offsets)), _vector(0, 0, value.shape[2], L, 2 * K))
        references = _fp32(reference_points)

        def locations(level, size):  # -> [B, Q, M, K, 2]
            reference = op.Unsqueeze(_level(references, 2, level), _vector(2, 3))  # [B, Q, 1, 1, 2 or 4]
            offset = op.Reshape(_level(offsets, 3, level), _vector(0, 0, 0, K, 2))
            if not boxes:
                return op.Add(reference, op.Div(offset, size))
            centre, sides = op.Split(reference, num_outputs=2, axis=4)
            return op.Add(centre, op.Mul(offset, op.Mul(sides, _number(0.5 / K))))

        return attend(value, spatial_shapes, locations, op.Softmax(_fp32(attention_logits), axis=-1), K)

    ops = torch.ops.mmdet_ddetr
    return {
        ops.ms_deform_attn.default: ms_deform_attn,
        ops.ms_deform_attn_fused.default: ms_deform_attn_fused,
        ops.deform_conv2d.default: deform_conv2d if has_deform_conv else _deform_conv_with(sample),
        torch.ops.aten.repeat_interleave.self_int: repeat_interleave,
        operator.floordiv: floordiv,
    }


def floordiv(number, divisor):
    """Of sizes, also of negative ones, as in -(-H // 2): torch's own translation rounds to zero, as ONNX does."""
    return op.Div(op.Sub(number, op.Mod(number, divisor)), divisor)


def deform_conv2d(input, offset, weight, stride, padding, dilation, mask=None):
    """DeformConv of opset 19, whose definition is torchvision's, as the op's is."""
    kernel = list(weight.shape[2:])
    return op.DeformConv(
        input,
        weight,
        offset,
        None,
        mask,
        dilations=list(dilation),
        group=input.shape[1] // weight.shape[1],
        kernel_shape=kernel,
        offset_group=offset.shape[1] // (2 * kernel[0] * kernel[1]),
        pads=list(padding) * 2,
        strides=list(stride),
    )


def _deform_conv_with(sample: Callable) -> Callable:
    """The same without DeformConv: an attention's samples for each group of offsets, then a convolution."""

    def deform_conv2d(input, offset, weight, stride, padding, dilation, mask=None):
        C_out, C_group, *kernel = weight.shape
        C, K = input.shape[1], kernel[0] * kernel[1]
        M = offset.shape[1] // (2 * K)
        D = C // M
        H, W, Ho, Wo = (_size(x, axis) for x in (input, offset) for axis in (2, 3))
        size = op.Cast(_vector(W, H), to=FP32)
        queries = op.ReduceProd(_vector(Ho, Wo), keepdims=1)
        first = [
            op.Sub(op.Mul(op.Range(_scalar(0), _scalar(cells), _scalar(1)), _scalar(step)), _scalar(pad))
            for cells, step, pad in ((Wo, stride[1], padding[1]), (Ho, stride[0], padding[0]))
        ]
        x, y = op.Unsqueeze(first[0], _vector(0)), op.Unsqueeze(first[1], _vector(1))
        first = [op.Unsqueeze(op.Expand(axis, _vector(Ho, Wo)), _vector(2)) for axis in (x, y)]
        first = op.Cast(op.Reshape(op.Concat(*first, axis=2), _vector(1, 1, -1, 1, 2)), to=FP32)
        taps = [
            float(place * dilation[1 - axis]) for tap in np.ndindex(*kernel) for axis, place in enumerate(tap[::-1])
        ]
        taps = op.Reshape(op.Constant(value_floats=taps), _vector(1, 1, 1, K, 2))
        offset = op.Transpose(op.Reshape(_fp32(offset), _vector(-1, M, K, 2, queries)), perm=[0, 1, 4, 2, 3])
        offset = op.Gather(offset, _vector(1, 0), axis=4)  # [B, M, Q, K, 2], (y, x) -> (x, y)
        points = op.Div(op.Add(op.Add(op.Add(first, taps), offset), _number(0.5)), size)
        cells = op.Transpose(op.Reshape(_fp32(input), _vector(0, M, D, -1)), perm=[0, 3, 1, 2])  # [B, H*W, M, D]
        found = sample(cells, D, H, W, size, points, queries, K)  # [B*M, D, Q, K]
        found = op.Transpose(found, perm=[0, 1, 3, 2])
        if mask is not None:
            found = op.Mul(found, op.Reshape(_fp32(mask), _vector(-1, 1, K, queries)))
        found = op.CastLike(op.Reshape(found, _vector(-1, C * K, Ho, Wo)), weight)
        return op.Conv(found, op.Reshape(weight, _vector(C_out, C_group * K, 1, 1)), group=C // C_group)

    return deform_conv2d


def repeat_interleave(input, repeats, dim: int, output_size=None):
    """As of PyTorch, whose own translation expands to sizes of -1, which Expand does not know."""
    rank = len(input.shape)
    dim %= rank
    ones = [1] * (rank + 1)
    copies = op.Expand(op.Unsqueeze(input, _vector(dim + 1)), _vector(*ones[: dim + 1], repeats, *ones[dim + 2 :]))
    before = [op.Shape(input, start=0, end=dim)] if dim else []
    behind = [op.Shape(input, start=dim + 1)] if dim + 1 < rank else []
    return op.Reshape(copies, _vector(*before, -1, *behind))


# --- attention over the levels ----------------------------------------------------------------------------------------


def _levels_with(sample: Callable) -> Callable:
    def attend(value, spatial_shapes, locations, weights, K):  # weights [B, Q, M, L*K]
        shapes = pairs(spatial_shapes)
        M, D = value.shape[2:]
        value_, weights = _fp32(value), op.Transpose(weights, perm=[0, 2, 1, 3])
        queries = op.Shape(weights, start=2, end=3)
        total, end = None, _scalar(0)
        for level, (H, W) in enumerate(shapes):
            start, end = end, op.Add(end, op.Mul(_scalar(H), _scalar(W)))
            cells = op.Slice(value_, _vector(start), _vector(end), _vector(1))  # [B, H*W, M, D]
            size = op.Cast(_vector(W, H), to=FP32)
            points = op.Transpose(locations(level, size), perm=[0, 2, 1, 3, 4])  # [B, M, Q, K, 2]
            weight = op.Slice(weights, _vector(_times(K, level)), _vector(_times(K, level + 1)), _vector(3))
            weight = op.Reshape(weight, _vector(-1, 1, queries, K))  # [B*M, 1, Q, K]
            found = sample(cells, D, H, W, size, points, queries, K)  # [B*M, D, Q, K]
            part = op.ReduceSum(op.Mul(found, weight), _vector(3), keepdims=0)  # [B*M, D, Q]
            total = part if total is None else op.Add(total, part)
        output = op.Transpose(op.Reshape(total, _vector(-1, M * D, queries)), perm=[0, 2, 1])
        return op.CastLike(output, value)

    return attend


def _grid_sample(cells, D, H, W, size, points, queries, K):
    """[B, H*W, M, D], [B, M, Q, K, 2] in [0, 1] -> [B*M, D, Q, K]"""
    maps = op.Reshape(op.Transpose(cells, perm=[0, 2, 3, 1]), _vector(-1, D, H, W))
    grid = op.Sub(op.Mul(points, _number(2.0)), _number(1.0))
    grid = op.Reshape(grid, _vector(-1, queries, K, 2))
    return op.GridSample(maps, grid, align_corners=0, mode='linear', padding_mode='zeros')


def _gather(cells, D, H, W, size, points, queries, K):
    """The four cells around each point, each a row of a table that holds all maps."""
    rows = op.Reshape(op.Transpose(cells, perm=[0, 2, 1, 3]), _vector(-1, D))  # [B*M*H*W, D]
    place = op.Sub(op.Mul(points, size), _number(0.5))  # in cells, their centres at whole numbers
    place = op.Reshape(place, _vector(-1, queries, K, 2))
    low = op.Floor(place)
    fraction = op.Sub(place, low)
    maps = op.Shape(place, start=0, end=1)
    first = op.Mul(op.Range(_scalar(0), op.Squeeze(maps), _scalar(1)), op.Mul(_scalar(H), _scalar(W)))
    first = op.Reshape(first, _vector(-1, 1, 1))  # of each map, [B*M, 1, 1]
    last = op.Sub(size, _number(1.0))
    total = None
    for right in (0.0, 1.0):
        for below in (0.0, 1.0):
            step = op.Constant(value_floats=[right, below])
            corner = op.Add(low, step)
            nearest = op.Min(op.Max(corner, _number(0.0)), last)
            inside = op.Cast(op.Equal(corner, nearest), to=FP32)
            share = op.Abs(op.Sub(op.Sub(_number(1.0), step), fraction))
            weight = op.ReduceProd(op.Mul(share, inside), _vector(3), keepdims=1)  # [B*M, Q, K, 1]
            column, row = op.Split(op.Cast(nearest, to=7), num_outputs=2, axis=3)
            index = op.Squeeze(op.Add(op.Mul(row, _scalar(W)), column), _vector(3))
            found = op.Mul(op.Gather(rows, op.Add(index, first), axis=0), weight)  # [B*M, Q, K, D]
            total = found if total is None else op.Add(total, found)
    return op.Transpose(total, perm=[0, 3, 1, 2])


def _plugin(value, spatial_shapes, locations, weights, K):
    """TensorRT's own node: value, shapes, first cells, locations [B, Q, M, L, K, 2], weights [B, Q, M, L, K]."""
    L = len(spatial_shapes) // 2
    M, D = value.shape[2:]
    shapes = op.Reshape(_vector(*spatial_shapes), _vector(L, 2))
    cells = op.ReduceProd(shapes, _vector(1), keepdims=0)
    first = op.Sub(op.CumSum(cells, _scalar(0)), cells)
    points = [locations(i, op.Cast(_vector(W, H), to=FP32)) for i, (H, W) in enumerate(pairs(spatial_shapes))]
    points = op.Concat(*(op.Unsqueeze(of_level, _vector(3)) for of_level in points), axis=3)
    weights = op.Reshape(weights, _vector(0, 0, 0, L, K))
    inputs = _fp32(value), op.Cast(shapes, to=6), op.Cast(first, to=6), points, weights
    output = Op(Opset('trt.plugins', 1), PLUGIN, _plugin_schema())(*inputs, plugin_version='2', plugin_namespace='')
    return op.Reshape(op.CastLike(output, value), _vector(0, 0, M * D))  # [B, Q, M, D]


def _plugin_schema() -> defs.OpSchema:
    names = ('value', 'spatial_shapes', 'level_start_index', 'sampling_locations', 'attention_weights')
    types = ('tensor(float)', 'tensor(int32)', 'tensor(int32)', 'tensor(float)', 'tensor(float)')
    return defs.OpSchema(
        PLUGIN,
        'trt.plugins',
        1,
        inputs=[defs.OpSchema.FormalParameter(name, kind) for name, kind in zip(names, types)],
        outputs=[defs.OpSchema.FormalParameter('output', 'tensor(float)')],
        attributes=[
            defs.OpSchema.Attribute(name, defs.OpSchema.AttrType.STRING, '')
            for name in ('plugin_version', 'plugin_namespace')
        ],
    )


# --- numbers ----------------------------------------------------------------------------------------------------------


def _fp32(x):
    return x if x.dtype is not None and int(x.dtype) == FP32 else op.Cast(x, to=FP32)


def _level(x, axis: int, level: int):
    return op.Gather(x, _scalar(level), axis=axis)


def _before_view(x):
    """What PyTorch's view made [B, Q, M, L, K, 2] of, where that is [B, Q, M*L*K*2] and has no six dimensions."""
    view = x.producer()
    if view is None or view.op_type != 'Reshape':
        return x
    shape = view.inputs[0].shape
    flat = shape is not None and len(shape) == 3 and shape[2] == math.prod(x.shape[2:])
    return view.inputs[0] if flat else x


def _size(x, axis: int):
    """A Python int, or a scalar of the graph."""
    size = x.shape[axis]
    return size if isinstance(size, int) else op.Squeeze(op.Shape(x, start=axis, end=axis + 1))


def _times(size, count: int):
    return size * count if isinstance(size, int) else op.Mul(size, _scalar(count))


def _number(value: float):
    return op.Constant(value_float=value)


def _scalar(value):
    return op.Constant(value_int=value) if isinstance(value, int) else op.Squeeze(value)


def _vector(*values):
    """Whole numbers, each a Python int, or a scalar or vector of the graph."""
    if all(isinstance(value, int) for value in values):
        return op.Constant(value_ints=list(values))
    one = op.Constant(value_ints=[-1])
    parts = (op.Constant(value_ints=[v]) if isinstance(v, int) else op.Reshape(v, one) for v in values)
    return op.Concat(*parts, axis=0)
