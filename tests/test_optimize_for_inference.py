"""optimize_for_inference: the same detections, from every detector of the package."""

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope
from test_export import assert_same
from tiny_model import CLASSES, NAMES, tiny_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmdet_ddetr import get_config, optimize_for_inference
from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.detectors import DDetrTTAModel
from mmdet_ddetr.export import DetectionProgram, ExportError
from mmdet_ddetr.inference.convolutions import ResidualBlock, fuse_convolutions
from mmdet_ddetr.inference.optimize import Optimized, replace
from mmdet_ddetr.inference.preprocessing import Preprocessor
from mmdet_ddetr.inference.products import Conv2d, Linear, activation_of
from mmdet_ddetr.inference.transformer import FusedFFN
from mmdet_ddetr.necks import BiFPN
from mmdet_ddetr.ops._load import EXTENSION_LOADED
from mmdet_ddetr.registry import HOOKS
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_dropout

SIZES = [(96, 130), (70, 160), (96, 64)]  # of images, h and w; none fills the batch, 96 x 160


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def with_statistics(model: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that do something."""
    rng = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=rng)
            module.running_var.uniform_(0.5, 2, generator=rng)
    model.eval()
    return model


def predictions(model, sizes, seed=0):
    inputs, samples = make_batch(sizes, [0] * len(sizes), CLASSES, seed)
    with torch.no_grad():
        return [sample.pred_instances for sample in model(inputs, samples, mode='predict')]


def assert_same_predictions(model, other, sizes=SIZES, seed=0):
    found, expected = (
        [
            [instances.bboxes[None], instances.scores[None], instances.labels[None]]
            for instances in predictions(m, sizes, seed)
        ]
        for m in (model, other)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs, pixels=0.01, tolerance=1e-4)


@pytest.mark.parametrize('variant', NAMES)
def test_same_detections(variant):
    """Of a padded batch, one with other padding, one image, and the first again, whose positions are kept by then.

    Then of other images of its sizes: the operators of the first are recorded, those of the second are the record's.
    """
    model = with_statistics(tiny_model(variant))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimised = optimize_for_inference(model)
    for seed, sizes in enumerate((SIZES, [(80, 160), (96, 64), (50, 70)], [(64, 97)], SIZES, SIZES, SIZES)):
        assert_same_predictions(optimised, model, sizes, seed)
    assert sum(map(callable, optimised.programs.found.values())) == 1
    assert not any(isinstance(module, _BatchNorm) for module in optimised.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert isinstance(optimised, type(model)) and optimize_for_inference(optimised) is optimised


@pytest.mark.parametrize('divisor', [1, 32])
@pytest.mark.parametrize('bgr_to_rgb', [True, False])
def test_preprocessing(bgr_to_rgb, divisor):
    """The same batches of images of unlike sizes, with what mmdet notes in their samples."""
    arguments = dict(mean=[120.0, 110.0, 100.0], std=[58.0, 57.0, 56.0], bgr_to_rgb=bgr_to_rgb, pad_value=7)
    expected = DetDataPreprocessor(pad_size_divisor=divisor, **arguments)
    ours = Preprocessor(pad_size_divisor=divisor, **arguments)
    rng = torch.Generator().manual_seed(0)
    for sizes in ([(64, 96)], [(30, 50), (50, 40)], [(64, 96), (64, 96)]):
        images = [torch.randint(256, (3, *size), dtype=torch.uint8, generator=rng) for size in sizes]
        for batch in (images, [image.float() for image in images]):
            found, theirs = (
                preprocessor(dict(inputs=list(batch), data_samples=[DetDataSample() for _ in batch]))
                for preprocessor in (ours, expected)
            )
            torch.testing.assert_close(found['inputs'], theirs['inputs'], rtol=0, atol=0)
            metas = ([sample.metainfo for sample in result['data_samples']] for result in (found, theirs))
            assert next(metas) == next(metas)
        assert ours(dict(inputs=images))['data_samples'] is None
    assert type(optimize_for_inference(tiny_model('base')).data_preprocessor) is Preprocessor


def test_other_images_are_left_to_mmdet():
    """Of four channels, it takes three; an empty batch is its error."""
    arguments = dict(mean=[120.0, 110.0, 100.0], std=[58.0, 57.0, 56.0], bgr_to_rgb=True)
    ours, theirs = Preprocessor(**arguments), DetDataPreprocessor(**arguments)
    images = [torch.randint(256, (4, 8, 9), dtype=torch.uint8)]
    torch.testing.assert_close(ours(dict(inputs=images))['inputs'], theirs(dict(inputs=images))['inputs'])
    with pytest.raises(AssertionError, match='empty list'):
        ours(dict(inputs=[]))


def test_hooks_are_called():
    """Also where the operators were recorded before."""
    optimised = optimize_for_inference(with_statistics(tiny_model('two-stage')))
    for _ in range(4):
        found = predictions(optimised, SIZES)
    maps = []
    hook = optimised.backbone.register_forward_hook(lambda module, inputs, outputs: maps.append(outputs))
    again = predictions(optimised, SIZES)
    hook.remove()
    predictions(optimised, SIZES)
    assert len(maps) == 1
    for ours, theirs in zip(again, found, strict=True):
        torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=0, atol=1e-3)


def test_masks():
    config = shrink(get_config('deformable-detr-masks_r50_8xb2-25e_coco').model)
    torch.manual_seed(0)
    model = with_statistics(without_dropout(randomise(MODELS.build(config))))
    nn.init.zeros_(model.mask_head.out.bias)  # else all logits may have one sign
    optimised = optimize_for_inference(model)
    sizes = [(96, 130), (70, 160)]
    assert_same_predictions(optimised, model, sizes)
    found, expected = (
        torch.cat([instances.masks.flatten() for instances in predictions(m, sizes)]) for m in (optimised, model)
    )
    assert 0 < expected.double().mean() < 1
    assert (found != expected).double().mean() < 1e-4


BACKBONES = dict(
    r18=dict(type='ResNet', depth=18),
    r50=dict(type='ResNet', depth=50, base_channels=8),
    caffe=dict(type='ResNet', depth=50, base_channels=8, style='caffe'),
    dc5=dict(type='mmdet_ddetr.ResNetDC5', depth=50, base_channels=8),
    deep_stem=dict(type='ResNetV1d', depth=50, base_channels=8),
    resnext=dict(type='ResNeXt', depth=50, groups=4, base_width=4, base_channels=8),
    dcn=dict(
        type='ResNet',
        depth=50,
        base_channels=8,
        dcn=dict(type='mmdet_ddetr.DCNv2', deform_groups=1),
        stage_with_dcn=(False, True, True, True),
    ),
    lite0=dict(type='mmdet_ddetr.EfficientNetLite'),
    mobilenet=dict(type='MobileNetV2', widen_factor=0.5),
    dat=dict(
        type='mmdet_ddetr.DAT',
        arch=dict(embed_dims=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), num_groups=(1, 1, 2, 4)),
    ),
)


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones(name):
    """Maps of every stage, for odd sizes, twice from one input: nothing overwrites what others read."""
    torch.manual_seed(0)
    out_indices = (0, 1, 2, 3)
    backbone = with_statistics(randomise(MODELS.build(dict(BACKBONES[name], out_indices=out_indices)), 0.1))
    optimised = replace(copy.deepcopy(backbone), fuse_convolutions, torch.float32)
    images = torch.randn(2, 3, 75, 101)
    with torch.no_grad():
        expected = backbone(images)
        for _ in range(2):
            found = optimised(images)
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected):
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
    assert not any(isinstance(module, (_BatchNorm, nn.ReLU6)) for module in optimised.modules())
    assert any(isinstance(module, Conv2d) for module in optimised.modules())


def test_what_others_read_is_not_overwritten():
    """Of an hourglass, two branches read what one block gives; here, also the input of a sequence is read again."""
    torch.manual_seed(0)
    hourglass = MODELS.build(
        dict(
            type='HourglassNet',
            downsample_times=2,
            num_stacks=2,
            stage_channels=(8, 8, 12),
            stage_blocks=(1, 1, 2),
            feat_channel=8,
        )
    )
    blocks = nn.Sequential(nn.Identity(), BasicBlock(8, 8), BasicBlock(8, 8))
    for module, x in ((hourglass, torch.randn(1, 3, 64, 96)), (blocks, torch.randn(1, 8, 20, 30))):
        module, before = with_statistics(randomise(module, 0.1)), x.clone()
        optimised = replace(copy.deepcopy(module), fuse_convolutions, torch.float32)
        with torch.no_grad():
            found, expected = optimised(x), module(x)
        assert any(isinstance(part, ResidualBlock) for part in optimised.modules())
        assert torch.equal(x, before)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_empty_batches_of_a_fused_ffn():
    fused = FusedFFN(FFN(8, 16), torch.float32)
    for shape in ((0, 5, 8), (2, 0, 8)):
        assert fused(torch.zeros(shape)).shape == shape


def test_packed_weights_fit_the_size():
    """oneDNN packs weights as the maps' size asks for: kept from the second time on, and given up at another size."""
    conv = nn.Conv2d(96, 64, 3, padding=1)
    fused = fuse_convolutions(conv, torch.float32)
    for size in (70, 70, 70, 60, 70, 60, 60, 60):
        x = torch.randn(1, 96, size, size)
        torch.testing.assert_close(fused(x), conv(x), rtol=1e-4, atol=1e-4)
    assert fused.last[0][2:] == (60, 60) and fused.last[1].is_mkldnn
    fused(x[..., :50, :50])
    assert fused.last[1] is None


@pytest.mark.parametrize('activation', [None, nn.ReLU(), nn.ReLU6()])
def test_small_products(activation):
    """This package's and oneDNN's are the same, of maps and of rows."""
    conv, linear = nn.Conv2d(96, 64, 1), nn.Linear(96, 64)
    activate = activation or nn.Identity()
    for size in (7, 75):
        x, add = torch.randn(2, 96, size, size) * 4, torch.randn(2, 64, size, size)
        fused = Conv2d(conv, conv.weight.detach(), conv.bias.detach(), activation_of(activation))
        torch.testing.assert_close(fused(x), activate(conv(x)), rtol=1e-4, atol=1e-4)
        if not isinstance(activation, nn.ReLU6):  # oneDNN has none behind a sum
            torch.testing.assert_close(fused(x, add=add.clone()), activate(conv(x) + add), rtol=1e-4, atol=1e-4)
        assert (fused.product.packed is None) == (size == 75 or not EXTENSION_LOADED)
        rows = torch.randn(2, size * size, 96)
        fused = Linear(linear.weight, linear.bias, torch.float32, activation_of(activation))
        add = torch.randn(2, size * size, 64)
        for inputs in ({}, dict(add=add)):
            expected = activate(linear(rows) + (add if inputs else 0))
            torch.testing.assert_close(fused(rows, **inputs), expected, rtol=1e-4, atol=1e-4)
        assert (fused.product.packed is None) == (size == 75 or not EXTENSION_LOADED)


def test_neck_of_separable_convolutions():
    torch.manual_seed(0)
    neck = with_statistics(randomise(BiFPN([8, 16], 16, num_outs=4, num_layers=2)))
    maps = torch.randn(1, 8, 20, 30), torch.randn(1, 16, 10, 15)
    optimised = replace(copy.deepcopy(neck), fuse_convolutions, torch.float32)
    with torch.no_grad():
        for ours, theirs in zip(optimised(maps), neck(maps), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, _BatchNorm) for module in optimised.modules())


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('variant', ['detr', 'two-stage'])
def test_narrow_types(variant, dtype):
    """About as far from fp32 as the model itself under autocast."""
    model = with_statistics(tiny_model(variant))
    optimised = optimize_for_inference(model, dtype)
    assert optimize_for_inference(optimised, dtype) is optimised
    assert optimize_for_inference(optimised, str(dtype).removeprefix('torch.')) is optimised
    assert optimize_for_inference(model, str(dtype).removeprefix('torch.')).dtype is dtype
    inputs, samples = make_batch(SIZES, [0] * 3, CLASSES)
    with torch.no_grad():
        logits, boxes = model(inputs, samples, mode='tensor')[:2]
        with torch.autocast('cpu', dtype):
            reference = model(inputs, samples, mode='tensor')
    found = optimised(inputs, samples, mode='tensor')
    assert found[1].dtype is torch.float32
    for ours, theirs, exact in zip(found, reference, (logits, boxes)):
        if variant == 'two-stage':  # which may choose another proposal: queries change places, and one is another
            assert 0 < (ours.sort(-2).values - exact.sort(-2).values).abs().mean() <= exact.std() / 20
        else:
            assert 0 < (ours - exact).abs().mean() <= 2 * (theirs - exact).abs().mean()


