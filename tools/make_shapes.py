"""Write a COCO-format data set of drawn shapes, to try a detector without downloading anything.

    python tools/make_shapes.py data/shapes

Circles, squares, triangles, stars and rings lie on textured backgrounds among strokes and crosses that belong to no
class; they are turned, textured, blurred, noisy, cut by the image's edge and hidden by each other (at least half of
each stays visible). Boxes are tight around the visible pixels, as in COCO; ``area`` is the box's, as in data without
masks.

Every image has its own random generator, seeded by (seed, split, index): the same seed gives the same bytes (with the
same versions of numpy and OpenCV), whatever the number of images in this or any other split.
"""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('circle', 'square', 'triangle', 'star', 'ring')
SPLITS = ('train', 'val', 'test')
MANIFEST = 'make_shapes.json'
FORMAT = 1  # counts up when the pictures of one seed change

SIDES = {'small': (14, 31), 'medium': (34, 92), 'large': (102, 150)}  # px, at any image size
MAX_BOXES = 20
MIN_VISIBLE = 0.5  # of a shape's pixels
SUBPIXEL_BITS = 4  # polygon corners are given to OpenCV in 1/16 px
SUPERSAMPLING = 4


# ---------------------------------------------------------------------------------------------------------- one image
def texture(rng, size):
    """Cloudy colours, often with stripes or a chequerboard: float32 [size, size, 3] in about 0..255."""
    clouds = rng.uniform(40, 215, (1, 1, 3)).astype(np.float32)
    for cells, strength in ((3, 45), (9, 22), (40, 12)):  # coarse to fine
        noise = rng.standard_normal((cells, cells, 3), np.float32) * (strength * rng.uniform(0.3, 1.0))
        clouds = cv2.resize(clouds, (cells, cells), interpolation=cv2.INTER_CUBIC).reshape(noise.shape) + noise
    image = cv2.resize(clouds, (size, size), interpolation=cv2.INTER_CUBIC)
    kind = rng.random()
    if kind < 0.5:
        angle, period = rng.uniform(0, np.pi), rng.uniform(6, 40)
        along = np.arange(size, dtype=np.float32) * (2 * np.pi / period)
        across = along[:, None]
        wave = np.sin(along * np.cos(angle) + across * np.sin(angle))
        if kind < 0.2:
            wave = np.sign(wave * np.sin(across * np.cos(angle) - along * np.sin(angle)))
        image += wave[..., None] * rng.normal(0, 14, 3).astype(np.float32)
    return image


def add_clutter(rng, image):
    """Strokes and crosses that belong to no class."""
    size = len(image)
    for _ in range(rng.integers(0, 6)):
        colour = rng.uniform(0, 255, 3)
        width = int(rng.integers(1, 4))
        centre = rng.uniform(0, size, 2)
        if rng.random() < 0.5:  # a bent stroke
            points = centre + np.cumsum(rng.normal(0, size / 12, (int(rng.integers(3, 7)), 2)), 0)
            cv2.polylines(image, [np.int32(points)], False, colour, width, cv2.LINE_AA)
        else:
            angle, reach = rng.uniform(0, np.pi), rng.uniform(4, 16)
            for turn in (angle, angle + np.pi / 2):
                arm = reach * np.array((np.cos(turn), np.sin(turn)))
                cv2.line(image, np.int32(centre - arm), np.int32(centre + arm), colour, width + 1, cv2.LINE_AA)


def outline(rng, name, side):
    """Corners [N, 2] around (0, 0), turned at random, whose longer extent is ``side`` px."""
    if name in ('circle', 'ring'):
        angles = np.linspace(0, 2 * np.pi, max(24, int(side)), endpoint=False)
        radii = np.ones_like(angles)
    elif name == 'star':
        angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
        radii = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.5), 1.0)
    else:
        corners = {'square': 4, 'triangle': 3}[name]
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        radii = np.ones(corners)
    corners = np.stack((np.cos(angles), np.sin(angles)), 1) * radii[:, None]
    if name == 'square':
        corners = corners @ np.array(((1, 1), (-1, 1))) / 2  # sides along the axes before they are stretched
    corners = corners * (1, rng.uniform(0.85, 1.0))  # nothing is quite regular
    angle = rng.uniform(0, 2 * np.pi)
    corners = corners @ np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    corners -= (corners.max(0) + corners.min(0)) / 2
    return corners * side / np.ptp(corners, axis=0).max()


