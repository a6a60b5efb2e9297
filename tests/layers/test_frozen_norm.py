import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.layers.frozen_norm import BatchNorm2d, replace_batch_norms
from mmdet_ddetr.testing import make_batch, shrink


def kept(function):
    """The output of a forward pass, and the bytes that it keeps for the backward pass, parameters left out."""
    sizes = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()
    return output, sum(sizes.values())


def make_norm():
    norm = nn.BatchNorm2d(3).eval().requires_grad_(False)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_fixed(dtype):
    """PyTorch's values and gradients, and of the input nothing is kept."""
    torch.manual_seed(0)
    theirs = make_norm()
    ours = copy.deepcopy(theirs)
    replace_batch_norms(ours)
    assert type(ours) is BatchNorm2d and list(ours.state_dict()) == list(theirs.state_dict())
    results = {}
    for norm in (theirs, ours):
        images = torch.linspace(-2, 3, 2 * 3 * 40 * 50).view(2, 3, 40, 50).to(dtype).requires_grad_()
        output, size = kept(lambda x=images, norm=norm: norm(x))
        assert output.dtype == dtype
        (output.float() ** 2).sum().backward()
        results[norm] = output, images.grad, size
    assert torch.equal(results[ours][0], results[theirs][0])
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(results[ours][1], results[theirs][1], rtol=2 * eps, atol=2 * eps)
    assert results[ours][2] < 100 < results[theirs][2]


@pytest.mark.parametrize('change', [lambda norm: norm.train(), lambda norm: norm.requires_grad_(True)])
def test_anything_else_is_pytorchs(change):
    """In training mode, or with weights that are trained: gradients of all, and statistics that move."""
    torch.manual_seed(0)
    theirs = change(make_norm())
    ours = copy.deepcopy(theirs)
    replace_batch_norms(ours)
    grads = []
    for norm in (theirs, ours):
        images = torch.linspace(-2, 3, 24).view(2, 3, 2, 2).requires_grad_()
        (norm(images) ** 2).sum().backward()
        grads.append([images.grad, norm.running_mean, *(parameter.grad for parameter in norm.parameters())])
    for a, b in zip(*grads, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_second_derivative():
    norm = make_norm().double()
    replace_batch_norms(norm)
    images = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, images) and torch.autograd.gradgradcheck(norm, images)


def test_in_a_detector():
    """The batch norms of a frozen backbone are these, and a step keeps less than with PyTorch's."""
    init_default_scope('mmdet')
    cfg = shrink(get_config('detr_r50_16xb4-500e_coco').model)
    cfg.encoder.num_layers = cfg.decoder.num_layers = 1
    model = MODELS.build(cfg).train()
    inputs, samples = make_batch([(96, 128)], [2], 80)
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(type(norm) is BatchNorm2d for norm in norms)
    _, ours = kept(lambda: model.backbone(inputs))
    for norm in norms:
        norm.__class__ = nn.BatchNorm2d
    _, theirs = kept(lambda: model.backbone(inputs))
    assert ours < 0.75 * theirs
