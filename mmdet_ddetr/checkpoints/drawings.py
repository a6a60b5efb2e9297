"""The checkpoint scheme ``drawings://lite0``: a detector's start from drawings, all but its backbone.

The file is what the config CONFIG has learnt, written by :func:`keep` (docs/beyond_the_paper.md).
"""

from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader

from .class_rows import names_in
from .conversion import weights_of
from .errors import CheckpointError
from .read import read

CONFIG = 'deformable-detr-refine-twostage-dn_lite0_pretrain'
SCHEME = 'drawings://'
FOLDER = Path(__file__).parent / 'drawings'


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_drawings(filename: str, map_location=None) -> dict:
    """The checkpoint of that name.

    Raises:
        CheckpointError: there is none.
    """
    path = FOLDER / f'{filename.removeprefix(SCHEME)}.pth'
    if path.parent != FOLDER or not path.is_file():
        names = ', '.join(sorted(path.stem for path in FOLDER.glob('*.pth')))
        raise CheckpointError(f'no checkpoint {filename!r}; after {SCHEME} there is {names}')
    return read(path, map_location)


def keep(checkpoint: Path, path: Path) -> None:
    """Write what a training has learnt, without backbone, optimizer and history, in fp16."""
    trained = read(checkpoint, 'cpu')
    weights = {
        name: value.half() if value.is_floating_point() else value
        for name, value in weights_of(trained).items()
        if not name.startswith('backbone.')
    }
    meta = dict(config=CONFIG, dataset_meta=dict(classes=names_in(trained)))
    torch.save(dict(state_dict=weights, meta=meta), path)
