"""The baselines of table 3 are MMDetection's parts: against its own configs."""

import copy

import pytest
from mmengine.hub import get_config as config_of
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.detectors import DDetrTTAModel

FCOS = 'fcos_x101-64x4d_fpn_8xb2-ms-2x_coco'
ATSS = 'atss_x101-64x4d-mdconv-c4-c5_fpn_8xb2-ms-2x_coco'


def without_scope(value):
    """A config of mmdet's as it stands in its file."""
    if isinstance(value, dict):
        return {key: without_scope(item) for key, item in value.items() if key != '_scope_'}
    return [without_scope(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.fixture(scope='module')
def theirs():
    names = dict(
        x101='fcos/fcos_x101-64x4d_fpn_gn-head_ms-640-800-2x_coco.py',
        improved='fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py',
        atss='atss/atss_r50_fpn_1x_coco.py',
    )
    return {key: without_scope(config_of(f'mmdet::{name}').to_dict()) for key, name in names.items()}


def test_fcos(theirs):
    ours = without_scope(get_config(FCOS).to_dict())
    model = ours['model']
    for part in ('data_preprocessor', 'backbone', 'neck'):
        assert model[part] == theirs['x101']['model'][part]
    head = dict(theirs['improved']['model']['bbox_head'])
    assert head.pop('dcn_on_last_conv') is False
    assert model['bbox_head'] == head
    assert model['test_cfg'] == theirs['improved']['model']['test_cfg']
    for key in ('param_scheduler', 'auto_scale_lr'):
        assert ours[key] == theirs['x101'][key]
    assert ours['optim_wrapper']['optimizer'] == theirs['x101']['optim_wrapper']['optimizer']


def test_atss(theirs):
    ours = without_scope(get_config(ATSS).to_dict())
    model = copy.deepcopy(ours['model'])
    for part in ('data_preprocessor', 'bbox_head', 'train_cfg', 'test_cfg'):
        assert model[part] == theirs['atss']['model'][part]
    neck = theirs['atss']['model']['neck']
    assert model['neck'] == dict(neck, relu_before_extra_convs=False)
    deformable = model['backbone'].pop('dcn'), model['backbone'].pop('stage_with_dcn')
    assert deformable == (dict(type='mmdet_ddetr.DCNv2', deform_groups=1), [False, False, True, True])
    assert model['backbone'] == theirs['x101']['model']['backbone']
    assert ours['optim_wrapper']['optimizer'] == theirs['atss']['optim_wrapper']['optimizer']
    assert ours['optim_wrapper'].get('paramwise_cfg') is ours['optim_wrapper'].get('clip_grad') is None


class Detector(nn.Module):
    def test_step(self, data):
        raise AssertionError('nothing is detected here')


def test_every_scale_has_its_sizes():
    config = get_config(ATSS)
    arguments = dict(config.tta_model)
    assert arguments.pop('type') == 'mmdet_ddetr.DDetrTTAModel'
    model = DDetrTTAModel(Detector(), **arguments)
    scales = config.tta_pipeline[1].transforms[0]
    assert len(model.size_ranges) == len(scales) == 12
    assert [resize.scale for resize in scales] == [(3000, side) for side in sorted(s.scale[1] for s in scales)]
    coarse, fine = model.size_ranges[0], model.size_ranges[-1]
    assert tuple(coarse) == (96, 10000) and tuple(fine) == (0, 96)  # small views for large objects
