"""Our DETR against mmdet's own and against Hugging Face's, and what it promises beyond them."""

import copy
import os.path as osp

import huggingface
import mmdet
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import save_checkpoint
from mmengine.runner.checkpoint import load_state_dict as mmengine_load_state_dict
from parity import (
    BATCHES,
    NUM_CLASSES,
    QUICK_BATCHES,
    TOLERANCE,
    assert_same_detections,
    assert_same_gradients,
    assert_same_losses,
    assert_same_raw_outputs,
    losses_and_gradients,
    without_gradient,
)
from torch import nn

from mmdet_ddetr import get_config, registry
from mmdet_ddetr.checkpoints import convert
from mmdet_ddetr.layers import DetrEncoderLayer, MultiheadAttention
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_dropout

FOCAL = dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0)


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def mmdet_config(name='detr_r50_8xb2-150e_coco.py'):
    return Config.fromfile(osp.join(osp.dirname(mmdet.__file__), '.mim/configs/detr', name)).model


def as_ours(model_cfg):
    """The config with two type names changed and nothing else."""
    model_cfg = copy.deepcopy(model_cfg)
    model_cfg.type, model_cfg.bbox_head.type = 'mmdet_ddetr.DETR', 'mmdet_ddetr.SetHead'
    return model_cfg


def small_config(**kwargs):
    cfg = shrink(get_config('detr_r50_16xb4-500e_coco').model)
    for part in (cfg.encoder.layer_cfg, cfg.decoder.layer_cfg):
        for name in ('self_attn_cfg', 'cross_attn_cfg', 'ffn_cfg'):
            if name in part:
                part[name].embed_dims = 32
        part.ffn_cfg.feedforward_channels = 64
    cfg.neck.out_channels = 32
    cfg.positional_encoding.num_feats = 16
    cfg.bbox_head.num_classes = NUM_CLASSES
    cfg.update(kwargs)
    return cfg


# ------------------------------------------------------------------ mmdet


@pytest.fixture(scope='module', params=['softmax', 'focal'])
def pair(request):
    """(mmdet's model, ours), built from mmdet's config, equal weights."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    theirs_cfg = shrink(mmdet_config())
    theirs_cfg.bbox_head.num_classes = NUM_CLASSES
    if request.param == 'focal':  # the loss of DETR-DC5+
        theirs_cfg.bbox_head.loss_cls = dict(FOCAL)
        theirs_cfg.train_cfg.assigner.match_costs[0] = dict(type='FocalLossCost', weight=2.0)
    ours_cfg = as_ours(theirs_cfg)
    before = copy.deepcopy(ours_cfg)
    theirs = MODELS.build(theirs_cfg)
    theirs.init_weights()
    randomise(theirs)
    randomise(theirs.bbox_head.fc_cls, std=0.1, seed=1)  # scores far enough apart to compare their order
    MODELS.build(ours_cfg)
    ours = MODELS.build(ours_cfg)  # a second time from the same config, where mmdet fails
    assert ours_cfg == before, 'building a model changed its config'
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return without_dropout(theirs), without_dropout(ours)


@pytest.fixture(params=QUICK_BATCHES)
def batch(request):
    return make_batch(*BATCHES[request.param], NUM_CLASSES)


HEAD_NAMES = {
    'fc_cls': 'cls_branches.0',
    'reg_ffn.layers.0.0': 'reg_branches.0.0',
    'reg_ffn.layers.1': 'reg_branches.0.2',
    'fc_reg': 'reg_branches.0.4',
}


def our_name(name):
    for theirs, ours in HEAD_NAMES.items():
        name = name.replace(f'bbox_head.{theirs}.', f'bbox_head.{ours}.')
    return name


def test_losses_and_gradients(pair, batch):
    (theirs, their_gradients), (ours, our_gradients) = (losses_and_gradients(model, batch) for model in pair)
    assert list(ours) == list(theirs)
    assert_same_losses(ours, theirs)
    their_gradients = {our_name(name): gradient for name, gradient in their_gradients.items()}
    assert set(our_gradients) == set(their_gradients)
    assert_same_gradients(our_gradients, their_gradients)


def test_raw_outputs(pair, batch):
    theirs, ours = pair
    assert_same_raw_outputs(ours, theirs, batch)


def test_detections(pair, batch):
    theirs, ours = pair
    kept = 15  # below the number of queries: mmdet's top-k fails beyond it
    for model in pair:
        model.bbox_head.test_cfg = dict(max_per_img=kept)
    assert_same_detections(ours, theirs, batch, count=kept, more_than=5, last_may_swap=True)


def test_every_parameter_counts(pair):
    """The comparisons above can fail: every parameter that is trained gets a gradient."""
    _, ours = pair
    assert without_gradient(ours, make_batch(*BATCHES['padded, one image empty'], NUM_CLASSES)) == []


def test_mmengine_loads_mmdets_names_too(pair):
    theirs, ours = pair
    fresh = MODELS.build(as_ours(shrink(mmdet_config())))
    for model in (theirs, ours):
        fresh.bbox_head = copy.deepcopy(ours.bbox_head)
        for parameter in fresh.parameters():
            nn.init.zeros_(parameter)
        mmengine_load_state_dict(fresh, model.state_dict(), strict=True)
        for name, tensor in ours.state_dict().items():
            assert torch.equal(fresh.state_dict()[name], tensor), name


def test_full_size_state_dict():
    """mmdet's own config, nothing made smaller: same shapes, same parameter count."""
    cfg = mmdet_config()
    theirs, ours = MODELS.build(copy.deepcopy(cfg)), MODELS.build(as_ours(cfg))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    state = theirs.state_dict()
    state['bbox_head.fc_other.weight'] = torch.zeros(1)
    with pytest.raises(RuntimeError, match='bbox_head.fc_other.weight'):
        ours.load_state_dict(state)
    del state['bbox_head.fc_other.weight'], state['bbox_head.fc_cls.bias']
    with pytest.raises(RuntimeError, match='bbox_head.cls_branches.0.bias'):
        ours.load_state_dict(state)


