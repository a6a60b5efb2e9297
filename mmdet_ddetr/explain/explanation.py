"""One prediction on one image, with what its queries looked at, in pixels of that image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.apis import inference_detector
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor, nn

from mmdet_ddetr.datasets import LoadImageFromFile

from .frame import Frame
from .record import DenseAttention, Recording, SampledAttention, record


@dataclass(frozen=True)
class Detection:
    """A detection and the decoder query that it comes from."""

    label: int
    name: str  # of the class
    score: float
    box: np.ndarray  # [4], (x1, y1, x2, y2) in px of the original image
    query: int | None  # None: the detector has no queries


@dataclass(frozen=True)
class Look:
    """Sampling points of Q queries in one layer. Points may lie outside the image: they count as zero there."""

    points: np.ndarray  # [Q, M, L, K, 2], (x, y) in px of the original image
    weights: np.ndarray  # [Q, M, L, K], sums to 1 over L and K
    references: np.ndarray  # [Q, 2], (x, y) in px
    boxes: np.ndarray | None  # [Q, 4], (x1, y1, x2, y2) in px, where the references are boxes


@dataclass(frozen=True)
class Explanation:
    """What one prediction looked at.

    Args:
        image: [H, W, 3] RGB, uint8, the original.
        detections: best first.
        recording: of the batch that the image was in.
        index: the image's place in that batch.
        frame: how the image lies in the network's input.
    """

    image: np.ndarray
    detections: list[Detection]
    recording: Recording
    index: int
    frame: Frame

    @property
    def has_queries(self) -> bool:
        """Whether the detector is a DETR whose attentions were recorded."""
        return bool(self.recording.decoder)

    @property
    def is_sampled(self) -> bool:
        """Whether all attention samples points (``look``), or some weighs pixels (``heat``)."""
        return not isinstance(self.recording.decoder[0], DenseAttention)

    @property
    def num_layers(self) -> dict[str, int]:
        return dict(encoder=len(self.recording.encoder), decoder=len(self.recording.decoder))

    def objects(self, count: int) -> list[Detection]:
        """The best detections of different objects: whose box overlaps no better one's by an IoU of 0.5 or more."""
        chosen = []
        for detection in self.detections:
            box = torch.from_numpy(detection.box)[None]
            if all(bbox_overlaps(box, torch.from_numpy(other.box)[None]) < 0.5 for other in chosen):
                chosen.append(detection)
        return chosen[:count]

    def look(self, part: str, layer: int, queries: int | Sequence[int] | slice) -> Look:
        """Sampling points of some queries.

        Args:
            part: ``'encoder'`` or ``'decoder'``.
            layer: from 0; negative from the last.
            queries: index or indices; one index still gives Q = 1.

        Raises:
            ValueError: there is no such layer.
        """
        attention = self._attention(part, layer)
        queries = [queries] if isinstance(queries, int | np.integer) else queries
        locations, weights, references = (
            x[self.index, queries].float().cpu()
            for x in (attention.locations, attention.weights, attention.reference_points)
        )
        ratios = self.recording.valid_ratios[self.index].float().cpu()  # [L, 2]
        centres = references[:, 0, :2] / ratios[0]  # the same for every level, as each was multiplied by its ratio
        boxes = None
        if references.shape[-1] == 4:
            boxes = self._to_image_boxes(centres, references[:, 0, 2:] / ratios[0])
        return Look(
            points=self.frame.to_image(locations / ratios[:, None]).numpy(),
            weights=weights.numpy(),
            references=self.frame.to_image(centres).numpy(),
            boxes=boxes,
        )

    def _to_image_boxes(self, centres: Tensor, sizes: Tensor) -> np.ndarray:
        corners = self.frame.to_image(torch.stack([centres - sizes / 2, centres + sizes / 2], 1))  # [Q, 2, 2]
        return torch.cat([corners.amin(1), corners.amax(1)], -1).numpy()  # a flip swaps the corners

    def heat(self, part: str, layer: int, query: int, gaussians: bool = False) -> np.ndarray:  # [M, H, W]
        """What one query weighs over the finest map, unflipped; ``extent`` says where it lies.

        Args:
            gaussians: the Gaussians by which the attention is modulated instead of its weights.
        """
        heats = self.heats(part, layer, query, gaussians)
        if len(heats) == 1:
            return heats[0]
        _, H, W = heats[0].shape
        sums = 0.0
        for heat in map(torch.from_numpy, heats):
            spread = 1.0 if gaussians else heat[0].numel() / (H * W)  # a weight goes to all the cells that it covers
            sums = sums + spread * F.interpolate(heat[None], size=(H, W))[0]
        return sums.numpy()

    def heats(self, part: str, layer: int, query: int, gaussians: bool = False) -> list[np.ndarray]:
        """As ``heat``, [M, H, W] for each level."""
        attention, shapes = self._attention(part, layer), self.recording.spatial_shapes
        if isinstance(attention, SampledAttention):
            weights = attention.weights_of_cells(self.index, query, shapes)
        else:
            weights = (attention.gaussians if gaussians else attention.weights)(self.index, query)
            if attention.shape is not None:  # one level: nothing is seen of the others
                own = shapes.index(attention.shape)
                before, after = (sum(H * W for H, W in part) for part in (shapes[:own], shapes[own + 1 :]))
                weights = F.pad(weights, (before, after))
        axes = dict(horizontal=[-1], vertical=[-2], diagonal=[-1, -2]).get(self.frame.flip, [])
        levels = weights.cpu().split([H * W for H, W in shapes], -1)
        return [level.unflatten(-1, shape).flip(axes).numpy() for level, shape in zip(levels, shapes)]

    def salient_points(self, layer: int, query: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The points [M, 2], (x, y) in px, that a decoder layer's query takes its features from (SAM-DETR).

        With the box [4] that it finds them in, (x1, y1, x2, y2) in px. None: the attention has no such points.
        """
        attention = self._attention('decoder', layer)
        if self.is_sampled or attention.points is None:
            return None
        points, box = (x[self.index, query].cpu() for x in (attention.points, attention.boxes))
        return self.frame.to_image(points).numpy(), self._to_image_boxes(box[None, :2], box[None, 2:])[0]

    @property
    def has_gaussians(self) -> bool:
        """Whether the decoder's attention is modulated by Gaussians (SMCA)."""
        return not self.is_sampled and self.recording.decoder[0].bias is not None

    @property
    def has_axes(self) -> bool:
        """Whether each weight is that of a column times that of a row (Anchor DETR)."""
        return not self.is_sampled and self.recording.decoder[0].by_axis

    def _attention(self, part: str, layer: int) -> SampledAttention | DenseAttention:
        layers = getattr(self.recording, part)
        if not layers:
            raise ValueError(f'part must be another: the {part} has no layer with attention')
        if not -len(layers) <= layer < len(layers):
            raise ValueError(f'layer must be in -{len(layers)}..{len(layers) - 1} for the {part}, got {layer}')
        return layers[layer]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of the padded feature map in px of the original image."""
        (x1, y1), (x2, y2) = self.frame.of_padded(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist()
        return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)

    def valid_cells(self, level: int) -> tuple[float, float]:
        """(rows, columns) of a level's map that are image; whole numbers with deformable attention."""
        H, W = self.recording.spatial_shapes[level]
        if self.is_sampled:
            x, y = self.recording.valid_ratios[self.index, level].tolist()
            return round(y * H), round(x * W)
        return self.frame.cells((H, W))

    def encoder_query(self, x: float, y: float, level: int = 0) -> int:
        """The encoder query whose cell contains a pixel.

        Args:
            x, y: px of the original image.
            level: feature level, 0 the finest.

        Raises:
            ValueError: the pixel lies outside the image, or there is no such level.
        """
        shapes = self.recording.spatial_shapes
        if not 0 <= level < len(shapes):
            raise ValueError(f'level must be in 0..{len(shapes) - 1}, got {level}')
        row, column = self._cell(x, y, self.valid_cells(level))
        first = sum(H * W for H, W in shapes[:level])
        return first + row * shapes[level][1] + column

    def cell(self, x: float, y: float, size: tuple[int, int]) -> tuple[int, int]:
        """(row, column) of the cell that contains a pixel.

        Args:
            x, y: px of the original image.
            size: (H, W) of the feature map.

        Raises:
            ValueError: the pixel lies outside the image.
        """
        return self._cell(x, y, self.frame.cells(size))

    def _cell(self, x: float, y: float, cells: tuple[float, float]) -> tuple[int, int]:
        h, w = self.image.shape[:2]
        if not (0 <= x < w and 0 <= y < h):
            raise ValueError(f'pixel must lie in the image, 0 <= x < {w} and 0 <= y < {h}, got ({x:g}, {y:g})')
        position = self.frame.unflip(torch.tensor([x, y], dtype=torch.float64)) / torch.tensor(self.frame.image_size)
        row, column = (
            min(int(share * count), math.ceil(count) - 1) for share, count in zip(position.flip(0).tolist(), cells)
        )
        return row, column


def explain(model: nn.Module, image: str | Path | np.ndarray, score_thr: float = 0.3) -> Explanation:
    """Detect objects in an image and record what the queries looked at.

    Args:
        model: a detector that ``record`` takes, as ``DDetrInferencer(...).model`` or mmdet's ``init_detector`` give it,
            with the test pipeline in ``model.cfg``.
        image: path, or [H, W, 3] BGR, uint8.
        score_thr: detections below it are left out.

    Raises:
        TypeError: a model of another kind.
        DataError: the image is missing, truncated or does not decode.
    """
    bgr = image if isinstance(image, np.ndarray) else LoadImageFromFile().transform(dict(img_path=image))['img']
    with record(model) as recording:
        sample = inference_detector(model, bgr)
    return explanation_of(model, recording, 0, sample, bgr[..., ::-1], score_thr)


def explanation_of(
    model: nn.Module,
    recording: Recording,
    index: int,
    sample: DetDataSample,
    image: np.ndarray,  # [H, W, 3] RGB
    score_thr: float = 0.3,
) -> Explanation:
    """The explanation of one image of a batch that was predicted inside ``record``.

    Args:
        index: place of the image in the batch.
        sample: the prediction, boxes in px of the original image.
    """
    frame = Frame.of(sample.metainfo)
    result = sample.pred_instances
    corners = frame.unflip(result.bboxes.float().cpu().view(-1, 2, 2))
    boxes = torch.cat([corners.amin(1), corners.amax(1)], -1).numpy()
    queries = [None] * len(boxes)
    if recording.decoder:
        queries = _queries_of_detections(model.bbox_head, recording.head_outputs, index)
    names = (getattr(model, 'dataset_meta', None) or {}).get('classes') or ()
    detections = [
        Detection(label, names[label] if label < len(names) else f'class {label}', score, box, query)
        for label, score, box, query in zip(result.labels.tolist(), result.scores.tolist(), boxes, queries)
        if score >= score_thr
    ]
    return Explanation(np.ascontiguousarray(image), detections, recording, index, frame)


def _queries_of_detections(head: nn.Module, outputs: tuple[Tensor, Tensor], index: int) -> list[int]:
    """The query of each detection of an image, in the head's order.

    Not every head tells. It is asked to predict once more, with boxes whose position is the number of their query.
    """
    logits, boxes = outputs[0][:, index : index + 1], outputs[1][:, index : index + 1]
    Q = boxes.shape[2]
    marks = torch.zeros_like(boxes, dtype=torch.float32)
    marks[..., :2] = (torch.arange(Q, device=boxes.device) / Q)[:, None]
    meta = dict(img_shape=(Q, Q), scale_factor=(1.0, 1.0))
    (result,) = head.predict_by_feat(logits, marks, batch_img_metas=[meta], rescale=False)
    return result.bboxes[:, 0].round().int().tolist()
