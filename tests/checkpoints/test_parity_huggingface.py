"""Our models with converted weights against ``transformers``' own, and back; skipped where it is not installed."""

import re

import pytest
import torch
from huggingface import pixel_mask
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from mmdet_ddetr.checkpoints import convert, load_checkpoint
from mmdet_ddetr.checkpoints.coco_classes import IDS
from mmdet_ddetr.checkpoints.files import write
from mmdet_ddetr.testing import make_batch

transformers = pytest.importorskip('transformers')

VARIANTS = {
    'base': {},
    'refine': dict(with_box_refine=True),
    'two-stage': dict(with_box_refine=True, two_stage=True, two_stage_num_proposals=12),
}
SINGLE_SCALE = {'DETR': 'Detr', 'ConditionalDETR': 'ConditionalDetr', 'DABDETR': 'DabDetr'}
SETTINGS = {**VARIANTS, 'DABDETR': dict(num_patterns=3)}
BATCHES = {'padded': [(64, 96), (45, 70)], 'not padded': [(64, 96), (64, 96)]}
TOLERANCE = 1e-5  # of the largest value: sums in another order differ by 3e-6 of it


def assert_close(ours, theirs):
    """(logits, boxes) of either."""
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=0, atol=TOLERANCE * y.abs().max().item())


def their_config(variant, **settings):
    """The config of ``conftest.small_config``; a ``backbone_config`` makes do without timm."""
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[32, 64, 128, 256],
        depths=[3, 4, 6, 3],
        layer_type='bottleneck',
        out_features=['stage4'] if variant in SINGLE_SCALE else ['stage2', 'stage3', 'stage4'],
    )
    kind = getattr(transformers, f'{SINGLE_SCALE.get(variant, "DeformableDetr")}Config')
    width = dict(hidden_size=64) if variant == 'DABDETR' else dict(d_model=64)
    return kind(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        **width,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=12,
        num_labels=91,
        **SETTINGS.get(variant, {}),
        **settings,
    )


def their_class(variant):
    return getattr(transformers, f'{SINGLE_SCALE.get(variant, "DeformableDetr")}ForObjectDetection')


@pytest.fixture(scope='module', params=[*VARIANTS, *SINGLE_SCALE])
def theirs(request, noise):
    """(variant, a model of transformers), random in every parameter and statistic."""
    torch.manual_seed(0)
    return request.param, noise(their_class(request.param)(their_config(request.param))).eval()


def outputs_of_theirs(model, shapes):
    inputs, _ = make_batch(shapes, [0] * len(shapes), 1)
    with torch.no_grad():
        outputs = model(pixel_values=inputs, pixel_mask=pixel_mask(inputs, shapes))
    return outputs.logits, outputs.pred_boxes


def outputs_of_ours(model, shapes):
    with torch.no_grad():
        logits, boxes = model(*make_batch(shapes, [0] * len(shapes), 1), mode='tensor')
    return logits[-1], boxes[-1]


def load(build, variant, state_dict, num_classes):
    model = build(variant, num_classes=num_classes, seed=7)
    model.load_state_dict(state_dict, strict=True)
    return model


@pytest.mark.parametrize(
    'shapes', [BATCHES['padded'], pytest.param(BATCHES['not padded'], marks=pytest.mark.slow)], ids=BATCHES
)
def test_outputs_are_theirs(theirs, build, shapes):
    variant, model = theirs
    logits, boxes = outputs_of_theirs(model, shapes)
    assert logits.std() > 0.5 and boxes.std((0, 1)).max() > 0.002  # something to compare

    all_rows = load(build, variant, convert(model.state_dict(), classes='keep'), 91)
    assert_close(outputs_of_ours(all_rows, shapes), (logits, boxes))

    coco = load(build, variant, convert(model.state_dict()), 80)
    no_object = [91] if variant == 'DETR' else []
    assert_close(outputs_of_ours(coco, shapes), (logits[..., [*IDS, *no_object]], boxes))


@pytest.mark.slow  # a forward pass for each tensor
def test_a_changed_weight_is_seen(theirs, build):
    """The comparison above can fail: every tensor of ours moves an output."""
    variant, model = theirs
    state_dict = convert(model.state_dict(), classes='keep')
    shapes = BATCHES['padded']
    ours = load(build, variant, state_dict, 91)
    logits, boxes = outputs_of_ours(ours, shapes)
    still = []
    own = ours.state_dict(keep_vars=True)
    for name in (key for key in own if re.search(r'neck|decoder\.layers\.1|branches\.1|embed|_fc|trans_norm', key)):
        with torch.no_grad():
            value = own[name].clone()
            own[name] += 0.3 * torch.randn_like(value)
            moved = outputs_of_ours(ours, shapes)
            own[name].copy_(value)
        if all((x - y).abs().max() <= TOLERANCE * y.abs().max() for x, y in zip(moved, (logits, boxes))):
            still.append(name)
    # but the biases of keys, which shift all products of a query alike
    assert [name for name in still if not re.search(r'\.k(content|pos)_proj\.bias$', name)] == []


def test_saved_by_them(theirs, build, tmp_path):
    """The files that ``save_pretrained`` writes; it stores shared tensors once."""
    variant, model = theirs
    if variant in ('refine', 'two-stage') and transformers.__version__.startswith('4.'):
        model.save_pretrained(tmp_path, safe_serialization=False)  # 4.x refuses these as safetensors
    else:
        model.save_pretrained(tmp_path)
        assert (tmp_path / 'model.safetensors').is_file()
    checkpoint = load_checkpoint(tmp_path)
    expected = convert(model.state_dict())
    assert set(checkpoint['state_dict']) == set(expected)
    for key, value in expected.items():
        assert torch.equal(checkpoint['state_dict'][key], value), key
    assert len(checkpoint['meta']['dataset_meta']['classes']) == 80


def test_loaded_by_them(theirs, build, tmp_path):
    """The folder that we write, ``from_pretrained`` reads as it is; its model predicts what ours does."""
    variant, _ = theirs
    ours = build(variant)
    meta = dict(cfg=Config(dict(model=build.config(variant))).pretty_text, dataset_meta=CocoDataset.METAINFO)
    write(dict(state_dict=convert(ours.state_dict(), target='huggingface'), meta=meta), tmp_path, 'huggingface')
    model, info = their_class(variant).from_pretrained(tmp_path, output_loading_info=True)
    assert not info['missing_keys'] and not info['unexpected_keys'] and not info['mismatched_keys']
    assert (model.config.id2label[0], model.config.id2label[90], len(model.config.id2label)) == (
        'N/A',
        'toothbrush',
        91,
    )
    logits, boxes = outputs_of_theirs(model.eval(), BATCHES['padded'])
    no_object = [91] if variant == 'DETR' else []
    assert_close(outputs_of_ours(ours, BATCHES['padded']), (logits[..., [*IDS, *no_object]], boxes))
    scores = logits.softmax(-1) if variant == 'DETR' else logits.sigmoid()
    assert scores[..., sorted(set(range(91)) - set(IDS))].max() == 0  # rows without class never score
