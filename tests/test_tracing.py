"""The detectors in torch.export, torch.jit.trace, and what traces in its turn: mmdet's get_flops."""

import runpy
import sys
from functools import partial
from pathlib import Path

import mmdet
import pytest
import torch
from mmengine.analysis import get_model_complexity_info
from tiny_model import CLASSES, NAMES, tiny_model
from torch import nn
from torch.utils._pytree import tree_leaves

from mmdet_ddetr import MSDeformAttn
from mmdet_ddetr.testing import make_batch

ROOT = Path(__file__).parents[1]
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name != 'two-stage']


class TensorMode(nn.Module):
    def __init__(self, variant):
        super().__init__()
        self.model = tiny_model(variant).eval().requires_grad_(False)

    def forward(self, images):
        return self.model(images, mode='tensor')


def assert_equal(got, expected, atol=0):
    got, expected = tree_leaves(got), tree_leaves(expected)
    assert len(got) == len(expected) == 2
    for tensor, other in zip(got, expected):
        torch.testing.assert_close(tensor, other, rtol=0, atol=atol)


@pytest.mark.slow  # test_export.py does it with what it exports
@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('variant', ['two-stage', *MORE])
def test_export_of_any_batch_and_size(variant, strict):
    """From two images of 96 x 160 px to other numbers of other sizes, with eager's values; every map has two cells."""
    model = TensorMode(variant)
    dynamic = {0: torch.export.Dim('batch', min=1, max=16)}
    dynamic |= {axis: torch.export.Dim(name, min=65, max=2048) for axis, name in {2: 'height', 3: 'width'}.items()}
    torch._dynamo.reset()
    images = torch.randn(2, 3, 96, 160)
    program = torch.export.export(model, (images,), dynamic_shapes=dict(images=dynamic), strict=strict).module()
    for shape in ((3, 3, 70, 301), (1, 3, 97, 130), (2, 3, 160, 96)):
        images = torch.randn(shape)
        assert_equal(program(images), model(images), atol=1e-5)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('variant', ['two-stage', *MORE])
def test_jit_trace_of_a_detector(variant):
    """The values of eager for images of the traced size; others are refused or right, never wrong."""
    model = TensorMode(variant)
    traced = torch.jit.trace(model, torch.randn(1, 3, 64, 96))
    images = torch.randn(1, 3, 64, 96)
    assert_equal(traced(images), model(images))
    for shape in ((1, 3, 96, 64), (1, 3, 128, 96), (1, 3, 60, 90)):
        images = torch.randn(shape)
        try:
            got = traced(images)
        except RuntimeError:
            continue
        assert_equal(got, model(images))


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('training', [False, True])
def test_jit_trace_of_the_attention(training):
    """Shapes as taken from a map, which the tracer makes tensors; with and without gradients."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = MSDeformAttn(32, 4, num_levels=1, dropout=0.0, batch_first=True)

        def forward(self, feature, points):
            shapes = [tuple(feature.shape[-2:])]
            return self.attn(feature.flatten(2).transpose(1, 2), reference_points=points, spatial_shapes=shapes)

    model = Model().requires_grad_(training)
    inputs = torch.randn(1, 32, 3, 5), torch.rand(1, 15, 1, 2)
    traced = torch.jit.trace(model, inputs)
    inputs = torch.randn(1, 32, 3, 5), torch.rand(1, 15, 1, 2)
    torch.testing.assert_close(traced(*inputs), model(*inputs), rtol=0, atol=0)
    if training:
        parameters = list(model.parameters())
        grads, expected = (torch.autograd.grad(f(*inputs).square().sum(), parameters) for f in (traced, model))
        torch.testing.assert_close(grads, expected)


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize('variant', ['two-stage', *MORE])
def test_complexity_of_mmengine(variant):
    """As mmdet's get_flops.py asks for it, with a padded image: parameters of the model, operations of its layers."""
    model = tiny_model(variant).eval()
    images, samples = make_batch([(64, 96), (57, 64)], [0, 0], CLASSES)
    model.forward = partial(model.forward, data_samples=samples)
    info = get_model_complexity_info(model, None, inputs=images, show_table=False, show_arch=False)
    assert info['params'] == sum(p.numel() for p in model.parameters())
    assert info['flops'] > 1e6


@pytest.mark.slow
@pytest.mark.parametrize('name', ['deformable-detr-refine-twostage-dn_lite0_shapes', 'detr_lite0_shapes'])
def test_get_flops_of_mmdet(name, workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    config = ROOT / f'configs/quickstart/{name}.py'
    monkeypatch.setattr(sys, 'argv', ['get_flops.py', str(config), '--num-images=1'])
    runpy.run_path(Path(mmdet.__file__).parent / '.mim/tools/analysis_tools/get_flops.py', run_name='__main__')
    assert 'Flops: ' in capsys.readouterr().out
