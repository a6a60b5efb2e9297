"""accelerate and AccelerateHook: mmdet's models with mmcv's attention, before and after."""

import copy
import logging
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mmcv.ops.multi_scale_deform_attn as mmcv_attention
import mmdet
import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers.transformer.grounding_dino_layers import (
    GroundingDinoTransformerDecoder,
    GroundingDinoTransformerEncoder,
)
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

import mmdet_ddetr
import mmdet_ddetr.layers.ms_deform_attn as our_attention
from mmdet_ddetr import AccelerateHook, MSDeformAttn, acceleration
from mmdet_ddetr.registry import HOOKS
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_download, without_dropout

ROOT = Path(__file__).parents[1]
MMDET = Path(mmdet.__file__).parent / '.mim'
NUM_CLASSES = 5
PADDED = [(96, 128), (77, 64)]  # (h, w) of each image
# fp32, the same sums in another order; measured 5e-6 of (1 + value) on Mask2Former's masks, 1e-6 elsewhere
TOLERANCE = dict(rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """How often mmcv's function and this package's operator were called."""
    calls = Counter()

    def count(module, name, label):
        function = getattr(module, name)

        def counted(*args):
            calls[label] += 1
            return function(*args)

        monkeypatch.setattr(module, name, counted)

    count(mmcv_attention, 'multi_scale_deformable_attn_pytorch', 'mmcv')
    count(our_attention, 'ms_deform_attn_fused', 'ours')
    return calls


# --- mmdet's models, from its configs ---


def model_config(path):
    return Config.fromfile(MMDET / 'configs' / path).model


def initialised(cfg):
    model = MODELS.build(cfg)
    model.init_weights()  # mmdet's constructors leave the level embedding at what the memory holds
    return randomise(model)


def detr(path):
    cfg = shrink(model_config(path))
    cfg.bbox_head.num_classes = NUM_CLASSES
    return initialised(cfg)


def raw_outputs(model):
    return model(*make_batch(PADDED, [2, 0], NUM_CLASSES), mode='tensor')


def mask2former():
    cfg = without_download(model_config('mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'))
    cfg.backbone.depth = 18
    cfg.panoptic_head.update(in_channels=[64, 128, 256, 512], num_queries=10)
    cfg.panoptic_head.pixel_decoder.encoder.num_layers = 2
    cfg.panoptic_head.transformer_decoder.num_layers = 1
    return initialised(cfg)


def grounding_dino():
    """Its transformer: the language model before it needs a download."""
    cfg = model_config('grounding_dino/grounding_dino_swin-t_pretrain_obj365_goldg_cap4m.py')
    cfg.encoder.fusion_layer_cfg.embed_dim = 64
    cfg.encoder.num_layers = cfg.decoder.num_layers = 2
    return randomise(
        nn.ModuleDict(
            dict(
                encoder=GroundingDinoTransformerEncoder(**cfg.encoder),
                decoder=GroundingDinoTransformerDecoder(**cfg.decoder),
            )
        )
    )


def grounding_dino_outputs(model):
    rng = torch.Generator().manual_seed(0)
    shapes = torch.tensor([[9, 12], [5, 6], [3, 3], [2, 2]])
    B, Q, T, C, S = 2, 7, 5, 256, int(shapes.prod(1).sum())
    mask = torch.zeros(B, S, dtype=torch.bool)
    mask[1, ::3] = True
    image, text = torch.randn(B, S, C, generator=rng), torch.randn(B, T, C, generator=rng)
    levels = dict(
        spatial_shapes=shapes,
        level_start_index=torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]]),
        valid_ratios=torch.tensor([[1.0, 1.0], [0.7, 0.9]])[:, None].expand(B, 4, 2),
    )
    memory, memory_text = model['encoder'](
        query=image,
        query_pos=torch.randn(B, S, C, generator=rng),
        key_padding_mask=mask,
        memory_text=text,
        text_attention_mask=torch.ones(B, T, dtype=torch.bool),
        text_self_attention_masks=torch.ones(B, T, T, dtype=torch.bool),
        position_ids=torch.arange(T).expand(B, T),
        **levels,
    )
    hidden, references = model['decoder'](
        query=torch.randn(B, Q, C, generator=rng),
        value=memory,
        key_padding_mask=mask,
        self_attn_mask=None,
        reference_points=torch.rand(B, Q, 4, generator=rng),
        memory_text=memory_text,
        text_attention_mask=torch.zeros(B, T, dtype=torch.bool),
        reg_branches=[lambda x: x[..., :4]] * 2,
        **levels,
    )
    return memory, memory_text, hidden, references


