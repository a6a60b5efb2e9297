"""Detect with a file of tools/export.py. Needs numpy, opencv-python and onnxruntime, nothing else."""

import argparse
import json
import sys

import cv2
import numpy as np
import onnxruntime

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('files', nargs='+', metavar='FILE', help='the detector, then images')
detector, *paths = parser.parse_args().files
try:
    session = onnxruntime.InferenceSession(detector, providers=onnxruntime.get_available_providers())
    about = json.loads(session.get_modelmeta().custom_metadata_map['mmdet_ddetr'])
except Exception as error:  # damaged, missing, or written by another program
    sys.exit(f'{detector} is no ONNX file of tools/export.py: {type(error).__name__}: {error}'.splitlines()[0])
failed = False
for path in paths:
    try:
        image = cv2.imread(path)  # upright, 8 bits, three channels
        height, width = image.shape[:2]
        w, h = about['scale'] or (width, height)
        if about['scale'] and about['keep_ratio']:
            factor = min(max(w, h) / max(width, height), min(w, h) / min(width, height))
            w, h = max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1)
        least, step = about['smallest'], about['divisor']
        H, W = about['fixed'] or (-(-max(side, least) // step) * step for side in (h, w))
        images = np.zeros((1, 3, H, W), np.float32)
        images[0, :, :h, :w] = cv2.resize(image, (w, h))[..., ::-1].transpose(2, 0, 1)
    except (AttributeError, cv2.error, ValueError):  # no picture, too many pixels, too large for a fixed size
        failed = True
        print(f'{path}: no image that OpenCV reads and this detector takes', file=sys.stderr)
        continue
    boxes, scores, labels = session.run(None, dict(images=images, sizes=np.array([[h, w]])))[:3]
    for box, score, label in zip(boxes[0] * np.tile([width / w, height / h], 2), scores[0], labels[0]):
        if score >= about['threshold']:
            print(f'{path}: {about["classes"][label]} {score:.2f} {box.round(1).tolist()}')
sys.exit(failed)
