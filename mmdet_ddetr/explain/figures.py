"""The figures of the paper (Deformable DETR, figure 6), with matplotlib.

Every sampling point is a filled circle, its colour the attention weight, its size the feature level. The reference
point is a green cross: in the encoder the querying pixel itself. The predicted box is green, class and score above it.
DETR's attention weighs all pixels instead: a map of its average over the heads. Anchor DETR's is one over the columns
times one over the rows: they are drawn along the lower and the left edge. SAM-DETR's queries are made of features at
salient points: blue dots, one of each head, in the dashed box that the layer starts from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from .explanation import Detection, Explanation, Look

GREEN = '#0fbf4a'  # reference and box, as in the paper
BLUE = '#1f5fbf'  # attention along an axis, salient points
COLOURS = LinearSegmentedColormap.from_list('weight', colormaps['YlOrRd'](np.linspace(0.05, 1, 33)))  # no green in it
FADE = 0.45  # share of white mixed into the image, so that the points stand out
DPI = 200
PANEL = 2.0  # inches, the longer side of one picture
CONTEXT = 2.4  # times the longer side of a box: the part of the image around it that a close-up shows
START_DASHES = (0, (3, 2))
TEXT = dict(fontsize=7, path_effects=[withStroke(linewidth=2, foreground='white')])


@dataclass(frozen=True)
class _Panel:
    """One picture of a figure."""

    look: Look | None = None  # of one query
    heat: np.ndarray | None = None  # [H, W], where the attention is dense
    points: np.ndarray | None = None  # [M, 2], salient points, (x, y) in px
    start: np.ndarray | None = None  # [4], the box that a layer starts from, (x1, y1, x2, y2) in px
    reference: tuple[float, float] | None = None
    detection: Detection | None = None
    title: str = ''
    note: str = ''
    close_up: bool = False  # the detection's surroundings instead of the whole image
    with_axes: bool = False  # draw the sums of ``heat`` over rows and columns


def figure6(
    explanation: Explanation,
    detections: Sequence[Detection] | None = None,
    layer: int = -1,
    level: int | None = None,
    close_up: bool = True,
) -> Figure:
    """Both parts of the paper's figure 6: a column per detection.

    Above, what the encoder's pixel at the detection's centre looks at; below, what its decoder query looks at.

    Args:
        detections: default: the best of four objects.
        layer: of encoder and decoder, from 0; -1 is the last.
        level: feature level of the encoder's pixel; default: the one whose cells fit the object, see ``level_of``.
        close_up: draw the surroundings of each detection below, not the whole image as the paper does.
    """
    detections = explanation.objects(4) if detections is None else detections
    rows = [[], []]
    for detection in detections:
        x, y = centre_of(explanation, detection)
        pixel_level = level_of(explanation, detection) if level is None else level
        rows[0].append(_pixel_panel(explanation, layer, x, y, pixel_level))
        rows[1].append(_query_panel(explanation, layer, detection, close_up=close_up))
    counts = explanation.num_layers
    names = [f'({letter}) {part}\nlayer {range(counts[part])[layer] + 1}' for letter, part in zip('ab', counts)]
    return _figure(explanation, rows, names)


def decoder_figure(explanation: Explanation, detection: Detection, close_up: bool = True) -> Figure:
    """What one detection's query looks at in each decoder layer; the dashed box is the one the layer starts from."""
    layers = range(explanation.num_layers['decoder'])
    row = [_query_panel(explanation, layer, detection, f'decoder layer {layer + 1}', close_up) for layer in layers]
    return _figure(explanation, [row])


def encoder_figure(explanation: Explanation, x: float, y: float, level: int = 0) -> Figure:
    """What one pixel (x, y) of the image, as a cell of a feature level, looks at in each encoder layer."""
    layers = range(explanation.num_layers['encoder'])
    row = [_pixel_panel(explanation, layer, x, y, level, f'encoder layer {layer + 1}') for layer in layers]
    return _figure(explanation, [row])


