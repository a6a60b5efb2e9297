"""The block of MobileNetV2 and EfficientNet-Lite, and its training on a CPU."""

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.layers import InvertedResidual as _InvertedResidual
from torch import Tensor, nn

from mmdet_ddetr.ops import has_compiled_kernel
from mmdet_ddetr.ops._private import beyond_first_order

_DEPTHWISE = torch.ops.mmdet_ddetr.depthwise_conv2d_clamped.default
_DEPTHWISE_BACKWARD = torch.ops.mmdet_ddetr.depthwise_conv2d_backward.default
_hardtanh_backward = torch.ops.aten.hardtanh_backward.default


class InvertedResidual(_InvertedResidual):
    """mmdet's, which trains faster on a CPU where its batch norms are in eval mode and its activations ReLU6.

    It then multiplies matrices [cells, channels] instead of convolving 1 x 1, in the dtype of autocast where that is
    enabled, and keeps nothing for the backward pass but its input and two activations. It can be differentiated once;
    with ``with_cp=True``, which computes as mmdet does, twice.
    """

    def forward(self, x: Tensor) -> Tensor:  # [B, C_in, H, W] -> [B, C_out, Ho, Wo]
        return _train_on_cpu(self, x) if self._is_simple(x) else super().forward(x)

    def _is_simple(self, x: Tensor) -> bool:
        if not torch.is_grad_enabled() or self.with_cp or x.device.type != 'cpu' or torch.compiler.is_compiling():
            return False
        if not has_compiled_kernel('depthwise_conv2d_clamped', 'cpu') or beyond_first_order():
            return False
        layers = self._layers()
        return (
            not self.with_se
            and all(_is_fixed(layer.norm) for layer in layers)
            and all(isinstance(layer.activate, nn.ReLU6) for layer in layers[:-1])
        )

    def _layers(self) -> list[ConvModule]:
        expand = [self.expand_conv] if self.with_expand_conv else []
        return [*expand, self.depthwise_conv, self.linear_conv]


def _is_fixed(norm: nn.Module) -> bool:
    """Whether it is a batch norm in eval mode, with all of its numbers."""
    is_norm = isinstance(norm, nn.BatchNorm2d) and not norm.training
    return is_norm and norm.weight is not None and norm.running_var is not None


def _train_on_cpu(block: InvertedResidual, x: Tensor) -> Tensor:
    conv = block.depthwise_conv.conv
    tensors = [tensor for layer in block._layers() for tensor in _folded(layer)]
    if not block.with_expand_conv:
        tensors = [None, None, *tensors]
    if torch.is_autocast_enabled('cpu'):
        dtype = torch.get_autocast_dtype('cpu')
        x, *tensors = (tensor if tensor is None else tensor.to(dtype) for tensor in (x, *tensors))
    cells = x.permute(0, 2, 3, 1)  # [B, H, W, C_in]
    (top, bottom), (left, right) = conv.same_padding(x.shape[-2:])
    geometry = list(conv.stride), [top, left, bottom, right]
    return _Block.apply(cells, *tensors, *geometry, block.with_res_shortcut).permute(0, 3, 1, 2)


def _folded(layer: ConvModule) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with its batch norm: [C_out, C_in], or [kh, kw, C] of a depthwise one."""
    weight, norm = layer.conv.weight, layer.norm
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = weight.flatten(1) * scale[:, None]
    if layer.conv.groups > 1:
        weight = weight.t().contiguous().unflatten(0, layer.conv.kernel_size)
    return weight, norm.bias - norm.running_mean * scale


class _Block(torch.autograd.Function):
    """linear, ReLU6, depthwise convolution, ReLU6, linear, sum. Maps are [B, H, W, C]."""

    @staticmethod
    def forward(ctx, x, expand, expand_bias, taps, bias, project, project_bias, stride, padding, shortcut):
        with torch.autocast('cpu', enabled=False):
            wide = x if expand is None else F.linear(x, expand, expand_bias).clamp_(0, 6)
            deep = _DEPTHWISE(wide, taps, bias, stride, padding, 0.0, 6.0)
            output = F.linear(deep, project, project_bias)
        ctx.save_for_backward(x, wide, deep, expand, taps, bias, project)
        ctx.geometry, ctx.shortcut = (stride, padding), shortcut
        return output.add_(x) if shortcut else output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, wide, deep, expand, taps, bias, project = ctx.saved_tensors
        grad = grad.contiguous()
        grad_project, grad_project_bias = _rows(grad).t() @ _rows(deep), _rows(grad).sum(0)
        grad_deep = _hardtanh_backward(grad @ project, deep, 0, 6)
        wants_x = ctx.needs_input_grad[0]
        grad_wide, grad_taps, grad_bias = _DEPTHWISE_BACKWARD(
            grad_deep, wide, taps, bias, *ctx.geometry, wants_x or expand is not None, True, False
        )
        grads = grad_taps, grad_bias, grad_project, grad_project_bias, None, None, None
        if expand is None:
            return grad_wide if wants_x else None, None, None, *grads
        grad_wide = _hardtanh_backward(grad_wide, wide, 0, 6)
        grad_expand, grad_expand_bias = _rows(grad_wide).t() @ _rows(x), _rows(grad_wide).sum(0)
        grad_x = grad_wide @ expand if wants_x else None
        if wants_x and ctx.shortcut:
            grad_x += grad
        return grad_x, grad_expand, grad_expand_bias, *grads


def _rows(cells: Tensor) -> Tensor:
    return cells.flatten(0, -2)
