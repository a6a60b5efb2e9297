"""What the detector promises beyond mmdet's: any width, parts swapped by type, levels that fit, one config unharmed."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from mmdet_ddetr import MSDeformAttn, get_config, registry
from mmdet_ddetr.layers import DeformableEncoderLayer
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_dropout


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def config(embed_dims=32, **kwargs):
    cfg = shrink(get_config('deformable-detr-refine-twostage_r50_16xb2-50e_coco').model)
    for stack in (cfg.encoder, cfg.decoder):
        for name, part in stack.layer_cfg.items():
            if name.endswith('_cfg'):
                part.embed_dims = embed_dims
    cfg.neck.out_channels = embed_dims
    cfg.positional_encoding.num_feats = embed_dims // 2
    cfg.bbox_head.num_classes = 3
    cfg.update(kwargs)
    return cfg


@pytest.mark.parametrize('embed_dims', [32, 96])
def test_two_stage_of_any_width(embed_dims):
    """mmdet hard-codes 128 position features, that is 256 channels."""
    model = randomise(MODELS.build(config(embed_dims)))  # the attention ignores positions until it is trained
    assert model.pos_trans_fc.weight.shape == (2 * embed_dims, 2 * embed_dims)
    assert model.bbox_head.embed_dims == embed_dims
    losses = model.train()(*make_batch([(64, 80), (50, 64)], [2, 1], 3), mode='loss')
    assert {'enc_loss_cls', 'enc_loss_bbox', 'enc_loss_iou'} < set(losses)
    sum(losses.values()).backward()
    assert model.memory_trans_fc.weight.grad.any() and model.level_embed.grad.any()


def test_the_encoder_learns_objects_not_classes():
    """The proposals' loss does not change with the labels; the decoder's does."""
    model = without_dropout(MODELS.build(config())).train()
    inputs, samples = make_batch([(64, 80)], [3], 3)
    for sample in samples:
        sample.gt_instances.labels[:] = 0
    first = model(inputs, samples, mode='loss')
    for sample in samples:
        sample.gt_instances.labels[:] = 2
    second = model(inputs, samples, mode='loss')
    assert first['enc_loss_cls'] == second['enc_loss_cls']
    assert first['loss_cls'] != second['loss_cls']


def test_losses_can_be_computed_in_eval_mode():
    """mmdet's two-stage head misses its arguments there."""
    model = MODELS.build(config()).eval()
    with torch.no_grad():
        losses = model(*make_batch([(64, 96)], [1], 3), mode='loss')
    assert 'enc_loss_cls' in losses


def test_parts_are_swapped_by_type():
    class LoudAttn(MSDeformAttn):
        pass

    class LoudLayer(DeformableEncoderLayer):
        pass

    for cls in (LoudAttn, LoudLayer):
        registry.MODELS.register_module(module=cls, force=True)
    cfg = config()
    cfg.encoder.layer_cfg.type = 'mmdet_ddetr.LoudLayer'
    cfg.encoder.layer_cfg.self_attn_cfg.update(type='mmdet_ddetr.LoudAttn', num_levels=4)
    cfg.decoder.layer_cfg.cross_attn_cfg.update(type='mmdet_ddetr.LoudAttn', num_levels=4)
    model = MODELS.build(cfg)
    assert all(type(layer) is LoudLayer and type(layer.self_attn) is LoudAttn for layer in model.encoder.layers)
    assert all(type(layer.cross_attn) is LoudAttn for layer in model.decoder.layers)


def test_levels_follow_the_detector():
    cfg = config(num_feature_levels=3)
    cfg.neck.num_outs = 3
    model = MODELS.build(copy.deepcopy(cfg))
    assert {m.num_levels for m in model.modules() if isinstance(m, MSDeformAttn)} == {3}
    model.train()(*make_batch([(64, 96)], [1], 3), mode='loss')

    cfg.encoder.layer_cfg.self_attn_cfg.num_levels = 4
    with pytest.raises(ValueError, match='self_attn_cfg.num_levels must equal num_feature_levels=3, got 4'):
        MODELS.build(cfg)
    cfg = config(num_feature_levels=3)  # the neck still gives 4
    with pytest.raises(ValueError, match='the neck gives 4 levels, num_feature_levels is 3'):
        MODELS.build(cfg).train()(*make_batch([(64, 96)], [1], 3), mode='loss')


def test_initialisation_follows_the_official_code():
    model = MODELS.build(config())
    torch.manual_seed(0)
    model.init_weights()
    attn = model.encoder.layers[0].self_attn
    assert not attn.sampling_offsets.weight.any() and attn.sampling_offsets.bias.any()
    ffn = model.encoder.layers[0].ffn.layers[0][0].weight  # xavier uniform: within sqrt(6 / (in + out))
    bound = (6 / sum(ffn.shape)) ** 0.5
    assert 0.9 * bound < ffn.abs().max() <= bound
    assert 0.8 < model.level_embed.std() < 1.2
    assert not model.neck.convs[0].conv.bias.any()