def coverage(corners, hole, x0, y0, width, height):
    """Share of each pixel that the polygon covers, float32 [height, width], for the window at (x0, y0).

    Drawn larger and averaged: OpenCV's own anti-aliasing makes a polygon half a pixel wider on all sides.
    """
    window = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    for points, value in ((corners, 255), (hole, 0)):
        if points is not None:
            # OpenCV means the centre of a pixel by a whole number, hence the half
            points = (points - (x0, y0)) * SUPERSAMPLING - 0.5
            cv2.fillPoly(window, [np.int32(np.round(points * 2**SUBPIXEL_BITS))], value, cv2.LINE_8, SUBPIXEL_BITS)
    return cv2.resize(window, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def contrasting_colour(rng, background):
    """A colour that differs from ``background`` [3] by at least 60 of 255 in one channel."""
    while True:
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        if np.abs(colour - background).max() > 60:
            return colour


def paint(rng, image, alpha):
    """Blend one shape into ``image``, a window of the picture [h, w, 3], where ``alpha`` [h, w] covers it."""
    height, width = alpha.shape
    colour = contrasting_colour(rng, cv2.mean(image, (alpha > 0.5).astype(np.uint8))[:3])
    shade = np.linspace(-1, 1, width, dtype=np.float32) * rng.normal(0, 14)
    if rng.random() < 0.3:  # stripes
        shade += 16 * np.sin(np.arange(width, dtype=np.float32) * (2 * np.pi / rng.uniform(4, 14)))
    shade = shade + np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(rng.normal(0, 14))
    if rng.random() < 0.35:  # a darker or lighter rim
        inside = cv2.erode(alpha, np.ones((3, 3), np.uint8), iterations=1 + min(height, width) // 40)
        shade += (1 - inside) * rng.choice((-55, 55))
    fill = shade[..., None] + colour
    fill -= image
    fill *= alpha[..., None] * np.float32(rng.uniform(0.88, 1.0))
    image += fill


def choose_sides(rng, size):
    """Sides in px of the shapes to place, in the order in which they are painted: large ones lie below."""
    kind = rng.random()
    if kind < 0.05:
        return []  # an empty image
    if kind < 0.20:  # a crowd
        count = rng.integers(9, MAX_BOXES + 1)
        groups = rng.choice(('small', 'medium'), count, p=(0.65, 0.35))
    else:
        count = rng.integers(1, 8)
        groups = rng.choice(('small', 'medium', 'large'), count, p=(0.3, 0.45, 0.25))
    sides = [np.exp(rng.uniform(*np.log(SIDES[group]))) for group in groups]
    return sorted((min(side, 0.85 * size) for side in sides), reverse=True)


def draw_image(rng, size):
    """One picture and its boxes.

    Returns:
        The picture, uint8 [size, size, 3], and a list of (class index, [x, y, w, h]).
    """
    image = texture(rng, size)
    add_clutter(rng, image)
    owner = np.zeros((size, size), np.uint8)  # which shape is seen at a pixel, 0 = none
    labels = []
    full = np.zeros(1 + MAX_BOXES, int)  # full[i]: the pixels that shape i would have if nothing hid it
    visible = np.zeros(1 + MAX_BOXES, int)
    for side in choose_sides(rng, size):
        for _ in range(12):  # attempts to find a free place
            label = int(rng.integers(len(CLASSES)))
            corners = outline(rng, CLASSES[label], side)
            hole = corners * rng.uniform(0.45, 0.68) if CLASSES[label] == 'ring' else None
            margin = side * (0.3 if rng.random() < 0.15 else 0.5)  # some are cut by the image's edge
            centre = rng.uniform(margin, size - margin, 2)
            x0, y0 = np.maximum(np.floor(centre + corners.min(0)).astype(int) - 1, 0)
            x1, y1 = np.minimum(np.ceil(centre + corners.max(0)).astype(int) + 1, size)
            alpha = coverage(corners + centre, None if hole is None else hole + centre, x0, y0, x1 - x0, y1 - y0)
            covered = alpha > 0.5
            owner_here = owner[y0:y1, x0:x1]  # a view
            left = visible - np.bincount(owner_here[covered], minlength=len(visible))
            if np.all(left[1:] >= MIN_VISIBLE * full[1:]):
                labels.append(label)
                owner_here[covered] = len(labels)
                visible = left
                visible[len(labels)] = full[len(labels)] = np.count_nonzero(covered)
                paint(rng, image[y0:y1, x0:x1], alpha)
                break
    boxes = []
    for i, label in enumerate(labels, 1):
        seen = owner == i
        columns, rows = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
        box = columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
        boxes.append((label, [int(v) for v in box]))
    return finish(rng, image), boxes


def finish(rng, image):
    """What a camera does: exposure, blur, noise. Changes ``image`` in place; returns it as uint8."""
    contrast = rng.uniform(0.7, 1.15)
    image *= contrast
    image += 127 * (1 - contrast) + rng.normal(0, 14)
    if rng.random() < 0.4:
        cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2), dst=image)
    if rng.random() < 0.7:
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= rng.uniform(1, 10)
        image += noise
    return np.clip(image, 0, 255, out=image).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------- one split
