"""One figure of any detector that ``record`` takes."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from .backbone_figures import attention_figure, convolution_figure
from .explanation import Detection, Explanation
from .figures import figure6
from .roi_figures import bins_figure


def overview(explanation: Explanation, detections: Sequence[Detection]) -> Figure:
    """A column per object: of a DETR its queries, else its deformable convolutions, DAT, or deformable RoI pooling."""
    recording = explanation.recording
    if explanation.has_queries:
        return figure6(explanation, detections)
    if recording.convolutions:
        return convolution_figure(explanation, detections)
    if recording.deformed:
        return attention_figure(explanation, detections)
    return bins_figure(explanation, detections)
