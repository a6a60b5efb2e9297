"""What the page shows of a backbone: deformable convolutions and the attentions of DAT."""

import numpy as np

from . import convolution
from .explanation import Explanation
from .page_numbers import positions, thinned, to_base64, weights

HEAVIEST = 64  # points of each group that the page holds for a cell of DAT: thousands hardly count


def convolution_data(explanation: Explanation, max_bytes: float, depth: int) -> dict:
    """The offsets and factors of whole maps, which the page follows itself.

    The first convolutions are left out where there is no room: their maps are the largest. ``depth`` of them stay.

    Args:
        max_bytes: of JSON.
        depth: convolutions that the page follows the points through.
    """
    convs = explanation.recording.convolutions
    layers, taken = [], 0
    for conv in reversed(convs):
        layer = _convolution(explanation, conv)
        taken += len(layer['offset']) + len(layer['mask'] or '')
        if taken > max_bytes and len(layers) >= depth:
            break
        layers.insert(0, layer)
    left_out = len(convs) - len(layers)
    for index, layer in enumerate(layers, left_out):
        *before, _ = convolution.chain(convs, index, 2)
        layer['before'] = index - 1 - left_out if before else -1  # the convolution whose output this one reads
    return dict(layers=layers, depth=depth, left_out=left_out)


def _convolution(explanation: Explanation, conv: convolution.SampledConv) -> dict:
    offset = conv.offset[explanation.index].float().cpu().numpy()
    unit = max(float(np.abs(offset).max()), 1e-6) / 32767
    rows, columns = conv.output_size
    return dict(
        name=conv.name,
        rows=rows,
        columns=columns,
        cells=list(explanation.frame.cells(conv.output_size)),
        step=1,
        first=[0, 0],
        input=list(conv.input_size),
        kernel=list(conv.kernel_size),
        stride=list(conv.stride),
        padding=list(conv.padding),
        dilation=list(conv.dilation),
        heads=conv.num_groups,
        unit=unit,
        offset=to_base64((offset / unit).round().astype('<i2')),
        mask=None if conv.mask is None else weights(conv.mask[explanation.index].float().cpu().numpy()),
    )


def deformed_data(explanation: Explanation, max_bytes: float) -> dict:
    """The points of each attention and, for every n-th cell, the ``HEAVIEST`` of each group with their weights."""
    calls = explanation.recording.deformed
    grids = thinned(
        [explanation.frame.cells(call.size) for call in calls],
        [call.num_groups * min(HEAVIEST, call.size[0] * call.size[1]) * 3 * 4 / 3 for call in calls],
        max_bytes,
    )
    layers = []
    for call, grid in zip(calls, grids):
        rows, columns = grid.pop('kept')
        queries = [row * call.size[1] + column for row in rows for column in columns]
        found = [
            call.weights(explanation.index, query).topk(min(HEAVIEST, call.points(0).shape[1])) for query in queries
        ]
        layers.append(
            dict(
                grid,
                name=call.name,
                size=list(call.size),
                heads=call.num_groups,
                heaviest=found[0].values.shape[1],
                points=positions(
                    explanation.frame.of_padded(call.points(explanation.index)).numpy(), explanation.image.shape[:2]
                ),
                chosen=to_base64(np.stack([top.indices.numpy() for top in found]).astype('<u2')),
                weights=weights(np.stack([top.values.numpy() for top in found])),
            )
        )
    return dict(layers=layers)