def test_what_it_refuses():
    model = tiny_model('base').eval()
    optimised = optimize_for_inference(model)
    inputs, samples = make_batch([(64, 64)], [1], CLASSES)
    for refused in (
        lambda: optimised.train(),
        lambda: optimised(inputs, samples, mode='loss'),
        lambda: optimised.state_dict(),
        lambda: optimised.load_state_dict(model.state_dict()),
        lambda: copy.deepcopy(optimised),
        lambda: torch.save(optimised, io.BytesIO()),
        lambda: optimised.to(torch.bfloat16),
        lambda: optimised.to('meta'),
        lambda: torch.export.export(DetectionProgram(optimised), (inputs, torch.tensor([[64, 64]]))),
    ):
        with pytest.raises(RuntimeError, match='a model from optimize_for_inference cannot .* that it was made of'):
            refused()
    assert not optimised.eval().to('cpu').training
    assert optimised.data_preprocessor.device.type == 'cpu'  # where images go, also after the refusals
    with pytest.raises(ValueError, match='optimised for torch.float32; for torch.bfloat16, take the one'):
        optimize_for_inference(optimised, torch.bfloat16)
    with pytest.raises(
        ValueError, match='dtype must be one of float32, bfloat16, float16, of torch or .* torch.float64'
    ):
        optimize_for_inference(model, torch.float64)
    with pytest.raises(ValueError, match="of torch or by name, got 'float64'"):
        optimize_for_inference(model, 'float64')
    with pytest.raises(TypeError, match='must be a detector of mmdet_ddetr, got Linear'):
        optimize_for_inference(nn.Linear(2, 2))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_other_weights_are_refused(dtype):
    """What .half() took from them does not come back, and what is made of them would be neither of the two."""
    model = tiny_model('detr').to(dtype)
    message = (
        rf'model must have its weights in torch.float32, got {dtype}: take the model before .half\(\) and the like'
    )
    with pytest.raises(ValueError, match=message):
        optimize_for_inference(model, torch.float16)
    with pytest.raises(ExportError, match=message):
        DetectionProgram(model)


