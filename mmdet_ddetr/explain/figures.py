"""The figures of the paper (Deformable DETR, figure 6), with matplotlib.

Every sampling point is a filled circle, its colour the attention weight, its size the feature level. The reference
point is a green cross: in the encoder the querying pixel itself. The predicted box is green, class and score above it.
DETR's attention weighs all pixels instead: a map of its average over the heads. Anchor DETR's is one over the columns
times one over the rows: they are drawn along the lower and the left edge. SAM-DETR's queries are made of features at
salient points: blue dots, one of each head, in the dashed box that the layer starts from.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from .explanation import Detection, Explanation, Look
from .panels import Panel, draw


def figure6(
    explanation: Explanation,
    detections: Sequence[Detection] | None = None,
    layer: int = -1,
    level: int | None = None,
    close_up: bool = True,
) -> Figure:
    """Both parts of the paper's figure 6: a column per detection.

    Above, what the encoder's pixel at the detection's centre looks at, where it has attention; below, what its decoder
    query looks at.

    Args:
        detections: default: the best of four objects.
        layer: of encoder and decoder, from 0; -1 is the last.
        level: feature level of the encoder's pixel; default: the one whose cells fit the object, see ``level_of``.
        close_up: draw the surroundings of each detection below, not the whole image as the paper does.
    """
    detections = explanation.objects(4) if detections is None else detections
    rows = {part: [] for part, count in explanation.num_layers.items() if count}
    for detection in detections:
        if 'encoder' in rows:
            pixel_level = level_of(explanation, detection) if level is None else level
            rows['encoder'].append(_pixel_panel(explanation, layer, *centre_of(explanation, detection), pixel_level))
        rows['decoder'].append(_query_panel(explanation, layer, detection, close_up=close_up))
    numbers = {part: range(explanation.num_layers[part])[layer] + 1 for part in rows}
    names = [f'({letter}) {part}\nlayer {numbers[part]}' for letter, part in zip('ab', rows)]
    return draw(explanation, list(rows.values()), names)


def decoder_figure(explanation: Explanation, detection: Detection, close_up: bool = True) -> Figure:
    """What one detection's query looks at in each decoder layer; the dashed box is the one the layer starts from."""
    layers = range(explanation.num_layers['decoder'])
    row = [_query_panel(explanation, layer, detection, f'decoder layer {layer + 1}', close_up) for layer in layers]
    return draw(explanation, [row])


def encoder_figure(explanation: Explanation, x: float, y: float, level: int = 0) -> Figure:
    """What one pixel (x, y) of the image, as a cell of a feature level, looks at in each encoder layer."""
    layers = range(explanation.num_layers['encoder'])
    row = [_pixel_panel(explanation, layer, x, y, level, f'encoder layer {layer + 1}') for layer in layers]
    return draw(explanation, [row])


def gaussian_figure(explanation: Explanation, detection: Detection, close_up: bool = False) -> Figure:
    """The Gaussians of one detection's query in each decoder layer, the average over the heads."""
    layers = range(explanation.num_layers['decoder'])
    heats = [explanation.heat('decoder', layer, detection.query, gaussians=True).mean(0) for layer in layers]
    row = [
        _dense_panel(explanation, layer, heat, detection, f'decoder layer {layer + 1}', close_up)
        for layer, heat in zip(layers, heats)
    ]
    return draw(explanation, [row], weight='Gaussian')


