"""The bins of deformable RoI pooling, as in the papers of deformable convolution."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from .explanation import Detection, Explanation
from .panels import Panel, draw
from .roi_pool import region_of


@dataclass(frozen=True)
class Bins:
    """The bins of the region that a detection comes from, in px of the original image."""

    name: str  # of the pooling layer
    roi: np.ndarray  # [4], (x1, y1, x2, y2) of the region
    boxes: np.ndarray  # [h*w, 4], of its bins
    weights: np.ndarray | None  # [h*w], their factors (modulated pooling)


def bins_of(explanation: Explanation, detection: Detection) -> list[Bins]:
    """The bins of each pooling that the detection's region went through; R-FCN has one for scores and one for boxes."""
    recording, frame = explanation.recording, explanation.frame
    regions = recording.regions[-1]
    box = frame.boxes_of_input(torch.from_numpy(detection.box))
    region = region_of(regions, explanation.index, detection.label, box)
    roi = regions.rois[region]
    found = []
    for pool in recording.pools:
        (rows,) = torch.nonzero((pool.rois == roi).all(-1), as_tuple=True)
        if len(rows):
            row = rows[0].item()
            boxes = frame.boxes_to_image(pool.bins(row, detection.label)).numpy()
            weights = None if pool.mask is None else pool.mask[row].flatten().numpy()
            found.append(Bins(pool.name, frame.boxes_to_image(roi[None, 1:])[0].numpy(), boxes, weights))
    return found


def bins_figure(explanation: Explanation, detections: Sequence[Detection]) -> Figure:
    """A column per object, a row per pooling of its region."""
    columns = [bins_of(explanation, detection) for detection in detections]
    rows = [
        [
            Panel(
                bins=bins.boxes, bin_weights=bins.weights, start=bins.roi, detection=detection, close_up=detection.box
            )
            for bins, detection in zip(row, detections)
        ]
        for row in zip(*columns)
    ]
    names = [short_name(bins.name) for bins in columns[0]] if len(rows) > 1 else ()
    modulated = any(bins.weights is not None for column in columns for bins in column)
    return draw(
        explanation, rows, names, size=2.5, weight='factor of a bin' if modulated else None, start='region (RoI)'
    )


def short_name(name: str) -> str:
    """Of a pooling layer, without its level."""
    return name.partition('.roi_layers.')[0].removeprefix('roi_head.')