MODELS_OF_MMDET = {  # how to build it, how to run it, how many attentions
    'DINO': (lambda: detr('dino/dino-4scale_r50_8xb2-12e_coco.py'), raw_outputs, 5),
    'DDQ': (lambda: detr('ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py'), raw_outputs, 5),
    'Mask2Former': (mask2former, raw_outputs, 2),
    'Grounding DINO': (grounding_dino, grounding_dino_outputs, 4),
}


@pytest.mark.parametrize('name', MODELS_OF_MMDET)
def test_outputs(name, calls):
    build, run, count = MODELS_OF_MMDET[name]
    model = build().eval()
    state = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        before = run(model)
        assert calls == {'mmcv': count}
        calls.clear()
        assert mmdet_ddetr.accelerate(model) == count
        after = run(model)
        assert calls == {'ours': count}
    torch.testing.assert_close(after, before, **TOLERANCE)
    assert mmdet_ddetr.accelerate(model) == 0
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


@pytest.mark.parametrize('name', ['DINO', pytest.param('DDQ', marks=pytest.mark.slow)])
def test_losses_and_gradients(name, calls):
    build, _, count = MODELS_OF_MMDET[name]
    theirs = without_dropout(build()).train()
    ours = copy.deepcopy(theirs)
    assert mmdet_ddetr.accelerate(ours) == count
    losses = []
    for model, label in ((theirs, 'mmcv'), (ours, 'ours')):
        torch.manual_seed(0)  # of the denoising queries
        losses.append(model(*make_batch(PADDED, [3, 0], NUM_CLASSES), mode='loss'))
        assert calls == {label: count}
        calls.clear()
        model.parse_losses(losses[-1])[0].backward()
    torch.testing.assert_close(losses[1], losses[0], **TOLERANCE)
    names, theirs = zip(*((name, p.grad) for name, p in theirs.named_parameters() if p.grad is not None))
    ours = dict((name, p.grad) for name, p in ours.named_parameters() if p.grad is not None)
    assert list(ours) == list(names)
    attention_gradients = [ours[name] for name in names if 'sampling_offsets' in name or 'attention_weights' in name]
    assert len(attention_gradients) == 4 * count and all(grad.any() for grad in attention_gradients)
    # one rounding at the kink of a ReLU or a GIoU switches a whole term of a gradient: compare norms, not cells
    distances = [(ours[name] - grad).norm() / (grad.norm() + 1e-3) for name, grad in zip(names, theirs)]
    assert max(distances) < 1e-2, names[int(torch.stack(distances).argmax())]
    assert torch.stack(distances).square().mean().sqrt() < 1e-3


# --- one module ---


def attention(cls=MultiScaleDeformableAttention, **kwargs):
    kwargs = dict(embed_dims=16, num_heads=2, num_levels=2, num_points=3, batch_first=True, dropout=0.0) | kwargs
    return randomise(cls(**kwargs), std=0.5).eval()


def inputs(batch_first=True, reference=2, **kwargs):
    rng = torch.Generator().manual_seed(1)
    shapes = torch.tensor([[4, 5], [2, 3]])
    B, Q, S, C = 2, 7, 26, 16
    mask = torch.zeros(B, S, dtype=torch.bool)
    mask[1, 1::3] = True
    tensors = dict(
        query=torch.randn(B, Q, C, generator=rng),
        value=torch.randn(B, S, C, generator=rng),
        query_pos=torch.randn(B, Q, C, generator=rng),
        identity=torch.randn(B, Q, C, generator=rng),
    )
    if not batch_first:
        tensors = {name: x.transpose(0, 1) for name, x in tensors.items()}
    return tensors | dict(
        key_padding_mask=mask,
        reference_points=torch.rand(B, Q, 2, reference, generator=rng),
        spatial_shapes=shapes,
        level_start_index=torch.tensor([0, 20]),
        **kwargs,
    )