def gaussian_figure(explanation: Explanation, detection: Detection, close_up: bool = False) -> Figure:
    """The Gaussians of one detection's query in each decoder layer, the average over the heads."""
    layers = range(explanation.num_layers['decoder'])
    heats = [explanation.heat('decoder', layer, detection.query, gaussians=True).mean(0) for layer in layers]
    row = [
        _dense_panel(explanation, layer, heat, detection, f'decoder layer {layer + 1}', close_up)
        for layer, heat in zip(layers, heats)
    ]
    return _figure(explanation, [row], weight='Gaussian')


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
                _Panel(
                    heat=heat,
                    points=None if points is None else points[head : head + 1],
                    start=start,
                    reference=pixel,
                    detection=detection,
                    title=f'head {head + 1}' if level == 0 else '',
                    note=f'{heat.sum():.0%}' if with_share else '',
                    close_up=close_up,
                    with_axes=explanation.has_axes,
                )
                for head, heat in enumerate(heats)
            ]
            for level, heats in enumerate(levels)
        ]
        weight = 'Gaussian' if gaussians else 'attention weight'
        return _figure(explanation, rows, names if len(levels) > 1 else (), 1.1, with_text=False, weight=weight)
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
            rows[-1].append(_Panel(one, **of_query, title=title, note=share, close_up=close_up))
    return _figure(explanation, rows, names, size=1.1, with_text=False)


def to_array(figure: Figure) -> np.ndarray:  # [H, W, 3] RGB
    """The figure's pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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


def _pixel_panel(explanation: Explanation, layer: int, x: float, y: float, level: int, title: str = '') -> _Panel:
    query = explanation.encoder_query(x, y, level)
    if not explanation.is_sampled:
        heat = explanation.heat('encoder', layer, query).mean(0)
        return _Panel(heat=heat, reference=(x, y), title=title, with_axes=explanation.has_axes)
    look = explanation.look('encoder', layer, query)
    return _Panel(look, reference=tuple(look.references[0]), title=title)


def _query_panel(
    explanation: Explanation, layer: int, detection: Detection, title: str = '', close_up: bool = True
) -> _Panel:
    if not explanation.is_sampled:
        heat = explanation.heat('decoder', layer, detection.query).mean(0)
        return _dense_panel(explanation, layer, heat, detection, title, close_up)
    look = explanation.look('decoder', layer, detection.query)
    start = None if look.boxes is None else look.boxes[0]
    return _Panel(
        look, start=start, reference=tuple(look.references[0]), detection=detection, title=title, close_up=close_up
    )


def _dense_panel(
    explanation: Explanation, layer: int, heat: np.ndarray, detection: Detection, title: str, close_up: bool
) -> _Panel:
    points, start = explanation.salient_points(layer, detection.query) or (None, None)
    of_query = dict(heat=heat, points=points, start=start, detection=detection, with_axes=explanation.has_axes)
    return _Panel(**of_query, title=title, close_up=close_up)


# --- drawing ---------------------------------------------------------------------------------------------------------


def _figure(
    explanation: Explanation,
    rows: list[list[_Panel]],
    names: Sequence[str] = (),
    size: float = PANEL,
    with_text: bool = True,
    weight: str = 'attention weight',
) -> Figure:
    """Panels over one scale of weights, with its colour bar and the key to the symbols."""
    h, w = explanation.image.shape[:2]
    width, height = (size * side / max(h, w) for side in (w, h))
    figure = Figure(
        figsize=(width * len(rows[0]) + 0.8, height * len(rows) + 0.35 + 0.2 * bool(rows[0][0].title)),
        dpi=DPI,
        layout='constrained',
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    norm = PowerNorm(0.5, 0, max(_largest_weight(panel) for row in rows for panel in row))  # most weights are small
    image = explanation.image / 255 * (1 - FADE) + FADE
    for row_axes, row in zip(axes, rows):
        for ax, panel in zip(row_axes, row):
            ax.imshow(image, extent=(0, w, h, 0), interpolation='bilinear')
            x1, y1, x2, y2 = view = _close_up(explanation, panel.detection) if panel.close_up else (0, 0, w, h)
            _draw(ax, panel, explanation, norm, view, with_text)
            ax.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[])
            ax.set_title(panel.title, fontsize=8, pad=3)
            for spine in ax.spines.values():
                spine.set(linewidth=0.4, color='0.4')
    for ax, name in zip(axes[:, 0], names):
        ax.set_ylabel(name, fontsize=8)
    bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes, fraction=0.03, pad=0.01, aspect=30)
    bar.set_label(weight, fontsize=7)
    bar.ax.tick_params(labelsize=6, width=0.4, length=2)
    bar.outline.set_linewidth(0.4)
    _key(figure, explanation, [panel for row in rows for panel in row])
    return figure


def _close_up(explanation: Explanation, detection: Detection) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of the part of the image to show, of the image's shape and within it."""
    h, w = explanation.image.shape[:2]
    x1, y1, x2, y2 = detection.box
    share = min(max(CONTEXT * (x2 - x1) / w, CONTEXT * (y2 - y1) / h, 0.15), 1.0)
    left = np.clip((x1 + x2) / 2 - share * w / 2, 0, (1 - share) * w)
    top = np.clip((y1 + y2) / 2 - share * h / 2, 0, (1 - share) * h)
    return left, top, left + share * w, top + share * h