# ----------------------------------------------------------- Hugging Face


def test_parity_with_hugging_face():
    """Random weights, a padded batch: final logits and boxes, and the losses of the last layer."""
    transformers = pytest.importorskip('transformers')
    config = huggingface.detr_config(NUM_CLASSES, ['stage4'], d_model=32)
    theirs = transformers.DetrForObjectDetection(config).eval()
    for parameter in theirs.parameters():  # its initial weights are so small that all queries answer alike
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    nn.init.normal_(theirs.model.query_position_embeddings.weight)
    randomise(theirs, std=0.05)
    rng = torch.Generator().manual_seed(0)
    for name, buffer in theirs.named_buffers():
        if name.endswith(('running_var', 'normalization.weight')):
            buffer.uniform_(0.5, 1.5, generator=rng)
        elif name.endswith(('running_mean', 'normalization.bias')):
            buffer.uniform_(-0.2, 0.2, generator=rng)
    ours = MODELS.build(small_config()).eval()
    missing, unexpected = ours.load_state_dict(convert(theirs.state_dict(), classes='keep'), strict=False)
    assert unexpected == [] and all(name.endswith('num_batches_tracked') for name in missing)

    inputs, samples = make_batch([(128, 160), (96, 121)], [3, 2], NUM_CLASSES)
    with torch.no_grad():
        expected = theirs(**huggingface.batch(inputs, samples))
        logits, boxes = ours(inputs, samples, mode='tensor')
        losses = ours(inputs, samples, mode='loss')
    assert logits[-1].std() > 0.1 and boxes[-1].std(1).max() > 0.01, 'outputs that say nothing'
    torch.testing.assert_close(logits[-1], expected.logits, **TOLERANCE)
    torch.testing.assert_close(boxes[-1], expected.pred_boxes, **TOLERANCE)
    for name, weight in dict(loss_ce=1.0, loss_bbox=5.0, loss_giou=2.0).items():
        ours_name = dict(loss_ce='loss_cls', loss_giou='loss_iou').get(name, name)
        torch.testing.assert_close(losses[ours_name], weight * expected.loss_dict[name], **TOLERANCE)


# --------------------------------------------------------- what is promised


def test_more_detections_asked_for_than_queries():
    """mmdet's top-k fails here."""
    model = MODELS.build(small_config()).eval()  # 20 queries, max_per_img 100
    inputs, samples = make_batch([(64, 96)], [1], NUM_CLASSES)
    (result,) = model(inputs, samples, mode='predict')
    assert len(result.pred_instances) == 20