def with_residual(arguments):
    arguments['residual'] = arguments.pop('identity')
    return arguments


def self_attention(arguments):
    arguments['query'] = arguments.pop('value')
    arguments['reference_points'] = torch.rand(2, 26, 2, 2)
    del arguments['identity'], arguments['query_pos']
    return arguments


CALLS = {  # arguments of the module, arguments of its forward
    'query first': (dict(batch_first=False), lambda: inputs(batch_first=False)),
    'boxes as references': ({}, lambda: inputs(reference=4)),
    'narrow value': (dict(value_proj_ratio=0.5), inputs),
    'arguments of other attentions': ({}, lambda: inputs(key=None, key_pos=None, attn_mask=None, valid_ratios=None)),
    'old name of identity': ({}, lambda: with_residual(inputs())),
    'query as value and identity': ({}, lambda: self_attention(inputs())),
}


@pytest.mark.parametrize('case', CALLS)
def test_calls_of_forward(case):
    module_arguments, arguments = CALLS[case]
    module, arguments = attention(**module_arguments), arguments()
    before = module(**arguments)
    assert mmdet_ddetr.accelerate(module) == 1
    torch.testing.assert_close(module(**arguments), before, **TOLERANCE)


def test_arguments_by_position():
    module, arguments = attention(), inputs(key=None)
    order = 'query key value identity query_pos key_padding_mask reference_points spatial_shapes level_start_index'
    before = module(**arguments)
    mmdet_ddetr.accelerate(module)
    torch.testing.assert_close(module(*[arguments[name] for name in order.split()]), before, **TOLERANCE)


def test_the_module_stays_what_it_was():
    shared = attention().train().double()
    model = nn.Sequential(shared, nn.Sequential(shared, attention()))
    seen = []
    shared.register_forward_hook(lambda *_: seen.append('hook'))
    parameters = list(model.parameters())
    assert mmdet_ddetr.accelerate(model) == 2
    assert model[0] is shared and model[1][0] is shared
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert shared.training and not model[1][1].training
    assert shared.im2col_step == 64 and shared.norm_cfg is None
    arguments = {k: v.double() if v.is_floating_point() else v for k, v in inputs().items()}
    assert shared(**arguments).dtype == torch.float64
    assert seen == ['hook']


def test_init_weights_afterwards():
    """mmengine initialises after the hook, and mmdet's init_weights finds its attentions by isinstance."""
    theirs = detr('dino/dino-4scale_r50_8xb2-12e_coco.py')
    ours = copy.deepcopy(theirs)
    mmdet_ddetr.accelerate(ours)
    for model in (theirs, ours):
        torch.manual_seed(0)
        model.init_weights()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


class WithOwnInit(MultiScaleDeformableAttention):
    def init_weights(self):
        super().init_weights()
        nn.init.constant_(self.output_proj.bias, 3.0)


class WithOwnForward(MultiScaleDeformableAttention):
    def forward(self, *args, **kwargs):
        return 2 * super().forward(*args, **kwargs)


def test_subclasses(calls):
    model = nn.ModuleList([attention(WithOwnInit), attention(WithOwnForward), MSDeformAttn(16, 2)])
    before = [module(**inputs()) for module in model[:2]]
    calls.clear()
    assert mmdet_ddetr.accelerate(model) == 1
    for module, expected in zip(model, before):
        torch.testing.assert_close(module(**inputs()), expected, **TOLERANCE)
    assert calls == {'ours': 1, 'mmcv': 1}
    assert isinstance(model[0], WithOwnInit) and type(model[1]) is WithOwnForward and type(model[2]) is MSDeformAttn
    model[0].init_weights()
    assert (model[0].output_proj.bias == 3).all()


def test_a_forward_set_on_the_instance_stays():
    module = attention()
    original = module.forward
    module.forward = lambda **kwargs: original(**kwargs) + 1
    assert mmdet_ddetr.accelerate(module) == 0
    torch.testing.assert_close(module(**inputs()), original(**inputs()) + 1)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize('duplicate', [copy.deepcopy, copy.copy, pickled])
