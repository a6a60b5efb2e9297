"""The interactive page: one HTML file that needs no other, with the recorded numbers inside."""

import base64
import html
import json
import re
from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np

from ..apis.pictures import encode_picture, shrunk
from .explanation import Explanation
from .page_backbone import convolution_data, deformed_data
from .page_numbers import positions, thinned, weights
from .page_rois import rois_data
from .panels import COLOURS

MAX_SIDE = 1600  # px of the longer side of the embedded image
COLOUR_SCALE = (255 * COLOURS(np.linspace(0, 1, 17))[:, :3]).round().astype(int).tolist()  # of weights, RGB


def write_page(
    explanation: Explanation, path: str | Path, title: str, subtitle: str = '', room_mb: float = 2, depth: int = 3
) -> Path:
    """Write the page. Reading it needs a browser and no network.

    Args:
        explanation: with at least one detection.
        path: of the HTML file.
        title, subtitle: plain text.
        room_mb, depth: see ``page_data``.

    Raises:
        ValueError: nothing was detected.
    """
    if not explanation.detections:
        raise ValueError('explanation has no detection to show')
    data = dict(page_data(explanation, room_mb, depth), subtitle=subtitle)
    values = dict(
        title=html.escape(title),
        data=json.dumps(data, separators=(',', ':')).replace('<', '\\u003c'),  # no </script> inside
    )
    template = files(__package__).joinpath('page.html').read_text(encoding='utf-8')
    path = Path(path)
    path.write_text(re.sub(r'{{(\w+)}}', lambda match: values[match[1]], template), encoding='utf-8')
    return path


def page_data(explanation: Explanation, room_mb: float = 2, depth: int = 3) -> dict:
    """What the page shows, as JSON; see ``page_numbers`` for how it holds numbers. Layers hold all their queries.

    Args:
        room_mb: megabytes of JSON for the encoder, and as many for deformable convolutions and for DAT. Where all
            cells take more, a map keeps every n-th column and row; n grows, always on the map that takes most, until
            they fit. Of convolutions, the first ones are left out.
        depth: deformable convolutions that the page follows points through.
    """
    recording, room = explanation.recording, room_mb * 1e6
    h, w = explanation.image.shape[:2]
    flip = explanation.frame.flip
    data = dict(
        size=[w, h],
        flipped=[flip in ('horizontal', 'diagonal'), flip in ('vertical', 'diagonal')],
        colours=COLOUR_SCALE,
        image=image_uri(explanation.image),
        alt=f'image of {w} × {h} px with {len(explanation.detections)} detections',
        extent=[round(x, 2) for x in explanation.extent],
        detections=[
            dict(name=d.name, score=round(d.score, 4), box=[round(float(x), 2) for x in d.box])
            for d in explanation.detections
        ],
    )
    if explanation.has_queries:
        data |= _of_queries(explanation, room)
    if recording.convolutions:
        data['convolution'] = convolution_data(explanation, room, depth)
    if recording.deformed:
        data['deformed'] = deformed_data(explanation, room)
    if recording.pools and (rois := rois_data(explanation)):
        data['rois'] = rois
    return data


def _of_queries(explanation: Explanation, room: float) -> dict:
    """A DETR's attention."""
    data = decoder_data(explanation)
    if explanation.recording.encoder:
        grids = _encoder_grids(explanation, room)
        queries = [query for grid in grids for query in grid.pop('queries')]
        data['encoder'] = dict(layers=_layers(explanation, 'encoder', queries), grids=grids)
    return data


def decoder_data(explanation: Explanation) -> dict:
    """What the queries of the detections look at, in every layer of the decoder, as ``page_data`` holds it.

    Returns:
        ``kind``, 'points' or 'maps'; ``levels`` [[H, W], ...]; ``decoder.layers``, each with ``weights`` and, where it
        samples, ``points``, ``references`` and perhaps ``boxes``; ``heads``; and the number of ``points`` of a head and
        level, or [H, W] of the ``map``.
    """
    recording = explanation.recording
    decoder_queries = [detection.query for detection in explanation.detections]
    data = dict(
        kind='points' if explanation.is_sampled else 'maps',
        levels=[list(shape) for shape in recording.spatial_shapes],
        decoder=dict(layers=_layers(explanation, 'decoder', decoder_queries)),
    )
    if explanation.is_sampled:
        _, _, data['heads'], _, data['points'], _ = recording.decoder[0].locations.shape
    else:
        data['heads'] = recording.decoder[0].queries.shape[1]
        data['map'] = list(recording.spatial_shapes[0])
    return data


def _layers(explanation: Explanation, part: str, queries: list[int]) -> list[dict]:
    size = explanation.image.shape[:2]
    layers = []
    for layer in range(explanation.num_layers[part]):
        if not explanation.is_sampled:
            heat = np.stack([explanation.heat(part, layer, query) for query in queries])
            layers.append(dict(weights=weights(heat)))
            continue
        look = explanation.look(part, layer, queries)
        layers.append(dict(weights=weights(look.weights), points=positions(look.points, size)))
        if part == 'decoder':
            layers[-1]['references'] = positions(look.references, size)
            if look.boxes is not None:
                layers[-1]['boxes'] = positions(look.boxes.reshape(-1, 2), size)
    return layers


def _encoder_grids(explanation: Explanation, room: float) -> list[dict]:
    """Which pixels of each level the page holds; the ``offset`` is the number of pixels of the levels before."""
    recording = explanation.recording
    shapes = recording.spatial_shapes
    if explanation.is_sampled:
        numbers = 5 * recording.encoder[0].weights[0, 0].numel()
    else:
        H, W = shapes[0]  # maps are as the finest level's
        numbers = recording.decoder[0].queries.shape[1] * H * W
    cost = numbers * explanation.num_layers['encoder'] * 4 / 3  # base64 takes 4 bytes for 3
    grids = thinned([explanation.valid_cells(level) for level in range(len(shapes))], [cost] * len(shapes), room)
    start = offset = 0
    for grid, (H, W) in zip(grids, shapes):
        rows, columns = grid.pop('kept')
        grid['queries'] = [start + row * W + column for row in rows for column in columns]
        grid['offset'] = offset
        start, offset = start + H * W, offset + len(grid['queries'])
    return grids


def image_uri(image: np.ndarray, quality: int = 92) -> str:
    """An RGB image as the address of a JPEG inside a page, with sides of at most ``MAX_SIDE``."""
    bgr = shrunk(image, MAX_SIDE)[..., ::-1]
    data = encode_picture(bgr, '.jpg', cv2.IMWRITE_JPEG_QUALITY, quality)
    return f'data:image/jpeg;base64,{base64.b64encode(data).decode()}'
