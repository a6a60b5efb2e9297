"""Inputs and models for tests and benchmarks."""

import torch
from mmdet.models.backbones import ResNet, ResNeXt
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.model import PretrainedInit
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ddetr.backbones import DAT, ResNetDC5
from mmdet_ddetr.registry import MODELS, class_of


def make_batch(
    shapes: list[tuple[int, int]],
    counts: list[int],
    num_classes: int,
    seed: int = 0,
) -> tuple[Tensor, list[DetDataSample]]:
    """A padded batch of random images with random boxes.

    Args:
        shapes: (h, w) of each image before padding to the largest.
        counts: boxes of each image.
        num_classes: labels are drawn from [0, num_classes).

    Returns:
        inputs [B, 3, H, W], zero in the padding, and the data samples as the data preprocessor leaves them; each box is
        its own mask.
    """
    rng = torch.Generator().manual_seed(seed)
    H, W = max(h for h, _ in shapes), max(w for _, w in shapes)
    inputs = torch.zeros(len(shapes), 3, H, W)
    samples = []
    for i, ((h, w), count) in enumerate(zip(shapes, counts)):
        inputs[i, :, :h, :w] = torch.randn(3, h, w, generator=rng)
        corner = torch.rand(count, 2, generator=rng) * 0.6
        size = torch.rand(count, 2, generator=rng) * 0.35 + 0.04
        boxes = torch.cat([corner, corner + size], 1) * torch.tensor([w, h, w, h])
        metainfo = dict(
            img_id=i,
            img_shape=(h, w),
            pad_shape=(h, w),
            batch_input_shape=(H, W),
            ori_shape=(2 * h, 2 * w),
            scale_factor=(0.5, 0.5),
        )
        sample = DetDataSample(metainfo=metainfo)
        labels = torch.randint(0, num_classes, (count,), generator=rng)
        pixels = torch.stack(torch.meshgrid(torch.arange(W), torch.arange(H), indexing='xy'), -1) + 0.5  # [H, W, 2]
        corners = boxes[:, None, None]
        masks = ((pixels >= corners[..., :2]) & (pixels <= corners[..., 2:])).all(-1)
        masks = BitmapMasks(masks.numpy().astype('uint8'), H, W)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=masks)
        samples.append(sample)
    return inputs, samples


def randomise(model: nn.Module, std: float = 0.02, seed: int = 0) -> nn.Module:
    """Add noise to every parameter: at their initial values, zero weights hide half of a model from a comparison."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += std * torch.randn(parameter.shape, generator=rng)
    return model


def without_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout probability to zero, so that two models in train mode can be compared."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def without_download(model_cfg: dict) -> dict:
    """Drop every pretrained weight from a model config, in place, so that it builds without network."""
    for value in list(model_cfg.values()):
        if isinstance(value, dict):
            if (value.get('init_cfg') or {}).get('type') in ('Pretrained', PretrainedInit):
                value.pop('init_cfg')
            without_download(value)
    return model_cfg


def shrink(model_cfg: dict) -> dict:
    """Make a model small enough for a unit test, in place: R18, X50, narrow R50-DCN and DAT, few layers and so on."""
    without_download(model_cfg)
    backbone = class_of(model_cfg['backbone']['type'], MODELS)
    if backbone is ResNeXt:
        model_cfg['backbone']['depth'] = 50
    if backbone in (ResNet, ResNetDC5):
        small, shared_head = dict(depth=18), (model_cfg.get('roi_head') or {}).get('shared_head')
        narrow = {256: 64, 512: 128, 1024: 256, 2048: 512}
        if shared_head:  # the last stage stands there; its width is fixed
            small = dict(depth=50)
            shared_head.update(small)
        elif model_cfg['backbone'].get('dcn'):  # ResNet-18 has no deformable convolution
            small = dict(depth=50, base_channels=8)
            narrow = {channels: channels // 8 for channels in narrow}
        model_cfg['backbone'].update(small)
        for part in ('neck', 'mask_head'):
            if part in model_cfg:
                model_cfg[part]['in_channels'] = [narrow[c] for c in model_cfg[part]['in_channels']]
    if backbone is DAT:
        narrow = dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), num_groups=(1, 1, 2, 4))
        model_cfg['backbone']['arch'] = narrow
        model_cfg['neck']['in_channels'] = [16 * 2**i for i in model_cfg['backbone'].get('out_indices', (1, 2, 3))]
    roi_layer = ((model_cfg.get('roi_head') or {}).get('bbox_roi_extractor') or {}).get('roi_layer')
    if roi_layer and 'output_channels' in roi_layer:  # it predicts offsets: tens of millions of weights on each level
        roi_layer['deform_fc_channels'] = 16
    if 'roi_head' in model_cfg:
        head = model_cfg['roi_head']['bbox_head']
        if 'fc_out_channels' in head:
            head['fc_out_channels'] = 32
        model_cfg['train_cfg']['rpn_proposal']['max_per_img'] = model_cfg['test_cfg']['rpn']['max_per_img'] = 50
    if 'num_queries' in model_cfg:
        model_cfg['num_queries'] = 20
        model_cfg['encoder']['num_layers'] = 2
        model_cfg['decoder']['num_layers'] = 3
    return model_cfg
