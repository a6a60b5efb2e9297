"""Pictures side by side over one image: points, maps and boxes on it, a bar of colours and a key to the symbols."""

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
class Panel:
    """One picture of a figure."""

    look: Look | None = None  # of one query
    area: float | None = None  # pt^2 of each point of ``look``; None: by its level
    by_weight: bool = False  # make a point's area proportional to its weight, ``area`` that of the largest
    heat: np.ndarray | None = None  # [H, W], where the attention is dense
    points: np.ndarray | None = None  # [M, 2], salient points, (x, y) in px
    bins: np.ndarray | None = None  # [N, 4], (x1, y1, x2, y2) in px
    bin_weights: np.ndarray | None = None  # [N]; None: all weigh the same
    start: np.ndarray | None = None  # [4], the box that a layer starts from, (x1, y1, x2, y2) in px
    reference: tuple[float, float] | None = None
    detection: Detection | None = None
    title: str = ''
    note: str = ''
    close_up: np.ndarray | None = None  # [4], the box whose surroundings to show instead of the whole image
    with_axes: bool = False  # draw the sums of ``heat`` over rows and columns


def draw(
    explanation: Explanation,
    rows: list[list[Panel]],
    names: Sequence[str] = (),
    size: float = PANEL,
    with_text: bool = True,
    weight: str | None = 'attention weight',
    reference: str = 'reference point (encoder: the querying pixel)',
    start: str = 'box the layer starts from',
) -> Figure:
    """Panels over one scale of weights, with its colour bar and the key to the symbols.

    Args:
        names: of the rows.
        size: inches, the longer side of a panel.
        with_text: write class and score above a box.
        weight: what the colours are; None: all points are of one weight, and no bar is drawn.
        reference: what the cross is.
        start: what the dashed box is.
    """
    h, w = explanation.image.shape[:2]
    width, height = (size * side / max(h, w) for side in (w, h))
    figure = Figure(
        figsize=(
            width * len(rows[0]) + 0.8 + 0.2 * bool(names),
            height * len(rows) + 0.35 + 0.2 * len(rows[0][0].title.splitlines()),
        ),
        dpi=DPI,
        layout='compressed',
    )
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.04, wspace=0.01, hspace=0.01)
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    norm = PowerNorm(0.5, 0, max(_largest_weight(panel) for row in rows for panel in row))  # most weights are small
    image = explanation.image / 255 * (1 - FADE) + FADE
    for row_axes, row in zip(axes, rows):
        for ax, panel in zip(row_axes, row):
            ax.imshow(image, extent=(0, w, h, 0), interpolation='bilinear')
            x1, y1, x2, y2 = view = (
                (0, 0, w, h) if panel.close_up is None else _surroundings(explanation, panel.close_up)
            )
            _draw_panel(ax, panel, explanation, norm, view, with_text)
            ax.set(xlim=(x1, x2), ylim=(y2, y1), xticks=[], yticks=[])
            ax.set_title(panel.title, fontsize=8, pad=3)
            for spine in ax.spines.values():
                spine.set(linewidth=0.4, color='0.4')
    for ax, name in zip(axes[:, 0], names):
        ax.set_ylabel(name, fontsize=8)
    if weight is not None:
        bar = figure.colorbar(ScalarMappable(norm, COLOURS), ax=axes, fraction=0.03, pad=0.01, aspect=30)
        bar.set_label(weight, fontsize=7)
        bar.ax.tick_params(labelsize=6, width=0.4, length=2)
        bar.outline.set_linewidth(0.4)
    _key(figure, explanation, [panel for row in rows for panel in row], reference, start)
    return figure


def _surroundings(explanation: Explanation, box: np.ndarray) -> tuple[float, float, float, float]:
    """(x1, y1, x2, y2) of the part of the image to show, of the image's shape and within it."""
    h, w = explanation.image.shape[:2]
    x1, y1, x2, y2 = box
    share = min(max(CONTEXT * (x2 - x1) / w, CONTEXT * (y2 - y1) / h, 0.15), 1.0)
    left = np.clip((x1 + x2) / 2 - share * w / 2, 0, (1 - share) * w)
    top = np.clip((y1 + y2) / 2 - share * h / 2, 0, (1 - share) * h)
    return left, top, left + share * w, top + share * h


def _largest_weight(panel: Panel) -> float:
    weights = panel.heat if panel.look is None else panel.look.weights
    if weights is None:
        weights = 1.0 if panel.bin_weights is None else panel.bin_weights
    return float(np.nanmax(weights))


def _draw_panel(
    ax: Axes,
    panel: Panel,
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
    if panel.bins is not None:
        _draw_bins(ax, panel, norm)
    if panel.look is not None:
        _draw_points(ax, panel, norm)
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


def _draw_points(ax: Axes, panel: Panel, norm: Normalize) -> None:
    look = panel.look
    order = np.argsort(look.weights, axis=None)  # the heaviest on top
    order = order[~np.isnan(look.points.reshape(-1, 2)[order]).any(-1)]
    areas = _areas(panel, norm.vmax).ravel()[order]
    ax.scatter(
        *look.points.reshape(-1, 2)[order].T,
        c=look.weights.ravel()[order],
        s=areas,
        cmap=COLOURS,
        norm=norm,
        edgecolors='0.15',
        linewidths=np.where(areas < 2, 0.0, 0.3),
        zorder=2,  # above the boxes
    )


def _draw_bins(ax: Axes, panel: Panel, norm: Normalize) -> None:
    weights = np.ones(len(panel.bins)) if panel.bin_weights is None else panel.bin_weights
    for (x1, y1, x2, y2), colour in zip(panel.bins, COLOURS(norm(weights))):
        style = dict(edgecolor=colour, facecolor=(*colour[:3], 0.12), linewidth=0.6, zorder=2)
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))


def _areas(panel: Panel, largest: float) -> np.ndarray:
    weights = panel.look.weights
    if panel.area is None:
        return np.broadcast_to(_area(np.arange(weights.shape[2])[:, None]), weights.shape)
    return panel.area * weights / largest if panel.by_weight else np.full(weights.shape, panel.area)


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


def _key(figure: Figure, explanation: Explanation, panels: list[Panel], reference: str, start: str) -> None:
    """The symbols' meaning, below the panels, in as many columns as there is room for."""
    has_start = any(panel.detection and panel.start is not None for panel in panels)
    handles = []
    if any(panel.reference for panel in panels):
        style = dict(marker='+', linestyle='', color=GREEN, markeredgewidth=1.3)
        handles.append(Line2D([], [], label=reference, **style))
    if any(panel.look and not panel.note and panel.area is None for panel in panels):  # a note: the rows are levels
        for level, (H, W) in enumerate(explanation.recording.spatial_shapes):
            style = dict(marker='o', linestyle='', color='0.45', markeredgewidth=0, markersize=_area(level) ** 0.5)
            handles.append(Line2D([], [], label=f'level {level + 1} ({W}×{H})', **style))
    if any(panel.points is not None for panel in panels):
        style = dict(marker='o', linestyle='', color=BLUE, markeredgewidth=0, markersize=10**0.5)
        handles.append(Line2D([], [], label='salient point of a head', **style))
    if any(panel.bins is not None for panel in panels):
        handles.append(Patch(facecolor='none', edgecolor=COLOURS(1.0), linewidth=0.6, label='bin'))
    if has_start:
        style = dict(color=GREEN, linewidth=0.8, linestyle=START_DASHES)
        handles.append(Line2D([], [], label=start, **style))
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


def to_array(figure: Figure) -> np.ndarray:  # [H, W, 3] RGB
    """The figure's pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
