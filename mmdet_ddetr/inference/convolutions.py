"""Batch norms folded into convolutions, activations and residuals computed with them, for backbones and necks."""

from collections import OrderedDict

import torch
from mmcv.cnn import ConvModule
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from mmdet.models.backbones.resnext import Bottleneck as ResNeXtBottleneck
from mmdet.models.layers import InvertedResidual
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdet_ddetr.backbones.efficientnet_lite import Conv2dSame
from mmdet_ddetr.layers import DCN, DCNv2
from mmdet_ddetr.layers.deform_conv import OffsetConv

from .products import Conv2d, Linear, activation_of

PLAIN = nn.Conv2d, Conv2dSame, OffsetConv


def fuse_convolutions(module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
    """What computes the same as ``module`` faster; None: nothing, or its parts, which were exchanged in it."""
    if type(module) in PLAIN:
        return _conv(module, None, None, dtype)
    if isinstance(module, nn.Sequential):
        _fuse_sequence(module, dtype)
        return _residual_blocks(module, dtype)
    if isinstance(module, ConvModule):
        _fuse_conv_module(module, dtype)
    elif isinstance(module, ResNet) and not module.deep_stem:
        stem = _conv(module.conv1, module.norm1, module.relu, dtype)
        if stem is not None:
            module.conv1, module.relu = stem, nn.Identity()
            setattr(module, module.norm1_name, nn.Identity())
    return None


def folded(conv: nn.Module, norm: _BatchNorm | None) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the convolution that gives what ``norm`` gives of ``conv``."""
    weight, bias = (x if x is None else x.detach() for x in (conv.weight, conv.bias))
    if norm is None:
        return weight, bias
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    return (weight * scale[:, None, None, None]).to(weight), shift.to(weight)


def _is_foldable(norm: nn.Module | None) -> bool:
    return norm is None or (isinstance(norm, _BatchNorm) and norm.running_var is not None)


def _conv(conv: nn.Module, norm: nn.Module | None, activation: nn.Module | None, dtype: torch.dtype) -> Conv2d | None:
    """The three as one; None where they are nothing that can be one."""
    function = activation_of(activation)
    if function is None or not _is_foldable(norm) or type(conv) not in PLAIN:
        return None
    if conv.padding_mode != 'zeros' or isinstance(conv.padding, str):
        return None
    if isinstance(conv, Conv2dSame) and conv.dilation != (1, 1):
        return None
    weight, bias = (x if x is None else x.to(dtype) for x in folded(conv, norm))
    return Conv2d(conv, weight, bias, function)


def _conv_or_parts(conv: nn.Module, norm: nn.Module, activation: nn.Module, dtype: torch.dtype) -> nn.Module:
    fused = _conv(conv, norm, activation, dtype)
    if fused is not None:
        return fused
    if isinstance(conv, (DCN, DCNv2)) and _is_foldable(norm):
        conv.weight.data, bias = folded(conv, norm)
        conv.bias = nn.Parameter(bias, False)
        norm = nn.Identity()
    return nn.Sequential(conv, norm, activation)


def _fuse_conv_module(module: ConvModule, dtype: torch.dtype) -> None:
    """In place: others read its parts, too."""
    if module.order != ('conv', 'norm', 'act') or module.with_spectral_norm:
        return
    folds = isinstance(module.norm, _BatchNorm)
    activates = module.with_activation and (folds or not module.with_norm)
    parts = module.norm if folds else None, module.activate if activates else None
    conv = _conv(module.conv, *parts, dtype)
    if conv is None:
        return
    module.conv = conv
    module.turn_on_efficient_conv_bn_eval(False)
    if folds:
        setattr(module, module.norm_name, nn.Identity())
    if activates:
        module.activate = nn.Identity()


def _fuse_sequence(sequence: nn.Sequential, dtype: torch.dtype) -> None:
    """In place, identities in place of norms and activations: indices stay what they are."""
    layers = [*sequence, None, None]
    for index, (layer, *after) in enumerate(zip(layers, layers[1:], layers[2:])):
        norm, activation = after if isinstance(after[0], _BatchNorm) else (None, after[0])
        if activation_of(activation) is None:
            activation = None
        if type(layer) in PLAIN:
            fused = _conv(layer, norm, activation, dtype)
        elif type(layer) is nn.Linear and norm is None:
            fused = Linear(layer.weight, layer.bias, dtype, activation_of(activation))
        else:
            fused = None
        if fused is not None:
            sequence[index] = fused
            for further in range(index + 1, index + 1 + sum(part is not None for part in (norm, activation))):
                sequence[further] = nn.Identity()


class ResidualBlock(nn.Module):
    """A block of ResNet or MobileNet, whose sum takes the memory of what it adds, where nobody else reads that."""

    def __init__(self, first: list[nn.Module], last: Conv2d, downsample: nn.Module | None):
        super().__init__()
        self.first = nn.Sequential(*first)
        self.last = last
        self.downsample = downsample

    def forward(self, x: Tensor, owns_input: bool = False) -> Tensor:  # [B, C, H, W]
        y = self.first(x)
        if self.downsample is not None:
            return self.last(y, add=self.downsample(x))
        return self.last(y, add=x if owns_input else x.clone())


class ResidualBlocks(nn.Sequential):
    """Blocks one after the other: what one has computed is the next one's alone."""

    def forward(self, x: Tensor) -> Tensor:
        before = None
        for block in self:
            if isinstance(block, ResidualBlock):
                x = block(x, owns_input=isinstance(before, (ResidualBlock, InvertedResidual)))
            else:
                x = block(x)
            before = block
        return x


def _residual_blocks(sequence: nn.Sequential, dtype: torch.dtype) -> ResidualBlocks | None:
    """The sequence with its blocks exchanged; None where it has none, or does something of its own with its parts."""
    if type(sequence).forward is not nn.Sequential.forward:
        return None
    blocks = {name: _residual_block(block, dtype) or block for name, block in sequence.named_children()}
    if not any(isinstance(block, ResidualBlock) for block in blocks.values()):
        return None
    return ResidualBlocks(OrderedDict(blocks))


def _residual_block(block: nn.Module, dtype: torch.dtype) -> ResidualBlock | None:
    if type(block) in (BasicBlock, Bottleneck, ResNeXtBottleneck) and not getattr(block, 'with_plugins', False):
        names = '12' if isinstance(block, BasicBlock) else '123'
        parts = [(getattr(block, f'conv{i}'), getattr(block, f'norm{i}'), block.relu) for i in names]
        downsample = block.downsample
    elif isinstance(block, InvertedResidual) and block.with_res_shortcut and not block.with_se:
        modules = [block.expand_conv] if block.with_expand_conv else []
        modules += block.depthwise_conv, block.linear_conv
        parts = [(module.conv, module.norm, getattr(module, 'activate', None)) for module in modules]
        downsample = None
    else:
        return None
    last = _conv(*parts.pop(), dtype)
    if last is None:
        return None
    return ResidualBlock([_conv_or_parts(*part, dtype) for part in parts], last, downsample)