def test_initialisation_follows_the_official_code():
    """Xavier in the transformer; projection, heads and queries as PyTorch makes them."""
    model = MODELS.build(small_config())
    torch.manual_seed(0)
    model.init_weights()
    for coder in (model.encoder, model.decoder):
        for name, parameter in coder.named_parameters():
            if parameter.dim() > 1:
                bound = (6 / sum(parameter.shape)) ** 0.5
                assert 0.95 * bound < parameter.abs().max() <= bound, name
    for layer in (model.neck.convs[0].conv, model.bbox_head.cls_branches[0], model.bbox_head.reg_branches[0][-1]):
        bound = layer.weight[0].numel() ** -0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert 0 < layer.bias.abs().max() <= bound
    assert 0.9 < model.query_embedding.weight.std() < 1.1

    cfg = small_config()
    cfg.bbox_head.loss_cls = dict(FOCAL)
    model = MODELS.build(cfg)
    model.init_weights()
    torch.testing.assert_close(model.bbox_head.cls_branches[0].bias.sigmoid(), torch.full((NUM_CLASSES,), 0.01))
    assert model.bbox_head.reg_branches[0][-1].weight.any()


def test_weights_of_the_whole_detector_stay(tmp_path):
    """mmdet overwrites the transformer of a checkpoint given as ``init_cfg`` with fresh weights."""
    source = randomise(MODELS.build(small_config()))
    path = str(tmp_path / 'detr.pth')
    save_checkpoint(dict(state_dict=source.state_dict()), path)
    model = MODELS.build(small_config(init_cfg=dict(type='Pretrained', checkpoint=path)))
    model.init_weights()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_the_class_normaliser_is_averaged_over_ranks_only_for_a_sigmoid_loss():
    head = small_config().bbox_head
    assert MODELS.build(head).sync_cls_avg_factor is False
    assert MODELS.build({**head, 'loss_cls': FOCAL}).sync_cls_avg_factor is True
    assert MODELS.build({**head, 'sync_cls_avg_factor': True}).sync_cls_avg_factor is True


def test_parts_are_swapped_by_type():
    class SwappedAttention(MultiheadAttention):
        pass

    class SwappedLayer(DetrEncoderLayer):
        pass

    for cls in (SwappedAttention, SwappedLayer):
        registry.MODELS.register_module(module=cls, force=True)
    cfg = small_config()
    cfg.encoder.layer_cfg.type = 'mmdet_ddetr.SwappedLayer'
    cfg.decoder.layer_cfg.cross_attn_cfg.type = 'mmdet_ddetr.SwappedAttention'
    model = MODELS.build(cfg)
    assert all(type(layer) is SwappedLayer for layer in model.encoder.layers)
    assert all(type(layer.cross_attn) is SwappedAttention for layer in model.decoder.layers)
    assert not any(type(layer.self_attn) is SwappedAttention for layer in model.decoder.layers)


def test_one_feature_map():
    cfg = small_config()
    cfg.backbone.out_indices = (2, 3)
    cfg.neck.update(in_channels=[256, 512], num_outs=2)
    model = MODELS.build(cfg).eval()
    with pytest.raises(ValueError, match='the neck gives 2 feature maps, DETR reads one'):
        model(*make_batch([(64, 96)], [1], NUM_CLASSES), mode='tensor')


def test_padding_is_not_seen():
    """What stands in the padding changes nothing behind the neck."""
    model = MODELS.build(small_config()).eval()
    _, samples = make_batch([(64, 256), (64, 128)], [1, 1], NUM_CLASSES)
    feat = torch.randn(2, 32, 2, 8)
    noisy = feat.clone()
    noisy[1, :, :, 4:] = 1e3
    with torch.no_grad():
        results = [model.bbox_head(**model.forward_transformer((x,), samples)) for x in (feat, noisy)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
        assert not torch.allclose(b[:, 0], b[:, 1])


def test_autocast():
    """16-bit attention, fp32 losses and boxes."""
    model = without_dropout(MODELS.build(small_config()))
    model.init_weights()
    inputs, samples = make_batch([(64, 96), (50, 64)], [2, 1], NUM_CLASSES)
    expected = model.train()(inputs, samples, mode='loss')
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(inputs, samples, mode='loss')
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # bf16 keeps 8 bits: 1 % a rounding, and one query may change its target
        torch.testing.assert_close(loss, expected[name], rtol=0.1, atol=0.05, msg=lambda m, n=name: f'{n}: {m}')
