"""The interactive page: one HTML file that needs no other, with the recorded numbers inside."""

import base64
import html
import json
import math
import re
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np

from .explanation import Explanation
from .figures import COLOURS

MAX_SIDE = 1600  # px of the longer side of the embedded image


def write_page(
    explanation: Explanation, path: str | Path, title: str, subtitle: str = '', encoder_mb: float = 2
) -> Path:
    """Write the page. Reading it needs a browser and no network.

    Args:
        explanation: with at least one detection.
        path: of the HTML file.
        title, subtitle: plain text.
        encoder_mb: room for the encoder's pixels, see ``page_data``.

    Raises:
        ValueError: nothing was detected.
    """
    if not explanation.detections:
        raise ValueError('explanation has no detection to show')
    data = dict(page_data(explanation, encoder_mb), subtitle=subtitle)
    values = dict(
        title=html.escape(title),
        data=json.dumps(data, separators=(',', ':')).replace('<', '\\u003c'),  # no </script> inside
    )
    template = files(__package__).joinpath('page.html').read_text(encoding='utf-8')
    path = Path(path)
    path.write_text(re.sub(r'{{(\w+)}}', lambda match: values[match[1]], template), encoding='utf-8')
    return path


def page_data(explanation: Explanation, encoder_mb: float = 2) -> dict:
    """What the page shows, as JSON.

    Positions are 16-bit numbers over twice the image's size around it (0.03 px in an image of 1000 px; what lies
    farther out is moved to that border), weights are 8-bit square roots (steps of 0.002 at a weight of 0.06). Every
    array is base64 of little-endian bytes, and layers hold all their queries.

    Args:
        encoder_mb: megabytes of JSON for the encoder. Where all pixels take more, a level keeps every n-th column and
            row; n grows, always on the level that keeps most, until they fit.
    """
    recording = explanation.recording
    h, w = explanation.image.shape[:2]
    grids = _encoder_grids(explanation, encoder_mb * 1e6)
    queries = [query for grid in grids for query in grid.pop('queries')]
    decoder_queries = [detection.query for detection in explanation.detections]
    flip = explanation.frame.flip
    data = dict(
        kind='points' if explanation.is_sampled else 'maps',
        size=[w, h],
        flipped=[flip in ('horizontal', 'diagonal'), flip in ('vertical', 'diagonal')],
        colours=(255 * COLOURS(np.linspace(0, 1, 17))[:, :3]).round().astype(int).tolist(),
        image=_image_uri(explanation.image),
        alt=f'image of {w} × {h} px with {len(explanation.detections)} detections',
        levels=[list(shape) for shape in recording.spatial_shapes],
        detections=[
            dict(name=d.name, score=round(d.score, 4), box=[round(float(x), 2) for x in d.box])
            for d in explanation.detections
        ],
        decoder=dict(layers=_layers(explanation, 'decoder', decoder_queries)),
        encoder=dict(layers=_layers(explanation, 'encoder', queries), grids=grids),
    )
    if explanation.is_sampled:
        _, _, data['heads'], _, data['points'], _ = recording.decoder[0].locations.shape
    else:
        data['heads'] = recording.decoder[0].queries.shape[1]
        data['map'] = list(recording.spatial_shapes[0])
        data['extent'] = [round(x, 2) for x in explanation.extent]
    return data


def _layers(explanation: Explanation, part: str, queries: list[int]) -> list[dict]:
    layers = []
    for layer in range(explanation.num_layers[part]):
        if not explanation.is_sampled:
            heat = np.stack([explanation.heat(part, layer, query) for query in queries])
            layers.append(dict(weights=_weights(heat)))
            continue
        look = explanation.look(part, layer, queries)
        layers.append(dict(weights=_weights(look.weights), points=_positions(look.points, explanation)))
        if part == 'decoder':
            layers[-1]['references'] = _positions(look.references, explanation)
            if look.boxes is not None:
                layers[-1]['boxes'] = _positions(look.boxes.reshape(-1, 2), explanation)
    return layers


def _encoder_grids(explanation: Explanation, max_bytes: float) -> list[dict]:
    """Which pixels of each level the page holds: rows and columns ``first``, ``first + step``, ..."""
    shapes = explanation.recording.spatial_shapes
    recording = explanation.recording
    if explanation.is_sampled:
        numbers = 5 * recording.encoder[0].weights[0, 0].numel()
    else:
        numbers = recording.decoder[0].queries.shape[1] * math.prod(shapes[0])  # maps are as the finest level's
    max_count = max_bytes / (numbers * explanation.num_layers['encoder'] * 4 / 3)  # base64 takes 4 bytes for 3
    cells = [[math.ceil(n) for n in explanation.valid_cells(level)] for level in range(len(shapes))]
    steps = [1] * len(cells)
    while True:
        kept = [[range((n - 1) % step // 2, n, step) for n in shape] for shape, step in zip(cells, steps)]
        counts = [len(rows) * len(columns) for rows, columns in kept]
        if sum(counts) <= max_count or max(counts) == 1:
            break
        steps[int(np.argmax(counts))] += 1
    starts = np.cumsum([0] + [H * W for H, W in shapes])
    offsets = np.cumsum([0] + counts)
    return [
        dict(
            rows=len(rows),
            columns=len(columns),
            cells=list(explanation.valid_cells(level)),
            step=step,
            first=[rows[0], columns[0]],
            offset=int(offset),
            queries=[int(start) + row * shapes[level][1] + column for row in rows for column in columns],
        )
        for level, (start, step, offset, (rows, columns)) in enumerate(zip(starts, steps, offsets, kept))
    ]


def _positions(points: np.ndarray, explanation: Explanation) -> str:
    h, w = explanation.image.shape[:2]
    shares = (points / [w, h] + 0.5) / 2
    return _base64((shares * 65535).round().clip(0, 65535).astype('<u2'))


def _weights(weights: np.ndarray) -> str:
    return _base64((np.sqrt(weights) * 255).round().astype('u1'))


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _image_uri(image: np.ndarray) -> str:
    scale = min(MAX_SIDE / max(image.shape[:2]), 1)
    bgr = cv2.resize(image[..., ::-1], None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return f'data:image/jpeg;base64,{base64.b64encode(encoded).decode()}'