def write_split(out_dir, split, count, size, seed):
    """Write ``count`` pictures and the annotation file of ``split``; returns the COCO dict."""
    folder = out_dir / 'images' / split
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f'{split}_[0-9][0-9][0-9][0-9][0-9][0-9].jpg'):
        old.unlink()

    coco = {
        'info': {'description': f'Drawn shapes, {split}', 'version': str(FORMAT), 'seed': seed},
        'licenses': [{'id': 1, 'name': 'CC0 1.0', 'url': 'https://creativecommons.org/publicdomain/zero/1.0/'}],
        'images': [],
        'annotations': [],
        'categories': [{'id': i, 'name': name, 'supercategory': 'shape'} for i, name in enumerate(CLASSES, 1)],
    }
    for index in range(count):
        image, boxes = draw_image(np.random.default_rng((seed, SPLITS.index(split), index)), size)
        name = f'{split}_{index + 1:06d}.jpg'
        if not cv2.imwrite(str(folder / name), image, [cv2.IMWRITE_JPEG_QUALITY, 92]):
            raise OSError(f'cannot write {folder / name}')
        coco['images'].append({'id': index + 1, 'file_name': name, 'width': size, 'height': size, 'license': 1})
        for label, box in boxes:
            coco['annotations'].append(
                {
                    'id': len(coco['annotations']) + 1,
                    'image_id': index + 1,
                    'category_id': label + 1,
                    'bbox': box,
                    'area': box[2] * box[3],
                    'iscrowd': 0,
                }
            )
    annotation_file = out_dir / 'annotations' / f'{split}.json'
    annotation_file.parent.mkdir(exist_ok=True)
    annotation_file.write_text(json.dumps(coco))
    return coco


def describe(cocos):
    """A table with a line for each split: images, boxes, their sizes in COCO's sense and their classes."""
    head = ['split', 'images', 'empty', 'boxes', 'most', 'small', 'medium', 'large', *CLASSES]
    lines = [head]
    for split, coco in cocos.items():
        areas = np.array([annotation['area'] for annotation in coco['annotations']])
        image_ids = np.array([annotation['image_id'] for annotation in coco['annotations']], int)
        category_ids = np.array([annotation['category_id'] for annotation in coco['annotations']], int)
        a_image = np.bincount(image_ids, minlength=len(coco['images']) + 1)[1:]
        sizes = np.histogram(areas, (0, 32**2, 96**2, np.inf))[0] / max(len(areas), 1)
        numbers = [len(coco['images']), int((a_image == 0).sum()), len(areas), int(a_image.max(initial=0))]
        classes = np.bincount(category_ids, minlength=len(CLASSES) + 1)[1:]
        lines.append([split, *numbers, *(f'{share:.0%}' for share in sizes), *classes])
    widths = [max(len(str(line[i])) for line in lines) for i in range(len(head))]
    return '\n'.join('  '.join(str(cell).rjust(width) for cell, width in zip(line, widths)) for line in lines)


# ------------------------------------------------------------------------------------------------------- command line
def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n')[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out_dir', type=Path, help='folder to write annotations/ and images/ into')
    parser.add_argument('--train', type=int, default=2400, metavar='N', help='images in the train split')
    parser.add_argument('--val', type=int, default=300, metavar='N', help='images in the val split')
    parser.add_argument('--test', type=int, default=100, metavar='N', help='images in the test split')
    parser.add_argument('--size', type=int, default=192, metavar='PX', help='width and height of the images')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--force', action='store_true', help='write into a folder that this tool did not make')
    args = parser.parse_args(argv)
    if not 64 <= args.size <= 4096:
        parser.error(f'--size is {args.size}, expected 64 (nothing fits into less) to 4096')
    if args.seed < 0:
        parser.error(f'--seed is {args.seed}, expected 0 or more')
    for split in SPLITS:
        if getattr(args, split) < 1:
            parser.error(f'--{split} is {getattr(args, split)}, expected 1 or more')
    return args


def main(argv=None):
    args = parse_args(argv)
    out_dir = args.out_dir
    manifest = out_dir / MANIFEST
    request = dict(format=FORMAT, size=args.size, seed=args.seed, **{split: getattr(args, split) for split in SPLITS})
    if manifest.is_file() and json.loads(manifest.read_text()) == dict(request, finished=True):
        cocos = {split: json.loads((out_dir / 'annotations' / f'{split}.json').read_text()) for split in SPLITS}
        print(describe(cocos))
        print(f'{out_dir} is already complete')
        return
    if out_dir.exists() and not out_dir.is_dir():
        sys.exit(f'{out_dir} is a file, expected a folder')
    if out_dir.is_dir() and any(out_dir.iterdir()) and not manifest.is_file() and not args.force:
        sys.exit(f'{out_dir} holds files that this tool did not write; choose another folder or add --force')
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f'{out_dir} cannot be made: {error.strerror}')
    # an interrupted run leaves finished=False, so that the next one knows the folder as its own and starts again
    manifest.write_text(json.dumps(dict(request, finished=False)))
    cocos = {split: write_split(out_dir, split, request[split], args.size, args.seed) for split in SPLITS}
    manifest.write_text(json.dumps(dict(request, finished=True)))
    print(describe(cocos))
    print(f'wrote {out_dir}')


if __name__ == '__main__':
    main()
