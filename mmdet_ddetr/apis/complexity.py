"""Size, operations and speed of a detector, by the conventions of the DETR papers."""

import copy
import time
from dataclasses import dataclass
from statistics import median

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmdet_ddetr.acceleration import accelerate
from mmdet_ddetr.detectors import BaseDETR
from mmdet_ddetr.testing import make_batch, without_download


@dataclass
class Parameters:
    """Numbers of parameters, each tensor counted once.

    Attributes:
        total: all of them; what MMDetection reports.
        trained: those with ``requires_grad``.
        frozen_norm: scales and shifts of batch norms that are not trained.
    """

    total: int
    trained: int
    frozen_norm: int

    @property
    def paper(self) -> int:
        """Without the frozen batch norms, which the official codes keep as buffers and do not count."""
        return self.total - self.frozen_norm


def build_detector(cfg: Config) -> nn.Module:
    """The detector of a config, ready to predict, with random weights; ``cfg`` is not changed.

    mmcv's multi-scale deformable attention is replaced by this package's, whose operations are counted.
    """
    from mmdet.registry import MODELS

    init_default_scope(cfg.get('default_scope', 'mmdet'))
    model = MODELS.build(without_download(copy.deepcopy(cfg.model)))
    accelerate(model)
    return model.eval()


def count_parameters(model: nn.Module) -> Parameters:
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return Parameters(
        total=sum(size for size, _ in sizes),
        trained=sum(size for size, is_trained in sizes if is_trained),
        frozen_norm=sum(p.numel() for norm in norms for p in norm.parameters() if not p.requires_grad),
    )


@torch.no_grad()
def count_multiply_adds(model: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of one prediction, each counted once: what the DETR papers call FLOPs.

    Counted are convolutions, matrix products and, with 5 a sample and channel, bilinear samples and their weighted sum
    (Deformable DETR, appendix A.1). Norms, activations, softmax and the selection of boxes are not. Operators of a
    compiled mmcv are not counted either, its deformable convolutions among them; with mmcv-lite they are.

    This package's detectors are not computed: their shapes suffice. Others are, on the model's device, since what they
    do may depend on values, such as the boxes that they find.

    Args:
        size: (height, width) of the image in pixels.
    """
    # The counter wants a gradient function of every view of a trained parameter, which has none without gradients.
    model = copy.deepcopy(model).requires_grad_(False)
    if isinstance(model, BaseDETR):
        model = model.to('meta')
        model.panoptic_fusion_head = None  # it depends on values, and multiplies nothing
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # other attentions may be uncounted
        model(*_image(model, size, 1), mode='predict')
    return counter.get_total_flops() // 2  # torch counts multiplication and addition


@torch.no_grad()
def measure_speed(model: nn.Module, size: tuple[int, int], batch_size: int = 1, seconds: float = 10.0) -> float:
    """Images a second: network and selection of boxes, on the model's device, without loading the images.

    Args:
        size: (height, width) of the images in pixels.
        seconds: how long to measure, at least three batches; the median counts.
    """
    batch = _image(model, size, batch_size)
    synchronise = torch.cuda.synchronize if batch[0].is_cuda else lambda: None
    for _ in range(3):  # warm-up: memory, choice of algorithms
        model(*batch, mode='predict')
    times = []
    while len(times) < 3 or sum(times) < seconds:
        synchronise()
        start = time.perf_counter()
        model(*batch, mode='predict')
        synchronise()
        times.append(time.perf_counter() - start)
    return batch_size / median(times)


def _image(model: nn.Module, size: tuple[int, int], batch_size: int) -> tuple[Tensor, list]:
    inputs, samples = make_batch([size] * batch_size, [0] * batch_size, num_classes=1)
    return inputs.to(next(model.parameters()).device), samples