def grid_figure(
    explanation: Explanation,
    part: str,
    layer: int,
    query: int,
    detection: Detection | None = None,
    close_up: bool = True,
    gaussians: bool = False,
    pixel: tuple[float, float] | None = None,
) -> Figure:
    """One query's look taken apart: a row per feature level, a column per head.

    The share of its head's weight that a level has stands in the corner of each picture. DETR has one row.

    Args:
        part: ``'encoder'`` or ``'decoder'``.
        layer: from 0; negative from the last.
        query: index of the query.
        detection: the one to draw with it.
        close_up: of the detection; without one the whole image is drawn.
        gaussians: the Gaussians that modulate the attention instead of its weights.
        pixel: (x, y) of an encoder's query, to be marked; deformable attention knows it.
    """
    close_up = close_up and detection is not None
    names = [f'level {i + 1}\n{W}×{H}' for i, (H, W) in enumerate(explanation.recording.spatial_shapes)]
    if not explanation.is_sampled:
        levels = explanation.heats(part, layer, query, gaussians)
        points, start = (part == 'decoder' and explanation.salient_points(layer, query)) or (None, None)
        with_share = len(levels) > 1 and not gaussians
        rows = [
            [
                Panel(
                    heat=heat,
                    points=None if points is None else points[head : head + 1],
                    start=start,
                    reference=pixel,
                    detection=detection,
                    title=f'head {head + 1}' if level == 0 else '',
                    note=f'{heat.sum():.0%}' if with_share else '',
                    close_up=detection.box if close_up else None,
                    with_axes=explanation.has_axes,
                )
                for head, heat in enumerate(heats)
            ]
            for level, heats in enumerate(levels)
        ]
        weight = 'Gaussian' if gaussians else 'attention weight'
        return draw(explanation, rows, names if len(levels) > 1 else (), 1.1, with_text=False, weight=weight)
    look = explanation.look(part, layer, query)
    _, M, L, _ = look.weights.shape
    rows = []
    for level in range(L):
        rows.append([])
        for head in range(M):
            one = Look(
                np.where(_mask(look.points, head, level), look.points, np.nan),
                np.where(_mask(look.weights, head, level), look.weights, np.nan),
                look.references,
                look.boxes,
            )
            share = f'{look.weights[0, head, level].sum():.0%}'
            title = f'head {head + 1}' if level == 0 else ''
            start = None if look.boxes is None else look.boxes[0]
            of_query = dict(start=start, reference=tuple(look.references[0]), detection=detection)
            rows[-1].append(
                Panel(one, **of_query, title=title, note=share, close_up=detection.box if close_up else None)
            )
    return draw(explanation, rows, names, size=1.1, with_text=False)


def level_of(explanation: Explanation, detection: Detection) -> int:
    """The feature level on which the object's shorter side comes nearest to four cells."""
    x1, y1, x2, y2 = detection.box
    share = max(min(x2 - x1, y2 - y1), 1.0) / explanation.image.shape[1]
    levels = range(len(explanation.recording.spatial_shapes))
    return min(levels, key=lambda level: abs(np.log(share * explanation.valid_cells(level)[1] / 4)))


def centre_of(explanation: Explanation, detection: Detection) -> tuple[float, float]:
    """The pixel at the centre of a detection's box."""
    h, w = explanation.image.shape[:2]
    x1, y1, x2, y2 = detection.box
    return float(np.clip((x1 + x2) / 2, 0, w - 1)), float(np.clip((y1 + y2) / 2, 0, h - 1))


def _mask(array: np.ndarray, head: int, level: int) -> np.ndarray:
    mask = np.zeros(array.shape, bool)
    mask[:, head, level] = True
    return mask


def _pixel_panel(explanation: Explanation, layer: int, x: float, y: float, level: int, title: str = '') -> Panel:
    query = explanation.encoder_query(x, y, level)
    if not explanation.is_sampled:
        heat = explanation.heat('encoder', layer, query).mean(0)
        return Panel(heat=heat, reference=(x, y), title=title, with_axes=explanation.has_axes)
    look = explanation.look('encoder', layer, query)
    return Panel(look, reference=tuple(look.references[0]), title=title)


def _query_panel(
    explanation: Explanation, layer: int, detection: Detection, title: str = '', close_up: bool = True
) -> Panel:
    if not explanation.is_sampled:
        heat = explanation.heat('decoder', layer, detection.query).mean(0)
        return _dense_panel(explanation, layer, heat, detection, title, close_up)
    look = explanation.look('decoder', layer, detection.query)
    start = None if look.boxes is None else look.boxes[0]
    return Panel(
        look,
        start=start,
        reference=tuple(look.references[0]),
        detection=detection,
        title=title,
        close_up=detection.box if close_up else None,
    )


def _dense_panel(
    explanation: Explanation, layer: int, heat: np.ndarray, detection: Detection, title: str, close_up: bool
) -> Panel:
    points, start = explanation.salient_points(layer, detection.query) or (None, None)
    of_query = dict(heat=heat, points=points, start=start, detection=detection, with_axes=explanation.has_axes)
    return Panel(**of_query, title=title, close_up=detection.box if close_up else None)
