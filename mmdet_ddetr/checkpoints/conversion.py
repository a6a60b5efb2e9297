"""Between the layouts: names, heads, classes, and what only one side has."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from . import branches, coco_classes
from .errors import CheckpointError
from .layouts import NATIVE, Layout, find_layout, get_target, masks
from .report import ConversionReport

CLASSES = ('auto', 'coco', 'keep')
DENOISING = 'dn_query_generator.'  # of a model that trains with denoising queries
COUNTER = 'num_batches_tracked'  # of batch norms; frozen ones, as most of these codes have, do without
WRAPPER = 'module.'  # of models saved inside DistributedDataParallel


def convert(
    state_dict: Mapping[str, Tensor],
    source: str | None = None,
    target: str = NATIVE,
    classes: str = 'auto',
    names: Sequence[str] | None = None,
    report: ConversionReport | None = None,
) -> dict[str, Tensor]:
    """Convert the weights of a detector of the family from one code base's layout to another's.

    Nothing is computed: a conversion and its inverse restore every bit. A tensor that stays as it is, is not copied.

    Args:
        state_dict: weights, or a checkpoint that holds them as ``state_dict`` or ``model``. Not changed.
        source: layout of ``state_dict``, one of ``layouts.NAMES``; None: found by the keys.
        target: layout to convert to, one of ``layouts.TARGETS``.
        classes: 'auto' maps COCO's 91 category ids to the 80 classes, or back, where source and target differ in that,
            the number of rows fits and ``names`` do not speak against it; 'coco' insists on it; 'keep' keeps all rows.
        names: of the classes, if known.
        report: gets what was dropped, added and resized.

    Returns:
        The converted state_dict.

    Raises:
        CheckpointError: unknown or incomplete weights, keys without place in the target, or other classes than COCO's.
    """
    if classes not in CLASSES:
        raise CheckpointError(f'classes: got {classes!r}, expected one of {", ".join(CLASSES)}')
    report = ConversionReport() if report is None else report
    state_dict = weights_of(state_dict)
    read = find_layout(state_dict, source)
    write = get_target(target, read.architecture)
    native = _to_native(state_dict, read, report)
    if target != NATIVE and not branches.has_indicator(native):
        for key in [key for key in native if key.startswith(DENOISING)]:
            del native[key]
            report.dropped[key] = 'serves training only'
    _convert_classes(native, read, write, classes, names, report)
    if target == NATIVE:
        return _complete(native, report)
    return _as_in_mmdet(native, write, report) if target == 'mmdet' else _from_native(native, write, report)


def weights_of(checkpoint: Mapping) -> dict[str, Tensor]:
    """The state_dict in a checkpoint of MMDetection, the official codes, detrex or the hub.

    Raises:
        CheckpointError: there is none.
    """
    for name in ('state_dict', 'model'):
        if isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
    others = [key for key, value in checkpoint.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others or not checkpoint:
        raise CheckpointError(f'expected named tensors, or these as "state_dict" or "model"; got {others[:5]}')
    is_wrapped = all(key.startswith(WRAPPER) for key in checkpoint)
    return {key.removeprefix(WRAPPER) if is_wrapped else key: value for key, value in checkpoint.items()}


def _to_native(state_dict: dict[str, Tensor], layout: Layout, report: ConversionReport) -> dict[str, Tensor]:
    native = layout.keys.to_ours({layout.spell(key): value for key, value in state_dict.items()}, report)
    for key in ('encoder.layers.0.norms.0.weight', 'decoder.layers.0.norms.0.weight'):
        if key not in native:
            raise CheckpointError(f'{layout.name} {layout.architecture} is incomplete: {key} is missing')
    if layout.unused_row:
        coco_classes.drop_last_row(native, report)
    branches.spread(native, report)
    return native


def _from_native(native: dict[str, Tensor], layout: Layout, report: ConversionReport) -> dict[str, Tensor]:
    for key in [key for key in native if key.endswith(COUNTER)]:
        del native[key]
        report.dropped[key] = 'frozen batch norms do not count batches'
    _add_neck_biases(native, report)
    return _rename(native, layout, report)


def _as_in_mmdet(native: dict[str, Tensor], layout: Layout, report: ConversionReport) -> dict[str, Tensor]:
    """Its norms count batches, and its neck has no biases before them: zeros are left out."""
    native = _complete(native, report)
    for key in [key for key in native if key.startswith('neck.') and key.endswith('.conv.bias')]:
        has_norm = key.replace('.conv.bias', '.gn.bias') in native
        if has_norm and not native[key].any():
            del native[key]
            report.dropped[key] = 'zeros, the same as none'
    return _rename(native, layout, report)


def _rename(native: dict[str, Tensor], layout: Layout, report: ConversionReport) -> dict[str, Tensor]:
    traits = {
        'two_stage': branches.is_two_stage(native),
        'box_refine': not branches.are_shared(native, 'reg'),
    }
    if layout.one_head:
        branches.gather(native, report)
    if layout.unused_row:
        coco_classes.add_last_row(native, report)
    theirs = layout.keys.to_theirs(native, {name for name, is_so in traits.items() if is_so}, report)
    return masks.wrap(theirs, layout.box_model)


def _complete(native: dict[str, Tensor], report: ConversionReport) -> dict[str, Tensor]:
    """Add what our models have and others do without: the state_dict loads strictly."""
    for key in [key for key in native if key.endswith('running_mean')]:
        name = key.replace('running_mean', COUNTER)
        if name not in native:
            native[name] = torch.tensor(0)
            report.added[name] = 'counts batches'
    _add_neck_biases(native, report)
    return native


def _add_neck_biases(native: dict[str, Tensor], report: ConversionReport) -> None:
    """MMDetection has no bias before the neck's norms, the official codes have: none and 0 are the same."""
    for key in [key for key in native if key.startswith('neck.') and key.endswith('.conv.weight')]:
        name = key.replace('.weight', '.bias')
        if name not in native:
            native[name] = native[key].new_zeros(len(native[key]))
            report.added[name] = 'zeros, the same as none'


def _convert_classes(
    native: dict[str, Tensor],
    read: Layout,
    write: Layout,
    classes: str,
    names: Sequence[str] | None,
    report: ConversionReport,
) -> None:
    """Map 91 to 80 or 80 to 91 classes where the layouts differ in that. Changes ``native``."""
    if classes == 'keep' or (read.coco91 == write.coco91):
        return
    rows = coco_classes.num_rows(native)
    number = coco_classes.NUM_IDS if read.coco91 else len(coco_classes.IDS)
    fits = rows in coco_classes.counts(number, read.architecture)
    is_coco = names is None or coco_classes.are_coco(names)
    if classes == 'coco' and not fits:
        raise CheckpointError(
            f"classes: 'coco' maps {number} classes, but the class branches have {rows} rows; use 'keep'"
        )
    if classes == 'coco' and not is_coco:
        raise CheckpointError(f"classes: 'coco', but the classes are {', '.join(names[:5])}, ...; use 'keep'")
    if fits and is_coco:
        coco_classes.to_80(native, report) if read.coco91 else coco_classes.to_91(native, report)
