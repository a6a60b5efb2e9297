"""A copy of a detector that predicts faster, and does nothing else."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from functools import cache

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.structures import OptSampleList, SampleList
from mmdet.utils import InstanceList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ddetr.detectors.base import BaseDETR
from mmdet_ddetr.layers import ImageSizes

from .convolutions import fuse_convolutions
from .memory import keep_freed_memory
from .preprocessing import Preprocessor
from .recording import Programs
from .transformer import fuse_transformer

DTYPES = 'float32', 'bfloat16', 'float16'
FP32_PARTS = 'bbox_head', 'reference_points_fc'  # scores and coordinates
GEOMETRIES = 4  # sizes of batches whose masks and positions are kept


def optimize_for_inference(model: nn.Module, dtype: torch.dtype | str = torch.float32) -> nn.Module:
    """A copy of a detector that predicts faster, with the same detections.

    Batch norms are folded into convolutions, activations and residuals computed with them, weights packed for the
    processor, the encoder's cells taken as many at a time as its cache holds, masks and positions kept by the sizes of
    the images. On a CPU, the operators of ``predict`` are recorded for sizes that come a third time, and called without
    the modules from then on, unless these have forward hooks. What cannot be optimised stays as it is.

    The copy has ``predict``, ``test_step`` and ``forward(mode='predict' or 'tensor')`` of ``model``. It can be neither
    trained nor saved nor moved to another device. ``model`` itself is not changed; later changes to its weights and
    settings do not reach the copy, and the copy's own must not be changed. On a CPU, memory that this process frees is
    kept for its next use from then on, where the C library is glibc.

    Args:
        model: a detector of this package, on the device to predict on, in fp32. One that is optimised already is given
            back.
        dtype: to compute in, of torch or by name: float32, bfloat16 or float16. With the last two, coordinates,
            softmax, the branches of classes and boxes, and scores are still fp32; bfloat16 needs a processor that has
            it (AMX, AVX512_BF16) to be fast.

    Raises:
        TypeError: ``model`` is no detector of this package.
        ValueError: another dtype, or a model whose weights are not in fp32.
    """
    if not isinstance(model, BaseDETR):
        raise TypeError(f'model must be a detector of mmdet_ddetr, got {type(model).__name__}')
    by_name = {name: getattr(torch, name) for name in DTYPES}
    if dtype not in (*by_name, *by_name.values()):
        raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, of torch or by name, got {dtype!r}')
    dtype = by_name.get(dtype, dtype)
    if isinstance(model, Optimized):
        if model.dtype != dtype:
            raise ValueError(f'the model is optimised for {model.dtype}; for {dtype}, take the one it was made of')
        return model
    if given := other_dtypes(model):
        raise ValueError(
            f'model must have its weights in torch.float32, got {given}: take the model before .half() and the like, '
            'and give dtype=torch.float16 or torch.bfloat16 here'
        )
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for name, part in model.named_children():
        dtype_of_part = torch.float32 if name in FP32_PARTS else dtype
        part = replace(replace(part, fuse_convolutions, dtype_of_part), fuse_transformer, dtype_of_part)
        setattr(model, name, part.to(memory_format=torch.channels_last))
    model.dtype, model.geometries, model.gives_all_proposals = dtype, OrderedDict(), False
    model.programs = Programs(GEOMETRIES)
    parts = [part for name, part in model.named_children() if name != 'data_preprocessor']
    modules = [module for part in parts for module in part.modules()]
    model.hooks = [hooks for module in modules for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    if type(model.data_preprocessor) is DetDataPreprocessor:
        model.data_preprocessor.__class__ = Preprocessor
    model.__class__ = _optimized(type(model))
    if next(model.parameters()).is_cpu:
        keep_freed_memory()
    return model


def other_dtypes(model: nn.Module) -> str:
    """Of the weights that are not in fp32: what they lost on the way does not come back."""
    found = {str(p.dtype) for p in model.parameters() if p.is_floating_point()} - {'torch.float32'}
    return ', '.join(sorted(found))


Fuse = Callable[[nn.Module, torch.dtype], nn.Module | None]


def replace(
    module: nn.Module, fuse: Fuse, dtype: torch.dtype, done: dict[nn.Module, nn.Module] | None = None
) -> nn.Module:
    """``module``, or what ``fuse`` gives for it, and so for all its parts; one that stands in two places stays one."""
    done = {} if done is None else done
    if module not in done:
        done[module] = fused = fuse(module, dtype) or module
        for name, child in fused._modules.items():
            if child is not None:
                fused._modules[name] = replace(child, fuse, dtype, done)
    return done[module]


class Optimized:
    """What stands before the class of a detector that was optimised."""

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        with torch.no_grad(), self._autocast(batch_inputs):
            return super().predict(batch_inputs, batch_data_samples, rescale)

    def _detections(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool) -> InstanceList:
        """As of the detector. The operators follow from the sizes of the images, and are kept."""
        detections = super()._detections
        if not batch_inputs.is_cpu or torch.compiler.is_compiling() or any(self.hooks):  # which want modules
            return detections(batch_inputs, batch_data_samples, rescale)
        sizes = (
            (*sample.img_shape[:2], *sample.batch_input_shape, *sample.get('scale_factor', ()))
            for sample in batch_data_samples
        )
        key = batch_inputs.shape, batch_inputs.stride(), batch_inputs.dtype, rescale, *sizes
        fields = self.programs(
            key,
            lambda x: [dict(result.items()) for result in detections(x, batch_data_samples, rescale)],
            batch_inputs,
        )
        return [InstanceData(**tensors) for tensors in fields]

    def _forward(self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None) -> tuple[Tensor, ...]:
        with torch.no_grad(), self._autocast(batch_inputs):
            return super()._forward(batch_inputs, batch_data_samples)

    def detect(self, batch_inputs: Tensor, sizes: ImageSizes) -> tuple[Tensor, ...]:
        if torch.compiler.is_exporting():
            self._refuse('be exported: export')
        with torch.no_grad(), self._autocast(batch_inputs):
            return super().detect(batch_inputs, sizes)

    def _autocast(self, like: Tensor) -> torch.autocast:
        """For what was not replaced; the rest has its dtype."""
        return torch.autocast(like.device.type, self.dtype, self.dtype is not torch.float32)

    def pre_transformer(
        self, mlvl_feats: tuple[Tensor, ...], batch_data_samples: OptSampleList | ImageSizes = None
    ) -> tuple[dict, dict]:
        """As of the detector. All but the features follows from the sizes of the images, and is kept."""
        if isinstance(batch_data_samples, ImageSizes):
            return super().pre_transformer(mlvl_feats, batch_data_samples)
        sizes = [tuple(feat.shape) for feat in mlvl_feats]
        for sample in batch_data_samples or ():
            sizes += tuple(sample.img_shape[:2]), tuple(sample.batch_input_shape)
        key = tuple(sizes)
        geometry = self.geometries.pop(key, None)
        if geometry is None:
            geometry = super().pre_transformer(mlvl_feats, batch_data_samples)
            geometry[0].pop('feat')
        self.geometries[key] = geometry
        if len(self.geometries) > GEOMETRIES:
            self.geometries.popitem(last=False)
        encoder_inputs, decoder_inputs = geometry
        feat = torch.cat([feat.flatten(2).transpose(1, 2) for feat in mlvl_feats], 1)  # [B, S, C]
        return dict(encoder_inputs, feat=feat), dict(decoder_inputs)

    # ------------------------------------------------------------- what it cannot do

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            self._refuse('be trained: train')
        return super().train(False)

    def loss(self, *args, **kwargs):
        self._refuse('compute losses: take')

    def _save_to_state_dict(self, *args, **kwargs):
        self._refuse('be saved: save')

    def _load_from_state_dict(self, *args, **kwargs):
        self._refuse('load weights: load them into')

    def __reduce_ex__(self, protocol):
        self._refuse('be copied: copy')

    def _set_device(self, device: torch.device) -> None:
        """mmengine calls it before ``_apply``: where the latter would refuse, images must not go there either."""
        if torch.device(device).type != next(self.parameters()).device.type:
            self._refuse('be moved or cast: move')
        super()._set_device(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], *args, **kwargs) -> nn.Module:
        weight = next(self.parameters())
        changed = fn(weight)
        if (changed.device.type, changed.dtype) != (weight.device.type, weight.dtype):
            self._refuse('be moved or cast: move')
        return super()._apply(fn, *args, **kwargs)

    @staticmethod
    def _refuse(what: str):
        raise RuntimeError(f'a model from optimize_for_inference cannot {what} the model that it was made of')


@cache
def _optimized(cls: type) -> type:
    return type(f'Optimized{cls.__name__}', (Optimized, cls), {'__module__': __name__})
