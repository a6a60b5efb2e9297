"""Keep what a training on drawings has learnt, as a file for the scheme ``drawings://``.

    python -m mmdet_ddetr.checkpoints.keep_drawings work_dirs/pretrain/epoch_6.pth lite0
"""

import sys
from pathlib import Path

import torch

from .class_rows import names_in
from .conversion import weights_of
from .drawings import FOLDER
from .read import read

CONFIG = 'deformable-detr-refine-twostage-dn_lite0_pretrain'


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


if __name__ == '__main__':
    keep(Path(sys.argv[1]), FOLDER / f'{sys.argv[2]}.pth')
