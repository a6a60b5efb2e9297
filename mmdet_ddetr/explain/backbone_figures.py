"""What cells of a backbone's maps come from: figures as in the papers of deformable convolution and of DAT.

The cell is a green cross, its sampling points are filled circles. An object's cell is the one at the centre of its box.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

from . import convolution, dat
from .explanation import Detection, Explanation, Look
from .figures import centre_of
from .panels import Panel, draw

DEPTH = 3  # layers that points are followed through, as in the papers of deformable convolution
AREA = 3.0  # pt^2 of a point: there are hundreds
FACTOR = 'product of the factors of the taps'
CELL = 'cell'


def convolution_look(explanation: Explanation, index: int, x: float, y: float, depth: int = DEPTH) -> Look:
    """The points that the cell at a pixel comes from.

    Args:
        index: of a call in ``explanation.recording.convolutions``.
        x, y: px of the original image; the cell of the convolution's output is the one that contains them.
        depth: layers that the points are followed through; as many as there are if there are fewer.

    Returns:
        Points [1, G, 1, P, 2] and weights [1, G, 1, P] of the G groups of offsets, see ``convolution.follow``.

    Raises:
        ValueError: the pixel lies outside the image.
    """
    convs = convolution.chain(explanation.recording.convolutions, index, depth)
    size = convs[-1].output_size
    cell = explanation.cell(x, y, size)
    groups = range(min(conv.num_groups for conv in convs))
    followed = [convolution.follow(convs, explanation.index, group, cell) for group in groups]
    points, weights = (torch.stack(x)[None, :, None] for x in zip(*followed))
    return Look(explanation.frame.of_padded(points).numpy(), weights.numpy(), _centre(explanation, cell, size), None)


def attention_look(explanation: Explanation, index: int, x: float, y: float) -> Look:
    """The points that the cell at a pixel attends to in DAT, and their weights.

    Args:
        index: of a call in ``explanation.recording.deformed``.
        x, y: px of the original image.

    Returns:
        Points [1, G, 1, H*W, 2] and weights [1, G, 1, H*W], which sum to 1 in each of the G groups of channels.

    Raises:
        ValueError: the pixel lies outside the image.
    """
    call = explanation.recording.deformed[index]
    row, column = explanation.cell(x, y, call.size)
    weights = call.weights(explanation.index, row * call.size[1] + column)
    return _deformed(explanation, call, weights, _centre(explanation, (row, column), call.size))


def deformed_look(explanation: Explanation, index: int) -> Look:
    """The points of an attention of DAT, the weight of each how far it was moved, in cells."""
    call = explanation.recording.deformed[index]
    return _deformed(explanation, call, call.shifts(explanation.index), np.full((1, 2), np.nan))


def _deformed(explanation: Explanation, call: dat.DeformedAttention, weights: torch.Tensor, reference) -> Look:
    points = explanation.frame.of_padded(call.points(explanation.index))
    return Look(points[None, :, None].numpy(), weights[None, :, None].numpy(), reference, None)


def _centre(explanation: Explanation, cell: tuple[int, int], size: tuple[int, int]) -> np.ndarray:  # [1, 2], px
    (row, column), (H, W) = cell, size
    return explanation.frame.of_padded(torch.tensor([[(column + 0.5) / W, (row + 0.5) / H]])).numpy()


def convolution_figure(explanation: Explanation, detections: Sequence[Detection], depth: int = DEPTH) -> Figure:
    """What the cells at the objects' centres come from: a column per object, a row per size of maps, its last layer."""
    rows, names = [], []
    for index in convolution.last_of_stages(explanation.recording.convolutions):
        looks = [convolution_look(explanation, index, *centre_of(explanation, d), depth) for d in detections]
        rows.append([_panel(look, detection=d) for look, d in zip(looks, detections)])
        names.append(_name(explanation.recording.convolutions[index]))
    return _draw_convolutions(explanation, rows, names)


def convolution_depth_figure(explanation: Explanation, x: float, y: float, depth: int = DEPTH) -> Figure:
    """What the cells at a pixel come from: a column per number of layers, a row per size of maps."""
    rows, names = [], []
    depths = range(1, depth + 1)
    for index in convolution.last_of_stages(explanation.recording.convolutions):
        looks = [convolution_look(explanation, index, x, y, n) for n in depths]
        titles = [f'{n} layer{"s" * (n > 1)} deep' if not rows else '' for n in depths]
        points = looks[-1].points.reshape(-1, 2)
        around = np.concatenate([np.nanmin(points, 0), np.nanmax(points, 0)])
        rows.append([_panel(look, title=title, close_up=around) for look, title in zip(looks, titles)])
        names.append(_name(explanation.recording.convolutions[index]))
    return _draw_convolutions(explanation, rows, names)


def deformed_points_figure(explanation: Explanation) -> Figure:
    """Where the last deformable attention of each stage of DAT samples, all groups of channels in one picture."""
    calls = explanation.recording.deformed
    side = 3.0  # inches, of a picture
    row = [
        Panel(
            deformed_look(explanation, index),
            area=(0.35 * 72 * side / max(calls[index].size)) ** 2,  # a third of a cell wide
            title=_name(calls[index], ' '),
        )
        for index in dat.last_of_stages(calls)
    ]
    return draw(explanation, [row], size=side, weight='cells that a point was moved by')


def attention_figure(explanation: Explanation, detections: Sequence[Detection]) -> Figure:
    """What the cells at the objects' centres attend to: a column per object, a row per stage, its last attention."""
    calls = explanation.recording.deformed
    rows, names = [], []
    for index in dat.last_of_stages(calls):
        looks = [attention_look(explanation, index, *centre_of(explanation, d)) for d in detections]
        rows.append([_panel(look, detection=d, by_weight=True, area=120) for look, d in zip(looks, detections)])
        names.append(_name(calls[index]))
    return draw(explanation, rows, names, reference=CELL)


def attention_layers_figure(explanation: Explanation, x: float, y: float) -> Figure:
    """What the cells at a pixel attend to, in every deformable attention of DAT."""
    calls = explanation.recording.deformed
    row = [
        _panel(attention_look(explanation, index, x, y), title=_name(call), by_weight=True, area=120)
        for index, call in enumerate(calls)
    ]
    return draw(explanation, [row], reference=CELL)


def _panel(look: Look, area: float = AREA, **others) -> Panel:
    return Panel(look, area=area / look.points.shape[1], reference=tuple(look.references[0]), **others)


def _name(call: convolution.SampledConv | dat.DeformedAttention, separator: str = '\n') -> str:
    H, W = call.output_size if isinstance(call, convolution.SampledConv) else call.size
    return f'{convolution.short_name(call.name)}{separator}{W}×{H}'


def _draw_convolutions(explanation: Explanation, rows: list[list[Panel]], names: list[str]) -> Figure:
    modulated = any(conv.mask is not None for conv in explanation.recording.convolutions)
    return draw(explanation, rows, names, weight=FACTOR if modulated else None, reference=CELL)
