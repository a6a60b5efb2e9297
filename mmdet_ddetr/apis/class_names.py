"""Names for what a model detects."""

from collections.abc import Mapping, Sequence

from torch import nn

from ..checkpoints import names_in


def names_of(model: nn.Module, checkpoint: Mapping | None, dataset: Mapping, default: Sequence[str]) -> Sequence[str]:
    """The names of a model's classes: the checkpoint's, else the config's, and never those of other classes.

    Args:
        checkpoint: that the model was loaded from.
        dataset: config of the data set, whose ``metainfo`` may name the classes.
        default: COCO's, where nobody names any and their number fits; else each class is called by its label.
    """
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    number = getattr(getattr(model, 'bbox_head', None), 'num_classes', None)
    written = (dataset.get('metainfo') or {}).get('classes')
    for names in (names_in(checkpoint or {}), written, default):
        if names and not isinstance(names, str) and number in (None, len(names)):
            return names
    return tuple(f'class {label}' for label in range(number))
