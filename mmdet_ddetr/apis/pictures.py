"""Annotated pictures: what is there beside what was found."""

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..datasets import read_image
from ..files import write_atomically
from .outputs import JFIF, MARKED_JPEG, distinct_name

MIN_SIDE = 480  # px of the longer side: smaller pictures are enlarged, so that labels can be read
USUAL_SIDE = 1000  # up to which letters are 9 px high and lines 2 px wide; beyond, they grow with the picture

LARGEST_SIDES = {'.jpg': 65500, '.jpeg': 65500, '.webp': 16383}  # px; others take any


def write_picture(path: str | Path, image: np.ndarray) -> None:
    """Write BGR [H, W, 3], uint8, in the format of the path's ending; what is too long for that is made smaller.

    Unlike ``cv2.imwrite``, it takes any path and is never silent; its folder is made if missing.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    path = Path(path)
    data = encode_picture(image, path.suffix)
    if data.startswith(JFIF):
        data = MARKED_JPEG + data[len(JFIF) :]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data, sync=False)


def encode_picture(image: np.ndarray, suffix: str = '.jpg', *options: int) -> bytes:
    """The bytes of a file of BGR [H, W, 3], uint8; what is too long for its format is made smaller.

    Args:
        suffix: of OpenCV's formats.
        options: of ``cv2.imencode``.

    Raises:
        OSError: OpenCV cannot write it.
    """
    image = shrunk(image, LARGEST_SIDES.get(suffix.lower(), np.inf))
    try:
        done, data = cv2.imencode(suffix, image, options)
    except cv2.error:  # a kind of pixels that the format does not have
        done = False
    if not done:
        raise OSError(f'OpenCV cannot write a picture of {image.shape[1]}x{image.shape[0]} px as {suffix}')
    return data.tobytes()


def shrunk(image: np.ndarray, side: float) -> np.ndarray:
    """The picture, made smaller where one of its sides is longer than ``side`` px."""
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(int(side * scale), 1) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def draw_boxes(
    image: np.ndarray,  # [H, W, 3], BGR
    boxes: np.ndarray,  # [N, 4]
    labels: Sequence[int],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    scores: Sequence[float] | None = None,
) -> np.ndarray:  # [H * s, W * s, 3], BGR
    """A copy of ``image``, enlarged by a whole number s where it is small, with boxes (x1, y1, x2, y2 in px) on it.

    Lines and text grow with the picture, so that they can be read when all of it is on the screen.
    """
    scale = max(1, -(-MIN_SIDE // max(image.shape[:2])))
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    times = max(max(image.shape[:2]) / USUAL_SIDE, 1)
    line, font, stroke, pad = round(2 * times), 0.4 * times, max(round(times), 1), round(2 * times)
    order = np.argsort(-np.prod(np.diff(np.reshape(boxes, (-1, 2, 2)), axis=1), axis=-1).ravel())
    corners = np.round(np.reshape(boxes, (-1, 4)) * scale).astype(int).tolist()
    colours = [palette[label][::-1] for label in labels]
    for i in order:  # large ones first, so that they hide none
        x1, y1, x2, y2 = corners[i]
        cv2.rectangle(image, (x1, y1), (x2 - 1, y2 - 1), colours[i], line, cv2.LINE_AA)
    for i in order:
        (x1, y1, *_), colour = corners[i], colours[i]
        text = classes[labels[i]] if scores is None else f'{classes[labels[i]]} {scores[i]:.2f}'
        (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, font, stroke)
        top = max(y1 - height - 2 * pad, 0)
        cv2.rectangle(image, (x1, top), (x1 + width + 2 * pad - 1, top + height + 2 * pad), colour, cv2.FILLED)
        dark = np.dot(colour, (0.114, 0.587, 0.299)) < 140
        ink = (255, 255, 255) if dark else (0, 0, 0)
        cv2.putText(
            image, text, (x1 + pad, top + height + pad - 1), cv2.FONT_HERSHEY_SIMPLEX, font, ink, stroke, cv2.LINE_AA
        )
    return image


def side_by_side(panes: dict[str, np.ndarray]) -> np.ndarray:
    """Pictures [H, W, 3] of one height in a row, each under its name."""
    framed = []
    for name, pane in panes.items():
        pane = cv2.copyMakeBorder(pane, 22, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        framed.append(cv2.putText(pane, name, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA))
    return np.hstack(framed)


def compare(
    image: np.ndarray,  # [H, W, 3], BGR
    true_boxes: np.ndarray,  # [T, 4]
    true_labels: Sequence[int],
    boxes: np.ndarray,  # [N, 4]
    labels: Sequence[int],
    scores: Sequence[float],
    classes: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    score_thr: float,
) -> np.ndarray:  # BGR
    """Ground truth beside prediction; boxes (x1, y1, x2, y2) in px, the predicted ones chosen by ``score_thr``."""
    return side_by_side(
        {
            'ground truth': draw_boxes(image, true_boxes, true_labels, classes, palette),
            f'prediction, score >= {score_thr}': draw_boxes(image, boxes, labels, classes, palette, scores),
        }
    )


def palette(n: int) -> list[tuple[int, int, int]]:
    """``n`` colours that differ, RGB in 0..255: hues a golden section apart."""
    hues = [(0.6 + i * 0.618034) % 1 for i in range(n)]
    return [tuple(round(255 * v) for v in colorsys.hsv_to_rgb(hue, 0.85, 0.95)) for hue in hues]


def write_comparisons(
    inferencer, coco: dict, image_dir: str | Path, out_dir: str | Path, n_images: int = 12, score_thr: float = 0.3
) -> list[Path]:
    """Detect objects in some images of an annotation file and write them beside the ground truth.

    Args:
        inferencer: a DetInferencer.
        coco: the annotation file's content; of its images ``n_images`` are taken at even distances.
        image_dir: folder that its file names are relative to.
        out_dir: folder for the pictures, made if missing.
        n_images: number of pictures.
        score_thr: predictions below it are not drawn.

    Returns:
        The pictures' paths, JPEG.
    """
    images = coco['images'][:: max(len(coco['images']) // max(n_images, 1), 1)][: max(n_images, 0)]
    label_of = {category['id']: label for label, category in enumerate(coco['categories'])}
    classes = [category['name'] for category in coco['categories']]
    colours = inferencer.model.dataset_meta['palette']
    paths = [Path(image_dir, image['file_name']) for image in images]
    predictions = inferencer([str(path) for path in paths])['predictions']
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for image, path, prediction in zip(images, paths, predictions):
        pixels = read_image(path)
        truth = [a for a in coco['annotations'] if a['image_id'] == image['id'] and not a.get('iscrowd')]
        corners = np.array([a['bbox'] for a in truth], float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        kept = [i for i, score in enumerate(prediction['scores']) if score >= score_thr]
        row = compare(
            pixels,
            corners,
            [label_of[a['category_id']] for a in truth],
            np.array([prediction['bboxes'][i] for i in kept]).reshape(-1, 4),
            [prediction['labels'][i] for i in kept],
            [prediction['scores'][i] for i in kept],
            classes,
            colours,
            score_thr,
        )
        name = distinct_name(image['file_name'], {path.stem.casefold() for path in written})
        written.append(out_dir / f'{name}.jpg')
        write_picture(written[-1], row)
    return written
