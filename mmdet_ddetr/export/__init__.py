"""Detectors as files that need no OpenMMLab: ONNX, OpenVINO, torch.export and AOTInductor."""

from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from mmdet_ddetr.ops import reference

from .description import ExportError, describe
from .formats import FORMATS, check_format
from .program import DetectionProgram, trace
from .runtime import ExportedDetector

__all__ = ['FORMATS', 'DetectionProgram', 'ExportError', 'ExportedDetector', 'check_format', 'export', 'trace']


def export(
    model: nn.Module,
    cfg: Config,
    path: str | Path,
    format: str = 'onnx',
    *,
    classes: tuple[str, ...],
    attention: str | None = None,
    threshold: float = 0.3,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
) -> None:
    """Write a detector to a file that takes any number of images of any size, also padded ones.

    Args:
        model: as of :class:`DetectionProgram`.
        cfg: its config, whose test pipeline tells how images are resized.
        path: the file. OpenVINO writes a ``.bin`` beside it.
        format: ``onnx``, ``openvino``, ``pt2`` (torch.export) or ``aoti`` (AOTInductor, compiled for this processor).
        classes: a name for each label.
        attention: how deformable attention is computed: ``gridsample`` or ``gather``, of standard operators; ``plugin``
            (ONNX), a node of TensorRT's; ``op`` (pt2, aoti), the op of this package, which has to be imported then.
        threshold: score that the file names as the usual one; detections below it are there, too.
        size, batch: (height, width) and number of images, where they are to be fixed.

    Raises:
        ExportError: another kind of model, an argument, or a test pipeline that does more than resize.
        ImportError: a package that the format needs is missing.
    """
    writer = check_format(format, attention)
    program = DetectionProgram(model)
    description = describe(cfg, tuple(classes), threshold, fixed=size, batch=batch, masks=program.has_masks)
    traced = trace(program, size, batch)
    if format in ('pt2', 'aoti') and attention != 'op':
        traced = traced.run_decompositions(plain_pytorch(attention or 'gridsample'))
    with torch.no_grad():
        writer(traced, Path(path), description, **({} if format in ('pt2', 'aoti') else dict(attention=attention)))


def plain_pytorch(attention: str) -> dict:
    """Decompositions of this package's ops."""
    way = '' if attention == 'gridsample' else '_by_gather'
    plain, fused = (getattr(reference, name + way) for name in ('ms_deform_attn', 'ms_deform_attn_fused'))
    ops = torch.ops.mmdet_ddetr

    def deform_conv2d(input, offset, weight, stride, padding, dilation, mask):
        return reference.deform_conv2d(input, offset, weight, None, stride, padding, dilation, mask)

    def pairs(flat):
        return list(zip(flat[::2], flat[1::2]))

    return {
        ops.ms_deform_attn.default: lambda value, shapes, *points: plain(value, pairs(shapes), *points),
        ops.ms_deform_attn_fused.default: lambda value, shapes, *points: fused(value, pairs(shapes), *points),
        ops.deform_conv2d.default: deform_conv2d,
    }
