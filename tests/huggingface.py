"""DETRs of ``transformers`` and what they take, for the parity tests."""

import torch


def detr_config(num_labels, out_features, **settings):
    """A ``DetrConfig`` that needs no timm: ResNet-18, 2 + 3 layers, 20 queries, as ``testing.shrink`` makes of ours.

    Args:
        out_features: stages of the backbone to give out.
        **settings: of the config, such as ``d_model``.
    """
    import transformers

    backbone = transformers.ResNetConfig(
        layer_type='basic', depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], out_features=out_features
    )
    return transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=20,
        num_labels=num_labels,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        auxiliary_loss=False,
        **settings,
    )


def pixel_mask(inputs, shapes):
    """[B, H, W], 1 where a pixel belongs to the image, 0 in the padding; ``shapes`` are (h, w) of the images."""
    mask = torch.zeros(len(inputs), *inputs.shape[-2:], dtype=torch.long)
    for of_image, (h, w) in zip(mask, shapes, strict=True):
        of_image[:h, :w] = 1
    return mask


def batch(inputs, samples):
    """The keyword arguments of a model of ``transformers`` for a batch of :func:`mmdet_ddetr.testing.make_batch`."""
    labels = []
    for sample in samples:
        h, w = sample.img_shape
        x1, y1, x2, y2 = (sample.gt_instances.bboxes / torch.tensor([w, h, w, h])).unbind(-1)
        labels.append(
            dict(
                class_labels=sample.gt_instances.labels,
                boxes=torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1),
                masks=sample.gt_instances.masks.to_tensor(torch.bool, 'cpu'),
            )
        )
    shapes = [sample.img_shape for sample in samples]
    return dict(pixel_values=inputs, pixel_mask=pixel_mask(inputs, shapes), labels=labels)
