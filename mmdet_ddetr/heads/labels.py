"""Labels that the model has no class for, found while they are on the host: an accelerator would have to answer."""

import torch
from mmdet.utils import InstanceList
from torch import nn


def check_labels(batch_gt_instances: InstanceList, batch_img_metas: list[dict], num_classes: int) -> None:
    """Check the labels of a batch's ground truth, those on the host; the others have been there before.

    Raises:
        ValueError: a label is not in 0..num_classes - 1; with the image.
    """
    if torch.compiler.is_compiling():
        return
    for instances, meta in zip(batch_gt_instances, batch_img_metas):
        labels = instances.labels
        if labels.is_cpu and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            wrong = labels.max() if labels.max() >= num_classes else labels.min()
            raise ValueError(
                f'label {int(wrong)} of {meta.get("img_path", "an image")} has no class in the model, whose '
                f'bbox_head.num_classes is {num_classes}: set it to the number of classes of the data, the length of '
                "metainfo['classes'] (docs/classes.md)"
            )


class LabelGuard:
    """Checks the ground truth before the data preprocessor moves it to the accelerator.

    >>> model.data_preprocessor.register_forward_pre_hook(LabelGuard(num_classes), with_kwargs=True)
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def __call__(self, preprocessor: nn.Module, args: tuple, kwargs: dict) -> None:
        data, training = _arguments(*args, **kwargs)
        samples = data.get('data_samples') if training and isinstance(data, dict) else None
        labelled = [sample for sample in samples or [] if 'gt_instances' in sample]
        check_labels(
            [sample.gt_instances for sample in labelled], [sample.metainfo for sample in labelled], self.num_classes
        )


def _arguments(data=None, training: bool = False, **others) -> tuple:
    """Those of ``BaseDataPreprocessor.forward`` that matter here."""
    return data, training