def test_one_image_does_not_see_the_other_in_its_batch():
    """Equal images, one of them beside a larger one: the transformer's results are those of the image alone."""
    model = MODELS.build(config()).eval()
    inputs, samples = make_batch([(64, 96), (64, 96)], [1, 1], 3)
    with torch.no_grad():
        both = model(inputs, samples, mode='tensor')
        one = model(inputs[1:], samples[1:], mode='tensor')
    for a, b in zip(both, one, strict=True):
        torch.testing.assert_close(a[:, 1:], b, rtol=1e-5, atol=1e-5)


class Sampled(torch.nn.Module):
    """A backbone that sees nothing beside a pixel: every 8th, 16th and 32nd, widened to the neck's channels."""

    def forward(self, x):  # [B, 3, H, W]
        return tuple(x[:, :, ::s, ::s].repeat(1, -(-c // 3), 1, 1)[:, :c] for s, c in zip((8, 16, 32), (128, 256, 512)))


@pytest.mark.parametrize(
    ('two_stage', 'shapes', 'divisor'),
    [
        (True, [(64, 128), (64, 64)], 1),
        (True, [(128, 192), (88, 97), (71, 201)], 1),  # no multiples of a stride; the tallest is not the widest
        (True, [(100, 75), (33, 41)], 64),
        (False, [(88, 97), (71, 120)], 1),
    ],
)
def test_an_image_gets_the_same_in_any_batch(two_stage, shapes, divisor):
    """All but the backbone: neck with its norms, positions, encoder, top-k, decoder, head."""
    cfg = config(own_maps=True, as_two_stage=two_stage)
    cfg.neck.norm_cfg.num_groups = 8  # a group of a single value has no norm
    model = randomise(MODELS.build(cfg), std=0.1).eval()
    model.backbone = Sampled()
    inputs, samples = make_batch(shapes, [0] * len(shapes), 3)
    H, W = (-(-side // divisor) * divisor for side in inputs.shape[-2:])
    inputs = torch.nn.functional.pad(inputs, (0, W - inputs.shape[-1], 0, H - inputs.shape[-2]), value=5.0)
    for sample in samples:
        sample.set_metainfo(dict(batch_input_shape=(H, W)))
    with torch.no_grad():
        together = model(inputs, samples, mode='tensor')
        for i, (h, w) in enumerate(shapes):
            samples[i].set_metainfo(dict(batch_input_shape=(h, w)))
            alone = model(inputs[i : i + 1, :, :h, :w], samples[i : i + 1], mode='tensor')
            for a, b in zip(together, alone, strict=True):
                torch.testing.assert_close(a[:, i : i + 1], b, rtol=1e-4, atol=1e-4)


def test_own_maps_in_training():
    """Losses and gradients flow through the neck of each image; without padding nothing changes."""
    shapes = [(64, 96), (50, 64)]
    cfg = config(own_maps=True)
    cfg.neck.norm_cfg.num_groups = 8
    model = without_dropout(MODELS.build(cfg)).train()
    losses = model(*make_batch(shapes, [2, 1], 3), mode='loss')
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.neck.parameters())
    equal = make_batch([(64, 96), (64, 96)], [2, 1], 3)
    own = model(*equal, mode='loss')
    model.own_maps = False
    assert own == model(*equal, mode='loss')


@pytest.mark.parametrize('on_padding', [False, True])
def test_no_query_starts_on_padding(on_padding, monkeypatch):
    """Even where padding scores best; the official way, which takes it, is an option."""
    model = MODELS.build(config(proposals_on_padding=on_padding)).eval()
    model.bbox_head.cls_branches[-1].weight.data.zero_()  # all cells score the same
    _, samples = make_batch([(64, 128), (64, 64)], [0, 0], 3)
    feats = tuple(torch.randn(2, 32, H, W) for H, W in [(8, 16), (4, 8), (2, 4), (1, 2)])
    padding, scored = [], []

    def topk(scores, *args, **kwargs):
        scored.append(scores)
        best = scores.sort(1, descending=True)[1][:, : args[0]]
        return None, best

    encoder_inputs, _ = model.pre_transformer(feats, samples)
    padding = encoder_inputs['feat_mask']
    monkeypatch.setattr(torch.Tensor, 'topk', topk)
    model.pre_decoder(**model.forward_encoder(**encoder_inputs))
    assert padding.sum(1).tolist() == [0, 85]  # of 170 cells
    assert scored[0][~padding].unique().numel() == 1
    assert scored[0][padding].isneginf().all() == (not on_padding)


def test_masks_refuse_own_maps():
    cfg = get_config('deformable-detr-masks_r50_8xb2-25e_coco').model
    with pytest.raises(ValueError, match='own_maps must be False'):
        MODELS.build(dict(cfg, own_maps=True))


def test_padding_is_not_seen():
    """What stands in the padding changes nothing behind the neck."""
    model = MODELS.build(config()).eval()
    _, samples = make_batch([(64, 128), (64, 64)], [1, 1], 3)
    shapes = [(8, 16), (4, 8), (2, 4), (1, 2)]
    torch.manual_seed(0)
    feats = [torch.randn(2, 32, H, W) for H, W in shapes]
    noisy = [feat.clone() for feat in feats]
    for feat, (_, W) in zip(noisy, shapes):
        feat[1, :, :, W // 2 :] = 1e3
    with torch.no_grad():
        results = [model.bbox_head(**model.forward_transformer(tuple(f), samples)) for f in (feats, noisy)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a[:, 1], b[:, 1])
        assert torch.isfinite(b).all()
