"""Checkpoints of any known layout, as files, folders, addresses of the hub, or already in memory."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import nn

from mmdet_ddetr.unwrap import unwrap

from . import coco_classes, files, hub, stored_config
from .conversion import convert, weights_of
from .errors import CheckpointError
from .layouts import NATIVE, Layout, find_layout
from .read import read
from .report import ConversionReport


def load(source: str | Path, map_location='cpu') -> Mapping:
    """Read a checkpoint from a file or any address that ``load_from`` takes, and convert nothing.

    Raises:
        CheckpointError: it cannot be had or read; the message says which and why.
    """
    return CheckpointLoader._get_checkpoint_loader(str(source))(str(source), map_location)


def load_checkpoint(
    source: str | Path,
    map_location='cpu',
    layout: str | None = None,
    target: str = NATIVE,
    classes: str = 'auto',
    report: ConversionReport | None = None,
) -> dict:
    """Read a checkpoint and convert it.

    Args:
        source: file; folder with the files of the Hugging Face hub; ``hf://owner/name[@revision]``; or another address.
        map_location: where the tensors go.
        layout: of the file; None: found by its keys.
        target, classes, report: see :func:`convert`.

    Returns:
        ``state_dict`` and ``meta``, the latter with ``dataset_meta`` as far as the classes are known.

    Raises:
        CheckpointError: it cannot be read, or is not what was expected.
    """
    weights, config = None, None
    if str(source).startswith(hub.SCHEME):
        weights, config = hub.download(str(source))
    elif '://' not in str(source):
        weights = Path(source).expanduser()
        if weights.is_dir():
            weights = files.find_weights(weights)
        if weights.name in files.HUB_FILES and (weights.parent / files.CONFIG).is_file():
            config = weights.parent / files.CONFIG
    names = files.read_class_names(config) if config else None
    content = read(weights, map_location) if weights else load(source, map_location)
    try:
        return convert_checkpoint(content, layout, target, classes, names, report)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None


def convert_checkpoint(
    checkpoint: Mapping,
    layout: str | None = None,
    target: str = NATIVE,
    classes: str = 'auto',
    names: Sequence[str] | None = None,
    report: ConversionReport | None = None,
) -> dict:
    """Convert what was read from a file; arguments and result as for :func:`load_checkpoint`."""
    state_dict = weights_of(checkpoint)
    found = find_layout(state_dict, layout)
    meta = _meta(checkpoint, found.name)
    names = names or meta.get('dataset_meta', {}).get('classes')
    try:
        converted = convert(state_dict, found.name, target, classes, names, report)
    except (IndexError, KeyError, RuntimeError, TypeError) as error:  # the names fit, and the shapes do not
        raise CheckpointError(f'its tensors are not those of a {found.name} {found.architecture}: {error}') from error
    if 'dataset_meta' not in meta:
        meta.update(_dataset_meta(state_dict, found, classes, names))
    return dict(state_dict=converted, meta=meta)


def adopt(checkpoint: dict, model: nn.Module) -> dict:
    """A checkpoint for ``model`` in our layout, if it is of another known one; else itself.

    Raises:
        CheckpointError: its layout is not known, and it has none of the model's tensors.
    """
    own = unwrap(model).state_dict()
    state_dict = weights_of(checkpoint)
    if all(key in own for key in state_dict):  # also where ``model`` is one of MMDetection's own
        return checkpoint
    try:
        layout = find_layout(state_dict)
    except CheckpointError:
        if any(key in own for key in state_dict):
            return checkpoint
        raise
    if layout.name == NATIVE:
        return checkpoint
    report = ConversionReport()
    converted = convert_checkpoint(checkpoint, layout.name, report=report)
    print_log(f'Converted from the layout of {layout.name}:\n{report}', logger='current')
    return converted


def _meta(checkpoint: Mapping, layout: str) -> dict:
    """What is worth keeping of a checkpoint's ``meta``: data, and the config if it is one for our models."""
    old = checkpoint.get('meta') or {}
    meta = {'dataset_meta': old['dataset_meta']} if 'dataset_meta' in old else {}
    if 'CLASSES' in old:  # MMDetection 2.x
        meta['dataset_meta'] = {key.lower(): old[key] for key in ('CLASSES', 'PALETTE') if key in old}
    if layout == NATIVE and (config := stored_config.find(checkpoint)):
        try:
            stored_config.parse(config)
        except CheckpointError as error:
            print_log(f'{error}. It is left out', logger='current', level=logging.WARNING)
        else:
            meta['cfg'] = config
    return meta


def _dataset_meta(state_dict: dict, layout: Layout, classes: str, names: Sequence[str] | None) -> dict:
    """The classes of weights in a foreign layout: by their names, or COCO's by their number."""
    if layout.coco91 and (names is None or coco_classes.are_coco(names)):
        rows = coco_classes.num_rows(convert(state_dict, layout.name, classes='keep'))
        if rows in coco_classes.counts(coco_classes.NUM_IDS, layout.architecture):
            if classes != 'keep':
                return dict(dataset_meta=coco_classes.dataset_meta())
            names = coco_classes.names_of_ids()
    return dict(dataset_meta=dict(classes=tuple(names))) if names else {}
