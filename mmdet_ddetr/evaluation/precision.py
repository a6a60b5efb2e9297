"""What COCOeval has computed, beyond the few figures that mmdet's metric gives."""

from dataclasses import dataclass

import numpy as np

COLUMNS = {'AP': (None, 0), 'AP50': (0.5, 0), 'AP75': (0.75, 0), 'APs': (None, 1), 'APm': (None, 2), 'APl': (None, 3)}


@dataclass
class Precision:
    """Precision over recall of one evaluation.

    Attributes:
        values: [T, R, C, A], -1 where there is no object: by IoU, recall, class and range of sizes (all, small, medium,
            large).
        ious: [T].
        recalls: [R].
    """

    values: np.ndarray
    ious: np.ndarray
    recalls: np.ndarray

    @classmethod
    def of(cls, evaluation, categories: list[int]) -> 'Precision':
        """
        Args:
            evaluation: a ``COCOeval`` that has accumulated, of pycocotools or faster-coco-eval.
            categories: id of each class, in the order of ``values``.
        """
        params = evaluation.params
        order = [list(params.catIds).index(id) for id in categories]
        values = np.asarray(evaluation.eval['precision'])[..., -1][:, :, order]  # of the most detections an image
        return cls(values, np.asarray(params.iouThrs), np.asarray(params.recThrs))

    def figure(self, column: str, label: int | None = None) -> float:
        """AP of a class, or the mean of all that have objects, as COCO has it; NaN where there is no such object."""
        iou, area = COLUMNS[column]
        values = self.values[self._at(iou)][..., area]
        values = values if label is None else values[:, :, label]
        values = values[values > -1]
        return float(values.mean()) if values.size else float('nan')

    def curve(self, iou: float | None, label: int | None = None) -> np.ndarray | None:
        """[R], precision at each recall, at an IoU or as the mean over all, of a class or as the mean of all that have
        objects; None where there are none."""
        values = self.values[self._at(iou)][..., 0]
        values = values if label is None else values[..., [label]]
        values = values[..., (values > -1).all((0, 1))]
        return values.mean((0, 2)) if values.size else None

    def _at(self, iou: float | None) -> np.ndarray:
        """Indices of an IoU, of all without one."""
        return np.flatnonzero(np.ones(len(self.ious)) if iou is None else np.isclose(self.ious, iou))
