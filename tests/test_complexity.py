"""Parameters against published counts, multiply-adds against formulas, speed against a known time; and the tool."""

import os
import time

import mmdet
import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmdet_ddetr import MSDeformAttn, get_config
from mmdet_ddetr.apis.complexity import build_detector, count_multiply_adds, count_parameters, measure_speed
from mmdet_ddetr.layers import MultiheadAttention
from mmdet_ddetr.testing import shrink

MMDET = os.path.join(os.path.dirname(mmdet.__file__), '.mim/configs/deformable_detr')


def parameters_of(cfg):
    with torch.device('meta'):
        return count_parameters(build_detector(cfg))


@pytest.mark.parametrize(
    ('name', 'millions'),
    [
        ('deformable-detr_r50', 40.070),
        ('deformable-detr-refine_r50', 40.850),
        ('deformable-detr-refine-twostage_r50', 41.182),
        ('deformable-detr_r50-single-scale', 34.067),
        ('deformable-detr_r50-k1', 39.181),
    ],
)
def test_parameters_of_the_official_code(name, millions):
    """The official models have 91 classes, and frozen batch norms as buffers."""
    cfg = get_config(f'{name}_16xb2-50e_coco')
    cfg.model.bbox_head.num_classes = 91
    assert round(parameters_of(cfg).paper / 1e6, 3) == millions


@pytest.mark.parametrize(
    ('name', 'millions'),
    [
        ('deformable-detr_r50', 40.119),
        ('deformable-detr-refine_r50', 40.885),
        ('deformable-detr-refine-twostage_r50', 41.214),
    ],
)
def test_parameters_of_mmdet(name, millions):
    """mmdet's own config and ours; its necks have no bias, ours have one a channel and level."""
    theirs = parameters_of(Config.fromfile(f'{MMDET}/{name}_16xb2-50e_coco.py'))
    assert round(theirs.total / 1e6, 3) == millions
    ours = parameters_of(get_config(f'{name}_16xb2-50e_coco'))
    assert ours.total == theirs.total + 4 * 256
    assert ours.frozen_norm == theirs.frozen_norm == 53120  # of R50
    assert ours.trained == theirs.trained + 4 * 256 < ours.paper


def test_multiply_adds_against_formulas():
    """Convolutions and linear layers by their shapes, attentions by the papers' formulas."""
    model = build_detector(Config(dict(model=shrink(get_config('deformable-detr_r50_16xb2-50e_coco').model))))
    terms = {nn.Conv2d: 0, nn.Linear: 0, MSDeformAttn: 0, MultiheadAttention: 0}

    def add(module, args, kwargs, output):
        if isinstance(module, nn.Conv2d):
            terms[nn.Conv2d] += output.numel() * module.weight[0].numel()
        elif isinstance(module, MSDeformAttn):
            L, K = module.num_levels, module.num_points
            terms[MSDeformAttn] += 5 * output.numel() * L * K  # per query and channel
        elif isinstance(module, MultiheadAttention):
            _, Q, C = output.shape  # one image
            terms[MultiheadAttention] += 4 * Q * C * C + 2 * Q * Q * C  # projections; products with keys and values
        else:
            terms[nn.Linear] += output.numel() * module.in_features

    for module in model.modules():
        if isinstance(module, tuple(terms)) and not type(module).__name__.startswith('NonDynamically'):
            module.register_forward_hook(add, with_kwargs=True)
    counted = count_multiply_adds(model, (64, 96))
    assert all(terms.values())
    assert counted == sum(terms.values())


def test_multiply_adds_of_mmcv_attention_are_counted():
    """mmdet's config and ours do the same work, with mmcv's module or this package's."""
    name = 'deformable-detr_r50_16xb2-50e_coco'
    theirs, ours = (
        count_multiply_adds(build_detector(Config(dict(model=shrink(cfg.model)))), (64, 96))
        for cfg in (Config.fromfile(f'{MMDET}/{name}.py'), get_config(name))
    )
    # mmdet predicts from all three decoder layers, we from the last
    assert theirs - ours == 2 * 20 * (256 * 80 + 2 * 256 * 256 + 256 * 4)


class Sleeper(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, inputs, samples, mode):
        assert mode == 'predict' and inputs.shape == (2, 3, 8, 12) and len(samples) == 2
        self.calls += 1
        time.sleep(0.5 if self.calls <= 3 else 0.02)  # a warm-up


def test_speed():
    model = Sleeper()
    assert 20 < measure_speed(model, (8, 12), batch_size=2, seconds=0.1) <= 100
    assert model.calls >= 6


@pytest.mark.slow
def test_tool(run_tool):
    name = 'deformable-detr-refine-twostage_lite0_shapes'
    options = ['--size', 64, 96, '--seconds', 0.01, '--device', 'cpu', '--cfg-options', 'model.num_queries=7']
    code, text = run_tool('complexity.py', name, *options)
    assert code == 0, text
    header, row, *notes = text.splitlines()[-5:]
    assert header.split() == ['config', 'params', 'all', 'GFLOPs', 'FPS']
    cells = row.split()
    assert cells[0] == name
    total = parameters_of(get_config(name)).total
    assert cells[2] == f'{total / 1e6:.3f}'
    assert float(cells[3]) > 0 and float(cells[4]) > 0
    assert '64 x 96' in ' '.join(notes)
    code, text = run_tool('complexity.py', name, 'nothing')
    assert code != 0 and text.splitlines()[-1].startswith("complexity.py: no config 'nothing'")
