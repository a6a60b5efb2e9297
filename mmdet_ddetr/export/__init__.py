"""Detectors as files that need no OpenMMLab: ONNX, OpenVINO, torch.export and AOTInductor."""

from pathlib import Path

from mmengine.config import Config
from torch import nn

from .description import ExportError, describe
from .formats import FORMATS, check_format, quiet
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
        ExportError: another kind of model, an argument, a test pipeline that does more than resize, or a backbone whose
            maps have no form for any size.
        ImportError: a package that the format needs is missing.
        OSError: the file cannot be written; a previous one of its name is as it was.
    """
    write, attention = check_format(format, attention)
    if not 0 <= threshold <= 1:
        raise ExportError(f'threshold must be a number from 0 to 1, got {threshold!r}')
    if batch is not None and batch < 1:
        raise ExportError(f'batch must be at least 1, or None for any number of images, got {batch!r}')
    program = DetectionProgram(model)
    given = dict(fixed=size, batch=batch, masks=program.has_masks)
    description = describe(cfg, tuple(classes), threshold, program.smallest, **given)
    program.divisor = divisor = description.divisor
    if size is not None and (min(size) < program.smallest or any(side % divisor for side in size)):
        raise ExportError(
            f'size must be at least {program.smallest} px and a multiple of {divisor} in height and width, got {size}'
        )
    try:
        program.run_once()
    except NotImplementedError as error:
        raise ExportError(f'{type(model).__name__} cannot be exported as it is: {error}') from None
    from torch._dynamo.exc import UserError  # takes a second to import

    try:
        with quiet():
            write(trace(program, size, batch), Path(path), description, attention)
    except UserError as error:  # rules for height and width that the maps of such a backbone follow
        raise ExportError(
            f'{type(model).__name__} with {type(model.backbone).__name__} cannot be exported for any height and width '
            f'that are multiples of {divisor}: fix them, size=(HEIGHT, WIDTH), or set pad_size_divisor=32 in the '
            "config's data_preprocessor"
        ) from error