def _largest_weight(panel: _Panel) -> float:
    return float(np.nanmax(panel.heat if panel.look is None else panel.look.weights))


def _draw(
    ax: Axes,
    panel: _Panel,
    explanation: Explanation,
    norm: Normalize,
    view: tuple[float, float, float, float],
    with_text: bool,
) -> None:
    if panel.heat is not None:
        x1, y1, x2, y2 = explanation.extent
        ax.imshow(panel.heat, cmap=COLOURS, norm=norm, alpha=0.7, extent=(x1, x2, y2, y1), interpolation='nearest')
    if panel.with_axes:
        _draw_axes(ax, panel.heat, explanation, view)
    if panel.detection is not None:
        halo = [withStroke(linewidth=2.2, foreground='white')]
        _draw_box(ax, panel.detection.box, linewidth=1.1, path_effects=halo)
        if panel.start is not None:
            _draw_box(ax, panel.start, linestyle=START_DASHES, linewidth=0.8)
        if with_text:
            _write_name(ax, panel.detection, view)
    if panel.look is not None:
        _draw_points(ax, panel.look, norm)
    if panel.points is not None:
        ax.scatter(*panel.points.T, c=BLUE, s=10, edgecolors='white', linewidths=0.5, zorder=2)
    if panel.reference is not None:
        size = 7 if with_text else 5
        ax.plot(*panel.reference, '+', color='white', markersize=size + 1, markeredgewidth=2.6)
        ax.plot(*panel.reference, '+', color=GREEN, markersize=size, markeredgewidth=1.3)
    if panel.note:
        ax.text(0.97, 0.04, panel.note, transform=ax.transAxes, ha='right', va='bottom', **TEXT)


def _draw_axes(ax: Axes, heat: np.ndarray, explanation: Explanation, view: tuple[float, float, float, float]) -> None:
    """The attention over the columns, at the lower edge of the picture, and over the rows, at its left edge."""
    x1, y1, x2, y2 = explanation.extent
    left, top, right, bottom = view
    depth = 0.15 * min(right - left, bottom - top)
    style = dict(fill=True, facecolor=BLUE, edgecolor='white', linewidth=0.4, alpha=0.75)
    columns, rows = heat.sum(0), heat.sum(1)
    ax.stairs(bottom - depth * columns / columns.max(), np.linspace(x1, x2, len(columns) + 1), baseline=bottom, **style)
    ax.stairs(
        left + depth * rows / rows.max(),
        np.linspace(y1, y2, len(rows) + 1),
        baseline=left,
        orientation='horizontal',
        **style,
    )


