"""Detect with a file of tools/export.py. Needs numpy, opencv-python and onnxruntime, nothing else."""

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort

(parser := argparse.ArgumentParser(description=__doc__)).add_argument('files', nargs='+', help='detector, then images')
(detector, *paths), failed = parser.parse_args().files, False
try:
    model = ort.InferenceSession('' if Path(detector).is_fifo() else detector, providers=ort.get_available_providers())
    about = {**json.loads(model.get_modelmeta().custom_metadata_map['mmdet_ddetr'])}
except Exception as error:  # damaged, missing, a pipe, or written by another program
    sys.exit(f'{detector} is no ONNX file of tools/export.py: {type(error).__name__}: {error}'.splitlines()[0])
for path in paths:
    try:
        data, at, pixels = Path(path).read_bytes() if Path(path).is_file() else b'', 2, (0, 1, 255, *range(208, 217))
        while data[:2] == b'\xff\xd8' and data[at + 1] != 0xD9:  # JPEG: over segments and pixels to its end, or none
            at = data.index(b'\xff', at + (1 if data[at + 1] in pixels else 2 + 256 * data[at + 2] + data[at + 3]))
        image = cv2.imdecode(np.frombuffer(data, np.uint8), 1)  # upright, 8 bits, three channels
        height, width = image.shape[:2]
        w, h = about['scale'] or (width, height)
        factor = min(max(w, h) / max(width, height), min(w, h) / min(width, height))
        w, h = (max(int(side * factor + 0.5), 1) for side in (width, height)) if about['keep_ratio'] else (w, h)
        H, W = about['fixed'] or (-(-max(side, about['smallest']) // (n := about['divisor'])) * n for side in (h, w))
        blob = cv2.dnn.blobFromImages([image] * (about.get('batch') or 1), size=(w, h), swapRB=True)
        images = np.pad(blob, [(0, 0), (0, 0), (0, H - h), (0, W - w)])
    except (AttributeError, IndexError, OSError, cv2.error, ValueError):  # no picture, or too large for a fixed size
        failed = True
        print(f'{path}: no image that OpenCV reads and this detector takes', file=sys.stderr)
        continue
    boxes, scores, labels = model.run(None, dict(images=images, sizes=np.array([[h, w]] * len(images))))[:3]
    for box, score, label in zip(boxes[0] * np.tile([width / w, height / h], 2), scores[0], labels[0]):
        if score >= about['threshold']:
            print(f'{path}: {about["classes"][label]} {score:.2f} {box.round(1).tolist()}')
sys.exit(failed)
