from contextlib import nullcontext
from functools import partial

import torch
from mmengine._strategy import FSDPStrategy as _FSDPStrategy
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.optim import BaseOptimWrapper
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from ..files import atomically
from ..layers.transformer import TransformerStack
from ..registry import STRATEGIES


@STRATEGIES.register_module()
class FSDPStrategy(_FSDPStrategy):
    """Weights, gradients and optimizer state divided among the processes (FullyShardedDataParallel).

    For ``runner_type='FlexibleRunner'``. mmengine's strategy, with what it needs to train as DistributedDataParallel
    does: gradients are clipped by the norm of all of them instead of each process's share; checkpoints are those of any
    other training, whole and written atomically; optimizers load with PyTorch >= 2.1; and it runs on CPUs, too.

    Each layer of encoder and decoder is a unit, gathered while it computes; all the rest is another one.

    Args:
        **kwargs: as in ``mmengine._strategy.FSDPStrategy``, but for ``state_dict_cfg``; other units by
            ``model_wrapper.auto_wrap_policy``.
    """

    def __init__(self, **kwargs):
        super().__init__(state_dict_cfg='full', **kwargs)
        if not torch.cuda.is_available():  # mmengine takes the local rank for a GPU's number
            self.model_wrapper = dict(self.model_wrapper or {}, device_id=torch.device('cpu'))
            # PyTorch frees what it has "moved" to the CPU, which here is the original
            self.state_dict_config.offload_to_cpu = self.optim_state_dict_config.offload_to_cpu = False

    def _wrap_model(self, model: nn.Module) -> FullyShardedDataParallel:
        stacks = [module for module in model.modules() if isinstance(module, TransformerStack)]
        layers = {type(layer) for stack in stacks for layer in stack.layers}
        policy = partial(transformer_auto_wrap_policy, transformer_layer_cls=layers)
        self.model_wrapper = {'auto_wrap_policy': policy, **(self.model_wrapper or {})}
        return super()._wrap_model(model)

    def build_optim_wrapper(self, optim_wrapper, model=None) -> BaseOptimWrapper:
        # not of the parent, which rebuilds the optimizer by names; the wrapped model has the original parameters
        wrapper = super(_FSDPStrategy, self).build_optim_wrapper(optim_wrapper, model)
        if wrapper.clip_grad_kwargs:
            wrapper.clip_func = lambda parameters, max_norm, norm_type=2.0: model.clip_grad_norm_(max_norm, norm_type)
        return wrapper

    def save_checkpoint(self, filename: str, **kwargs) -> None:
        """As in mmengine; an OSError is raised in all processes."""
        failure = [None]
        try:
            with atomically(filename) if is_main_process() else nullcontext(filename) as part:
                super().save_checkpoint(str(part), **kwargs)  # all take part in gathering, the main process writes
        except OSError as error:
            failure = [error]
        broadcast_object_list(failure)
        if failure[0] is not None:
            raise failure[0]

    def optim_state_dict(self) -> dict:
        return FullyShardedDataParallel.optim_state_dict(self.model, self.optim_wrapper.optimizer)

    def load_optim_state_dict(self, state_dict: dict) -> None:
        optimizer = self.optim_wrapper.optimizer
        optimizer.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict))