def _draw_points(ax: Axes, look: Look, norm: Normalize) -> None:
    levels = np.broadcast_to(np.arange(look.weights.shape[2])[:, None], look.weights.shape)
    order = np.argsort(look.weights, axis=None)  # the heaviest on top
    ax.scatter(
        *look.points.reshape(-1, 2)[order].T,
        c=look.weights.ravel()[order],
        s=_area(levels.ravel()[order]),
        cmap=COLOURS,
        norm=norm,
        edgecolors='0.15',
        linewidths=0.3,
        zorder=2,  # above the boxes
    )


def _area(level: np.ndarray | int) -> np.ndarray | float:
    """pt^2 of a point; coarser levels see more and get larger points."""
    return 5.0 * 1.7 ** np.asarray(level)


def _draw_box(ax: Axes, box: np.ndarray, **style) -> None:
    x1, y1, x2, y2 = box
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=GREEN, **style))


def _write_name(ax: Axes, detection: Detection, view: tuple[float, float, float, float]) -> None:
    """Above the box, or inside it at the image's upper edge; never beyond the picture."""
    x1, y1, x2, _ = detection.box
    left, top, right, bottom = view
    below = y1 - top < 0.07 * (bottom - top)
    at_right = x1 - left > 0.6 * (right - left)
    ax.annotate(
        f'{detection.name} {detection.score:.2f}',
        (min(x2, right) if at_right else max(x1, left), max(y1, top)),
        (-1 if at_right else 1, -2 if below else 2),
        textcoords='offset points',
        ha='right' if at_right else 'left',
        va='top' if below else 'bottom',
        color='#067a2c',
        **TEXT,
    ).set_in_layout(False)


def _key(figure: Figure, explanation: Explanation, panels: list[_Panel]) -> None:
    """The symbols' meaning, below the panels, in as many columns as there is room for."""
    has_start = any(panel.detection and panel.start is not None for panel in panels)
    handles = []
    if any(panel.reference for panel in panels):
        style = dict(marker='+', linestyle='', color=GREEN, markeredgewidth=1.3)
        handles.append(Line2D([], [], label='reference point (encoder: the querying pixel)', **style))
    if any(panel.look and not panel.note for panel in panels):  # a note: the rows are the levels
        for level, (H, W) in enumerate(explanation.recording.spatial_shapes):
            style = dict(marker='o', linestyle='', color='0.45', markeredgewidth=0, markersize=_area(level) ** 0.5)
            handles.append(Line2D([], [], label=f'level {level + 1} ({W}×{H})', **style))
    if any(panel.points is not None for panel in panels):
        style = dict(marker='o', linestyle='', color=BLUE, markeredgewidth=0, markersize=10**0.5)
        handles.append(Line2D([], [], label='salient point of a head', **style))
    if has_start:
        style = dict(color=GREEN, linewidth=0.8, linestyle=START_DASHES)
        handles.append(Line2D([], [], label='box the layer starts from', **style))
    if any(panel.with_axes for panel in panels):
        handles.append(Patch(color=BLUE, alpha=0.75, label='attention to columns and to rows'))
    if any(panel.detection for panel in panels):
        handles.append(Line2D([], [], color=GREEN, linewidth=1.1, label='predicted box'))
    if not handles:
        return
    width = sum(0.17 + 0.056 * len(handle.get_label()) for handle in handles)  # inches, of symbols and of letters
    rows = math.ceil(width / (0.95 * figure.get_figwidth()))
    figure.legend(
        handles=handles,
        loc='outside lower left',
        ncols=math.ceil(len(handles) / rows),
        fontsize=7,
        frameon=False,
        handletextpad=0.3,
        columnspacing=1.2,
        borderpad=0,
    )
