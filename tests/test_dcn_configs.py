"""The configs on Faster R-CNN are MMDetection's, with this package's layers in place of mmcv's."""

from pathlib import Path

import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from mmdet_ddetr import get_config
from mmdet_ddetr.testing import without_download

OF_MMDET = Path(mmdet.__file__).parent / '.mim/configs'
PAIRS = {
    'faster-rcnn_r50_fpn_8xb2-1x_coco': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'faster-rcnn_r50-dconv-c3-c5_fpn_8xb2-1x_coco': 'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
    'faster-rcnn_r50_fpn-dpool_8xb2-1x_coco': 'dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py',
    'faster-rcnn_r50-mdconv-c3-c5_fpn_8xb2-1x_coco': 'dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py',
    'faster-rcnn_r50-mdconv-group4-c3-c5_fpn_8xb2-1x_coco': (
        'dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py'
    ),
    'faster-rcnn_r50_fpn-mdpool_8xb2-1x_coco': 'dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco.py',
}


def plain(value):
    """A config without scopes, and without an argument of its default value."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in ('_scope_', 'fallback_on_stride')}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.removeprefix('mmdet_ddetr.') if isinstance(value, str) else value


QUICK = ('faster-rcnn_r50-dconv-c3-c5_fpn_8xb2-1x_coco', 'faster-rcnn_r50_fpn-mdpool_8xb2-1x_coco')


@pytest.mark.parametrize(
    ('name', 'theirs'),
    [pytest.param(*pair, marks=() if pair[0] in QUICK else pytest.mark.slow) for pair in PAIRS.items()],
)
def test_faster_rcnn(name, theirs):
    """Weights have the same names and shapes, too, so that MMDetection's checkpoints load."""
    init_default_scope('mmdet')
    configs = get_config(name), get_config(str(OF_MMDET / theirs))
    ours, theirs = (plain(config.to_dict()) for config in configs)
    for part in ('model', 'param_scheduler', 'optim_wrapper', 'train_cfg', 'auto_scale_lr'):
        assert ours[part] == theirs[part], part
    sizes = [[step.get('scale') for step in config['train_pipeline']] for config in (ours, theirs)]
    assert sizes[0] == sizes[1]

    shapes = []
    for config in configs:
        with torch.device('meta'):
            model = MODELS.build(without_download(config.model))
        shapes.append({key: tensor.shape for key, tensor in model.state_dict().items()})
    assert shapes[0] == shapes[1]
