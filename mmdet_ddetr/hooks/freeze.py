"""Train only what comes behind a part of a detector."""

import torch
from mmengine.dist import is_distributed
from mmengine.hooks import Hook
from torch import nn

from ..registry import HOOKS
from ..unwrap import unwrap
from .errors import StartError

PARTS = {'backbone': ('backbone',), 'encoder': ('backbone', 'neck', 'encoder', 'level_embed')}  # and all before it


@HOOKS.register_module()
class FreezeHook(Hook):
    """Keeps a part of a detector, and all before it, as it was loaded.

    Nothing is computed backwards there, which makes a step faster. Dropout is off and batch norms keep their
    statistics.

    Args:
        part: 'backbone', or 'encoder', which freezes backbone, neck and encoder.

    Raises:
        StartError: in ``before_run``; several processes train, or the detector has no such part.
    """

    priority = 'VERY_HIGH'  # before hooks that copy the model

    def __init__(self, part: str):
        if part not in PARTS:
            raise ValueError(f'part must be one of {", ".join(PARTS)}, got {part!r}')
        self.part = part
        self._modules = []

    def before_run(self, runner) -> None:
        if is_distributed():
            raise StartError(
                'FreezeHook: several processes train, whose model was wrapped with all its gradients; set '
                'model.backbone.frozen_stages instead'
            )
        model = unwrap(runner.model)
        if not isinstance(getattr(model, self.part, None), nn.Module):
            raise StartError(f'FreezeHook: {type(model).__name__} has no {self.part} to freeze')
        self._modules = []
        for name in PARTS[self.part]:
            found = getattr(model, name, None)
            if isinstance(found, nn.Module):
                self._modules.append(found.requires_grad_(False))
            elif isinstance(found, torch.Tensor):
                found.requires_grad_(False)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        for module in self._modules:  # the loop has called train()
            module.eval()