@pytest.mark.parametrize('cls', [MultiScaleDeformableAttention, WithOwnInit])
def test_copies_are_accelerated(cls, duplicate, calls):
    module = attention(cls)
    mmdet_ddetr.accelerate(module)
    twin = duplicate(module)
    assert type(twin) is type(module) and mmdet_ddetr.accelerate(twin) == 0
    assert torch.equal(twin(**inputs()), module(**inputs()))
    assert calls == {'ours': 2}


@pytest.mark.slow
def test_compiled_model(calls):
    module = attention()
    compiled = torch.compile(module, backend='eager')
    before = compiled(**inputs())
    assert mmdet_ddetr.accelerate(compiled) == 1
    torch.testing.assert_close(compiled(**inputs()), before, **TOLERANCE)
    assert calls == {'mmcv': 1, 'ours': 1}


def test_distributed_model(calls):
    module = attention()
    before = module(**inputs())
    torch.distributed.init_process_group('gloo', store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(module)
        assert mmdet_ddetr.accelerate(wrapped) == 1
        after = wrapped(**inputs())
        after.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(after, before, **TOLERANCE)
    assert calls == {'mmcv': 1, 'ours': 1}


# --- the device sync ---


class OnDevice(torch.Tensor):
    """A tensor that says it is on a device and counts how often it is read."""

    is_cpu = False
    read = 0

    def tolist(self):
        OnDevice.read += 1
        return super().tolist()


@pytest.fixture
def shapes(monkeypatch):
    monkeypatch.setattr(OnDevice, 'read', 0)
    return torch.tensor([[4, 5], [2, 3]]).as_subclass(OnDevice)


def test_shapes_are_read_once(shapes):
    model = nn.ModuleList([attention(), attention()])
    mmdet_ddetr.accelerate(model)
    for _ in range(2):
        for module in model:
            module(**inputs() | dict(spatial_shapes=shapes))
    assert OnDevice.read == 1
    model[0](**inputs() | dict(spatial_shapes=shapes.clone()))
    assert OnDevice.read == 2  # equal values do not make it the same tensor


def test_modified_shapes_are_read_again(shapes):
    module = attention()
    mmdet_ddetr.accelerate(module)
    module(**inputs() | dict(spatial_shapes=shapes))
    shapes.copy_(torch.tensor([[2, 10], [6, 1]]))
    got = module(**inputs() | dict(spatial_shapes=shapes))
    expected = module(**inputs() | dict(spatial_shapes=[(2, 10), (6, 1)]))
    assert torch.equal(got, expected)
    assert not torch.allclose(got, module(**inputs()))


def test_shapes_without_version_are_read_each_time():
    module = attention()
    mmdet_ddetr.accelerate(module)
    with torch.inference_mode():
        shapes = torch.tensor([[4, 5], [2, 3]]).as_subclass(OnDevice)
        first = module(**inputs() | dict(spatial_shapes=shapes))
        shapes.copy_(torch.tensor([[2, 10], [6, 1]]))
        second = module(**inputs() | dict(spatial_shapes=shapes))
    assert not torch.allclose(first, second)


def test_shapes_are_not_kept_alive():
    shapes = torch.tensor([[4, 5], [2, 3]]).as_subclass(OnDevice)
    module = attention()
    mmdet_ddetr.accelerate(module)
    before = len(acceleration._READ)
    module(**inputs() | dict(spatial_shapes=shapes))
    assert len(acceleration._READ) == before + 1
    del shapes
    assert len(acceleration._READ) == before


# --- the hook ---


class Regression(BaseModel):
    """The smallest model that a Runner trains and tests."""

    def __init__(self):
        super().__init__()
        self.attention = attention()

    def forward(self, query, mode):
        output = self.attention(**inputs() | dict(query=query))
        return {'loss': output.square().mean()} if mode == 'loss' else [output]


class CountBatches(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {'batches': len(results)}


@pytest.fixture
def runner(tmp_path):
    queries = [dict(query=torch.randn(7, 16)) for _ in range(4)]
    data = dict(batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'), dataset=queries)
    return Runner(
        Regression(),
        str(tmp_path),
        train_dataloader=dict(**data, sampler=dict(type='InfiniteSampler')),
        train_cfg=dict(by_epoch=False, max_iters=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        test_dataloader=dict(**data, sampler=dict(type='DefaultSampler', shuffle=False)),
        test_cfg=dict(),
        test_evaluator=CountBatches(),
        custom_hooks=[dict(type='EMAHook'), dict(type='mmdet_ddetr.AccelerateHook')],
        experiment_name=tmp_path.name,
    )


@pytest.fixture
def log(runner):
    """What the hook logs: [(level, message)]."""
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.levelname, record.getMessage()))
    runner.logger.addHandler(handler)
    return lambda: [record for record in records if 'AccelerateHook' in record[1]]


MESSAGE = 'AccelerateHook: 1 MultiScaleDeformableAttention module of mmcv now uses the operator of mmdet_ddetr'


def test_hook_is_registered():
    assert HOOKS.get('AccelerateHook') is AccelerateHook


def test_hook_in_training_then_in_test(runner, log, calls):
    runner.train()
    assert calls == {'ours': 2}
    (averaged,) = (hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook))
    assert mmdet_ddetr.accelerate(averaged) == 0, 'AccelerateHook must come before the hooks that copy the model'
    assert runner.test() == {'batches': 2}
    assert calls == {'ours': 4}
    assert log() == [('INFO', MESSAGE)]  # once: the second run finds nothing to do and nothing to warn of


def test_hook_in_test_alone(runner, log, calls):
    runner.test()
    assert calls == {'ours': 2}
    assert log() == [('INFO', MESSAGE)]


def test_hook_warns_where_nothing_changes(runner, log):
    runner.model.attention = attention(WithOwnForward)
    AccelerateHook().before_run(runner)
    ((level, message),) = log()
    assert level == 'WARNING'
    assert message == (
        'AccelerateHook changed nothing: Regression has no module with the forward of '
        'mmcv.ops.MultiScaleDeformableAttention'
    )


CONFIG = """
_base_ = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
custom_hooks = [dict(type='mmdet_ddetr.AccelerateHook')]

model = dict(
    backbone=dict(depth=18, init_cfg=None),
    neck=dict(in_channels=[128, 256, 512]),
    num_queries=20,
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=2),
    bbox_head=dict(num_classes=5),
    test_cfg=dict(max_per_img=50),
)
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96)),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
dataset = dict(
    data_root='data/shapes/', metainfo=dict(classes=('circle', 'square', 'triangle', 'star', 'ring')), pipeline=pipeline
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(ann_file='annotations/train.json', data_prefix=dict(img='images/train/'), **dataset),
)
val_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(ann_file='annotations/val.json', data_prefix=dict(img='images/val/'), **dataset),
)
val_evaluator = dict(ann_file='data/shapes/annotations/val.json')
test_dataloader, test_evaluator = val_dataloader, val_evaluator
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=2, val_interval=2)
param_scheduler = []
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=2, save_optimizer=False))
log_processor = dict(by_epoch=False)
"""

# What a compiled mmcv is to mmdet's tool: a module that has every operator. mmcv's own path then fails when called.
RUN = """
import importlib.machinery, runpy, sys, types
sys.modules['mmcv._ext'] = ext = types.ModuleType('mmcv._ext')
ext.__spec__ = importlib.machinery.ModuleSpec('mmcv._ext', None)
ext.__getattr__ = lambda name: None
import mmcv.ops.multi_scale_deform_attn
mmcv.ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch = None
assert 'mmdet_ddetr' not in sys.modules
runpy.run_path(sys.argv.pop(1), run_name='__main__')
"""


@pytest.mark.slow
def test_one_line_in_a_config_of_mmdet(workspace):
    """mmdet's own train.py, DINO and the hook; no custom_imports."""
    (workspace / 'dino.py').write_text(CONFIG)
    done = subprocess.run(
        [sys.executable, '-c', RUN, str(MMDET / 'tools/train.py'), 'dino.py', '--work-dir=dino'],
        cwd=workspace,
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    log = done.stdout + done.stderr
    assert 'AccelerateHook: 3 MultiScaleDeformableAttention modules of mmcv now use the operator of mmdet_ddetr' in log
    assert 'Iter(train) [2/2]' in log and 'coco/bbox_mAP' in log
    saved = torch.load(workspace / 'dino/iter_2.pth', weights_only=True)['state_dict']
    plain = Config.fromfile(workspace / 'dino.py').model
    MODELS.build(plain).load_state_dict(saved, strict=True)
