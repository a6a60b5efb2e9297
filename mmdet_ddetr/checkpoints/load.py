"""Checkpoints of any known layout, as files, folders, addresses of the hub, or already in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader

from . import coco_classes, files, hub
from .branches import class_branches
from .conversion import convert, weights_of
from .errors import CheckpointError
from .layouts import NATIVE, find_layout
from .report import Report


def load_checkpoint(
    source: str | Path,
    map_location='cpu',
    layout: str | None = None,
    target: str = NATIVE,
    classes: str = 'auto',
    report: Report | None = None,
) -> dict:
    """Read a checkpoint and convert it.

    Args:
        source: file; folder with the files of the Hugging Face hub; or ``hf://owner/name[@revision]``.
        map_location: where the tensors go.
        layout: of the file; None: found by its keys.
        target, classes, report: see :func:`convert`.

    Returns:
        ``state_dict`` and ``meta``, the latter with ``dataset_meta`` as far as the classes are known.

    Raises:
        CheckpointError: it cannot be read, or is not what was expected.
    """
    config = None
    if str(source).startswith(hub.SCHEME):
        weights, config = hub.download(str(source))
    else:
        weights = Path(source).expanduser()
        if weights.is_dir():
            weights = files.find_weights(weights)
        if weights.name in files.HUB_FILES and (weights.parent / files.CONFIG).is_file():
            config = weights.parent / files.CONFIG
    names = files.read_class_names(config) if config else None
    return convert_checkpoint(files.read(weights, map_location), layout, target, classes, names, report)


def convert_checkpoint(
    checkpoint: Mapping,
    layout: str | None = None,
    target: str = NATIVE,
    classes: str = 'auto',
    names: Sequence[str] | None = None,
    report: Report | None = None,
) -> dict:
    """Convert what was read from a file; arguments and result as for :func:`load_checkpoint`."""
    state_dict = weights_of(checkpoint)
    found = find_layout(state_dict, layout)
    meta = _meta(checkpoint, found.name)
    names = names or meta.get('dataset_meta', {}).get('classes')
    state_dict = convert(state_dict, found.name, target, classes, names, report)
    if 'dataset_meta' not in meta:
        meta.update(_dataset_meta(state_dict, found.coco91 and classes != 'keep', found.architecture, names))
    return dict(state_dict=state_dict, meta=meta)


def adopt(checkpoint: dict) -> dict:
    """A checkpoint in our layout if it is of another known one; else, also if its layout is not known, itself."""
    try:
        layout = find_layout(weights_of(checkpoint))
    except CheckpointError:
        return checkpoint
    if layout.name == NATIVE:
        return checkpoint
    report = Report()
    converted = convert_checkpoint(checkpoint, report=report)
    print_log(f'Converted from the layout of {layout.name}:\n{report}', logger='current')
    return converted


def _meta(checkpoint: Mapping, layout: str) -> dict:
    """What is worth keeping of a checkpoint's ``meta``: data, and the config if it is one for our models."""
    old = checkpoint.get('meta') or {}
    meta = {key: old[key] for key in ('dataset_meta', 'cfg') if key in old and layout in (NATIVE, 'mmdet')}
    if 'CLASSES' in old:  # MMDetection 2.x
        meta['dataset_meta'] = {key.lower(): old[key] for key in ('CLASSES', 'PALETTE') if key in old}
    return meta


def _dataset_meta(state_dict: dict, from_coco91: bool, architecture: str, names: Sequence[str] | None) -> dict:
    rows = {len(state_dict[key]) for key in class_branches(state_dict)}
    if from_coco91 and rows & set(coco_classes.counts(len(coco_classes.IDS), architecture)):
        return dict(dataset_meta=coco_classes.dataset_meta())
    return dict(dataset_meta=dict(classes=tuple(names))) if names else {}


# A `.safetensors` file would otherwise go to torch.load, which cannot read it.
@CheckpointLoader.register_scheme(prefixes=[hub.SCHEME, r'(?!\w+://).*\.safetensors$'])
def load_from_huggingface(filename, map_location=None):
    """mmengine's loader for ``load_from='hf://owner/name'`` and for ``.safetensors`` files: converts on the fly."""
    report = Report()
    checkpoint = load_checkpoint(filename, map_location or 'cpu', report=report)
    print_log(f'Converted {filename}:\n{report}', logger='current')
    return checkpoint
