"""What the page shows of deformable RoI pooling."""

import numpy as np

from .explanation import Explanation
from .page_numbers import positions, weights
from .roi_figures import bins_of, short_name


def rois_data(explanation: Explanation) -> dict | None:
    """Per pooling the regions of the detections, their bins and the bins' factors; None: no detection was pooled so."""
    found = [bins_of(explanation, detection) for detection in explanation.detections]
    size = explanation.image.shape[:2]
    layers = [
        dict(
            name=short_name(layer[0].name),
            count=len(layer[0].boxes),
            rois=positions(np.stack([bins.roi for bins in layer]).reshape(-1, 2), size),
            bins=positions(np.stack([bins.boxes for bins in layer]).reshape(-1, 2), size),
            weights=None if layer[0].weights is None else weights(np.stack([bins.weights for bins in layer])),
            heads=1,
        )
        for layer in zip(*found)
    ]
    return dict(layers=layers) if layers else None
