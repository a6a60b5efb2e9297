"""From the bytes of an upload to what the page shows."""

import numpy as np

from ..apis.inferencer import DDetrInferencer
from ..datasets import DataError, decode_image
from ..datasets.image_file import check_aspect, read_header
from ..explain import Detection, check_recordable, explain
from ..explain.page import COLOUR_SCALE, decoder_data, image_uri

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'MPO')  # what people upload; Pillow knows forty more
FLOOR = 0.05  # score: the page's threshold begins there
MOST = 60  # detections of an image


class Viewer:
    """A detector that answers with boxes, and with the sampling points or attention of each.

    Args:
        inferencer: with the detector.
        max_pixels: of an image; larger ones are refused before they are decoded.
    """

    def __init__(self, inferencer: DDetrInferencer, max_pixels: int):
        self.inferencer, self.max_pixels = inferencer, max_pixels
        try:
            check_recordable(inferencer.model)
            self.can_explain = True
        except TypeError:
            self.can_explain = False

    def __call__(self, data: bytes) -> dict:
        """Detect in an uploaded file.

        Returns:
            ``size`` [w, h], ``image`` as a data address, ``detections`` by falling score {name, score, box}, ``kind``:
            'points', 'maps' or None, and what :func:`~mmdet_ddetr.explain.page.decoder_data` gives of those kinds.

        Raises:
            DataError: it is no image, damaged or too large; the sentence is for the user.
        """
        image = self.decode(data)
        if not self.can_explain:
            return self._answer(image, self._detect(image), dict(kind=None))
        with self.inferencer._guard():
            explanation = explain(self.inferencer.model, image, FLOOR)
        del explanation.detections[MOST:]
        details = dict(kind=None)
        if explanation.has_queries and explanation.detections:
            details = decoder_data(explanation) | dict(extent=[round(x, 2) for x in explanation.extent])
        return self._answer(image, explanation.detections, details)

    def decode(self, data: bytes) -> np.ndarray:  # [H, W, 3], BGR, uint8
        """Decode what a stranger sent: a few formats, few pixels, the first picture, upright."""
        header = read_header(data)
        if header.format not in FORMATS:
            raise DataError(f'a file of {header.format}, expected one of {", ".join(FORMATS[:-1])}')
        pixels = header.width * header.height
        if pixels > self.max_pixels:
            raise DataError(
                f'{header.width} × {header.height} is {pixels / 1e6:.1f} million pixels, expected at most '
                f'{self.max_pixels / 1e6:g} million'
            )
        check_aspect(header.width, header.height)
        return decode_image(data)

    def _detect(self, image: np.ndarray) -> list[Detection]:
        (found,) = self.inferencer.detect([image], FLOOR)
        order = np.argsort(-found.scores, kind='stable')[:MOST]
        return [
            Detection(int(label), self.inferencer.classes[label], float(score), box, None)
            for label, score, box in zip(found.labels[order], found.scores[order], found.boxes[order])
        ]

    @staticmethod
    def _answer(image: np.ndarray, detections: list[Detection], details: dict) -> dict:
        h, w = image.shape[:2]
        boxes = [
            dict(name=str(d.name), score=round(d.score, 4), box=[round(float(x), 2) for x in d.box]) for d in detections
        ]
        return dict(size=[w, h], image=image_uri(image[..., ::-1]), detections=boxes, colours=COLOUR_SCALE, **details)
