"""Detect with a file of tools/export.py: python onnx_infer.py detector.onnx photo.jpg [more.jpg ...]

Needs numpy, opencv-python and onnxruntime, nothing else.
"""

import argparse
import json

import cv2
import numpy as np
import onnxruntime

parser = argparse.ArgumentParser(description='Detect with a file of tools/export.py')
parser.add_argument('detector')
parser.add_argument('images', nargs='+')
args = parser.parse_args()
session = onnxruntime.InferenceSession(args.detector, providers=onnxruntime.get_available_providers())
about = json.loads(session.get_modelmeta().custom_metadata_map['mmdet_ddetr'])

for path in args.images:
    image = cv2.imread(path)
    if image is None:
        print(f'{path}: no image that OpenCV can read')
        continue
    height, width = image.shape[:2]
    w, h = about['scale'] or (width, height)
    if about['scale'] and about['keep_ratio']:
        factor = min(max(w, h) / max(width, height), min(w, h) / min(width, height))
        w, h = int(width * factor + 0.5), int(height * factor + 0.5)
    step = about['divisor']
    H, W = about['fixed'] or (-(-max(side, 65) // step) * step for side in (h, w))
    images = np.zeros((1, 3, H, W), np.float32)
    images[0, :, :h, :w] = cv2.resize(image, (w, h))[..., ::-1].transpose(2, 0, 1)
    boxes, scores, labels = session.run(None, dict(images=images, sizes=np.array([[h, w]])))[:3]
    for box, score, label in zip(boxes[0] * np.tile([width / w, height / h], 2), scores[0], labels[0]):
        if score >= about['threshold']:
            print(f'{path}: {about["classes"][label]} {score:.2f} {box.round(1).tolist()}')