def test_without_onednn(monkeypatch):
    """As on a GPU: PyTorch's own convolutions and products."""
    monkeypatch.setattr('mmdet_ddetr.inference.products.has_onednn', lambda weight: False)
    model = with_statistics(tiny_model('two-stage'))
    assert_same_predictions(optimize_for_inference(model), model)


# --- where it is asked for by name ------------------------------------------------------------------------------------


@pytest.mark.parametrize('with_tta', [False, True])
def test_hook(with_tta):
    """The test alone is of the optimised model, with the weights that hooks before it put there."""
    model = with_statistics(tiny_model('detr'))
    outer = DDetrTTAModel(module=model) if with_tta else model
    runner = SimpleNamespace(model=outer)
    hook = HOOKS.build(dict(type='mmdet_ddetr.OptimizeForInferenceHook', dtype='bfloat16'))
    hook.before_test_epoch(runner)
    tested = runner.model.module if with_tta else runner.model
    assert isinstance(tested, Optimized) and tested.dtype is torch.bfloat16
    assert not with_tta or runner.model is outer
    hook.after_test_epoch(runner)
    assert runner.model is outer and (runner.model.module if with_tta else runner.model) is model
    with pytest.raises(ValueError, match="dtype must be one of float32, bfloat16, float16, got 'int8'"):
        HOOKS.build(dict(type='mmdet_ddetr.OptimizeForInferenceHook', dtype='int8'))


def test_inferencer():
    config = get_config('deformable-detr-refine-twostage_lite0_shapes')
    shrink(config.model)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    found = []
    for optimize in (None, 'float32'):
        torch.manual_seed(0)
        inferencer = DDetrInferencer(config, device='cpu', optimize=optimize, show_progress=False)
        assert isinstance(inferencer.model, Optimized) == (optimize is not None)
        (detections,) = inferencer.detect([image])
        found.append([x[None] for x in (detections.boxes, detections.scores, detections.labels)])
    assert_same(found[1], list(map(torch.as_tensor, found[0])))
    with pytest.raises(ValueError, match="optimize must be one of float32, bfloat16, float16, or None, got 'half'"):
        DDetrInferencer(config, optimize='half')
