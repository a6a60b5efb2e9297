"""MMDetection's RoI extractor with RoI layers of a registry."""

import mmcv.ops
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor as MMDetSingleRoIExtractor

from ..registry import MODELS, class_of


@MODELS.register_module()
class SingleRoIExtractor(MMDetSingleRoIExtractor):
    """``mmdet.SingleRoIExtractor``, which knows mmcv's RoI layers alone, for those of a registry, too.

    Arguments as for mmdet's; each level has a layer of its own, with ``spatial_scale`` of its stride. In a config::

        bbox_roi_extractor=dict(
            type='mmdet_ddetr.SingleRoIExtractor',
            roi_layer=dict(type='mmdet_ddetr.DeformRoIPoolPack', output_size=7, output_channels=256),
        )

    Raises:
        ValueError: no registry and no ``mmcv.ops`` has such a layer.
    """

    def build_roi_layers(self, layer_cfg, featmap_strides):
        name = layer_cfg['type']
        layer = class_of(name, MODELS) or getattr(mmcv.ops, name, None)
        if layer is None:
            raise ValueError(f'roi_layer.type must be of a registry or of mmcv.ops, got {name!r}')
        return super().build_roi_layers({**layer_cfg, 'type': layer}, featmap_strides)
