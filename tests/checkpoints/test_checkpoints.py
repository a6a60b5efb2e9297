"""The layouts: names, heads, classes and what each side has alone, against lists written by hand."""

import re
from pathlib import Path

import pytest
import torch

from mmdet_ddetr.checkpoints import CheckpointError, ConversionReport, adopt, convert, describe, find_layout
from mmdet_ddetr.checkpoints.coco_classes import IDS
from mmdet_ddetr.checkpoints.huggingface_folder import make_configs
from mmdet_ddetr.checkpoints.layouts import LAYOUTS, NAMES, NATIVE, TARGETS

MODELS = ['base', 'refine', 'two-stage', 'two-stage without refine', 'DETR']

CONDITIONAL = ['ConditionalDETR', 'DABDETR', 'DABDeformableDETR', 'two-stage DABDeformableDETR']

# Our names in the words of the others: patterns and replacements, applied in this order.
RESNET_D2 = [
    (r'^backbone\.(conv1|bn1)', r'backbone.stem.\1'),
    (r'^backbone\.layer(\d)', lambda m: f'backbone.res{int(m[1]) + 1}'),
    (r'^(backbone\..*)bn(\d)', r'\1conv\2.norm'),
    (r'downsample\.0', 'shortcut'),
    (r'downsample\.1', 'shortcut.norm'),
]
OFFICIAL = [
    (r'^backbone\.', 'backbone.0.body.'),
    (r'^neck\.convs\.(\d)\.conv', r'input_proj.\1.0'),
    (r'^neck\.convs\.(\d)\.gn', r'input_proj.\1.1'),
    (r'^neck\.extra_convs\.0\.conv', 'input_proj.3.0'),
    (r'^neck\.extra_convs\.0\.gn', 'input_proj.3.1'),
    (r'^query_embedding', 'query_embed'),
    (r'^reference_points_fc', 'transformer.reference_points'),
    (r'^memory_trans_fc', 'transformer.enc_output'),
    (r'^memory_trans_norm', 'transformer.enc_output_norm'),
    (r'^pos_trans_fc', 'transformer.pos_trans'),
    (r'^(level_embed|pos_trans_norm|encoder|decoder)', r'transformer.\1'),
    (r'ffn\.layers\.0\.0', 'linear1'),
    (r'ffn\.layers\.1', 'linear2'),
    (r'^bbox_head\.cls_branches', 'class_embed'),
    (r'^bbox_head\.reg_branches\.(\d)\.(\d)', lambda m: f'bbox_embed.{m[1]}.layers.{int(m[2]) // 2}'),
    (r'decoder\.(layers\.\d\.self_attn)\.attn', r'decoder.\1'),
]
RENAMES = {
    ('official', 'DeformableDETR'): [
        *OFFICIAL,
        (r'encoder\.layers\.(\d)\.norms\.0', r'encoder.layers.\1.norm1'),
        (r'encoder\.layers\.(\d)\.norms\.1', r'encoder.layers.\1.norm2'),
        (r'decoder\.layers\.(\d)\.norms\.0', r'decoder.layers.\1.norm2'),
        (r'decoder\.layers\.(\d)\.norms\.1', r'decoder.layers.\1.norm1'),
        (r'decoder\.layers\.(\d)\.norms\.2', r'decoder.layers.\1.norm3'),
    ],
    ('official', 'DETR'): [
        (r'^neck\.convs\.0\.conv', 'input_proj'),
        *OFFICIAL,
        (r'norms\.(\d)', lambda m: f'norm{int(m[1]) + 1}'),
        (r'encoder\.(layers\.\d\.self_attn)\.attn', r'encoder.\1'),
        (r'cross_attn\.attn', 'multihead_attn'),
        (r'post_norm', 'norm'),
        (r'^(class|bbox)_embed\.0', r'\1_embed'),
        (r'^(class|bbox)_embed\.\d.*', '-'),
    ],
    ('mmdet2', 'DeformableDETR'): [
        (r'^(encoder|decoder)', r'bbox_head.transformer.\1'),
        (r'^level_embed', 'bbox_head.transformer.level_embeds'),
        (r'^query_embedding', 'bbox_head.query_embedding'),
        (r'^reference_points_fc', 'bbox_head.transformer.reference_points'),
        (r'^memory_trans_fc', 'bbox_head.transformer.enc_output'),
        (r'^memory_trans_norm', 'bbox_head.transformer.enc_output_norm'),
        (r'^pos_trans_fc', 'bbox_head.transformer.pos_trans'),
        (r'^pos_trans_norm', 'bbox_head.transformer.pos_trans_norm'),
        (r'self_attn', 'attentions.0'),
        (r'cross_attn', 'attentions.1'),
        (r'\.ffn\.', '.ffns.0.'),
        (r'neck.*conv\.bias', '-'),
    ],
    ('mmdet2', 'DETR'): [
        (r'^(encoder|decoder)', r'bbox_head.transformer.\1'),
        (r'^query_embedding', 'bbox_head.query_embedding'),
        (r'^neck\.convs\.0\.conv', 'bbox_head.input_proj'),
        (r'self_attn', 'attentions.0'),
        (r'cross_attn', 'attentions.1'),
        (r'\.ffn\.', '.ffns.0.'),
        (r'cls_branches\.0', 'fc_cls'),
        (r'reg_branches\.0\.0', 'reg_ffn.layers.0.0'),
        (r'reg_branches\.0\.2', 'reg_ffn.layers.1'),
        (r'reg_branches\.0\.4', 'fc_reg'),
        (r'.*_branches\..*', '-'),
    ],
    ('mmdet', 'DETR'): [
        (r'cls_branches\.0', 'fc_cls'),
        (r'reg_branches\.0\.0', 'reg_ffn.layers.0.0'),
        (r'reg_branches\.0\.2', 'reg_ffn.layers.1'),
        (r'reg_branches\.0\.4', 'fc_reg'),
        (r'.*_branches\..*', '-'),
    ],
    ('detrex', 'DeformableDETR'): [
        *RESNET_D2,
        (r'^(neck.*)\.gn', r'\1.norm'),
        (r'^(encoder|decoder|level_embed|pos_trans_norm)', r'transformer.\1'),
        (r'level_embed', 'level_embeds'),
        (r'^reference_points_fc', 'transformer.reference_points'),
        (r'^memory_trans_fc', 'transformer.enc_output'),
        (r'^memory_trans_norm', 'transformer.enc_output_norm'),
        (r'^pos_trans_fc', 'transformer.pos_trans'),
        (r'self_attn', 'attentions.0'),
        (r'cross_attn', 'attentions.1'),
        (r'\.ffn\.', '.ffns.0.'),
        (r'^bbox_head\.cls_branches', 'class_embed'),
        (r'^bbox_head\.reg_branches\.(\d)\.(\d)', lambda m: f'bbox_embed.{m[1]}.layers.{int(m[2]) // 2}'),
    ],
    ('detrex', 'DETR'): [
        *RESNET_D2,
        (r'^neck\.convs\.0\.conv', 'input_proj'),
        (r'^(encoder|decoder)', r'transformer.\1'),
        (r'^query_embedding', 'query_embed'),
        (r'self_attn', 'attentions.0'),
        (r'cross_attn', 'attentions.1'),
        (r'\.ffn\.', '.ffns.0.'),
        (r'post_norm', 'post_norm_layer'),
        (r'^bbox_head\.cls_branches\.0', 'class_embed'),
        (r'^bbox_head\.reg_branches\.0\.(\d)', lambda m: f'bbox_embed.layers.{int(m[1]) // 2}'),
        (r'.*_branches\..*', '-'),
    ],
}


SIDE_BY_SIDE = [  # the attentions of Conditional DETR and DAB-DETR
    (r'decoder\.layers\.(\d)\.self_attn\.(\w+)_proj', lambda m: f'decoder.layers.{m[1]}.sa_{m[2]}_proj'),
    (r'decoder\.layers\.(\d)\.cross_attn\.(\w+)_proj', lambda m: f'decoder.layers.{m[1]}.ca_{m[2]}_proj'),
    (r'sa_out_proj', 'self_attn.out_proj'),
    (r'ca_out_proj', 'cross_attn.out_proj'),
]
IN_WORDS = [
    (r'\.qpos_sine_proj', '.query_pos_sine_proj'),
    (r'\.q(content|pos)_proj', r'.query_\1_proj'),
    (r'\.k(content|pos)_proj', r'.key_\1_proj'),
    (r'\.v_proj', '.value_proj'),
]
RENAMES['official', 'ConditionalDETR'] = [*SIDE_BY_SIDE, *RENAMES['official', 'DETR']]
RENAMES['official', 'DABDETR'] = [
    (r'^query_embedding', 'refpoint_embed'),
    (r'^patterns', 'transformer.patterns'),
    (r'ffn\.layers\.0\.1\.weight', 'activation.weight'),
    *RENAMES['official', 'ConditionalDETR'],
]
RENAMES['mmdet', 'ConditionalDETR'] = RENAMES['mmdet', 'DETR']
RENAMES['mmdet', 'DABDETR'] = [
    (r'cls_branches\.0', 'fc_cls'),
    (r'reg_branches\.0\.(\d)', lambda m: f'fc_reg.layers.{int(m[1]) // 2}'),
    (r'.*_branches\..*', '-'),
]
RENAMES['detrex', 'ConditionalDETR'] = [*IN_WORDS, *RENAMES['detrex', 'DETR']]
RENAMES['detrex', 'DABDETR'] = [
    (r'^query_embedding', 'anchor_box_embed'),
    (r'^patterns', 'transformer.patterns'),
    *RENAMES['detrex', 'ConditionalDETR'],
]
for code in ('official', 'detrex'):
    RENAMES[code, 'DABDeformableDETR'] = [
        (r'^query_embedding', 'refpoint_embed'),
        (r'^content_embedding', 'tgt_embed'),
        (r'^patterns', 'patterns_embed'),
        *RENAMES[code, 'DeformableDETR'],
    ]


def renamed(state_dict, renames):
    """A state_dict under other names; '-' drops a key."""
    result = {}
    for key, value in state_dict.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        if key != '-':
            result[key] = value
    return result


def assert_equal(ours, expected):
    assert set(ours) == set(expected)
    for key, value in expected.items():
        assert torch.equal(ours[key], value), key


def without_neck_bias(state_dict):
    """Weights of a model whose neck has the biases 0, which MMDetection does without."""
    return {
        key: torch.zeros_like(value) if re.fullmatch(r'neck.*gn.*|neck.*conv\.bias', key) and 'bias' in key else value
        for key, value in state_dict.items()
    }


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('variant', MODELS)
@pytest.mark.parametrize('name', ['official', 'mmdet', 'mmdet2', 'detrex'])
def test_names_of_other_code_bases(build, name, variant):
    architecture = 'DETR' if variant == 'DETR' else 'DeformableDETR'
    expected = without_neck_bias(build(variant).state_dict()) if name == 'mmdet2' else build(variant).state_dict()
    theirs = renamed(expected, RENAMES.get((name, architecture), []))
    if (name, architecture) == ('mmdet', 'DeformableDETR'):
        name = 'mmdet_ddetr'  # the same keys
    assert (find_layout(theirs).name, find_layout(theirs).architecture) == (name, architecture)
    ours = convert(theirs, classes='keep')
    assert_equal(ours, expected)
    assert list(build(variant, seed=1).load_state_dict(ours, strict=True)) == [[], []]


@pytest.mark.parametrize('variant', CONDITIONAL)
@pytest.mark.parametrize('name', ['official', 'mmdet', 'detrex'])
def test_names_of_conditional_and_dab_detr(build, name, variant):
    """Both ways; a second name of the box branch, which some models keep, is no loss."""
    architecture = variant.removeprefix('two-stage ')
    if (name, architecture) not in RENAMES:
        pytest.skip('MMDetection has none')
    if (name, variant) == ('official', 'two-stage DABDeformableDETR'):
        pytest.skip('the official one does not run')
    expected = build(variant).state_dict()
    theirs = renamed(expected, RENAMES[name, architecture])
    assert (find_layout(theirs).name, find_layout(theirs).architecture) == (name, architecture)
    assert_equal(convert(theirs, classes='keep'), expected)
    written = convert(expected, target=name, classes='keep')
    aliases = {key for key in written if re.match(r'transformer\.decoder\.(bbox|class)_embed', key)}
    assert bool(aliases) == (architecture != 'ConditionalDETR' and name != 'mmdet')
    if name != 'mmdet':
        theirs = {key: value for key, value in theirs.items() if 'num_batches_tracked' not in key}
    assert_equal({key: value for key, value in written.items() if key not in aliases}, theirs)


@pytest.mark.parametrize('variant', MODELS)
@pytest.mark.parametrize('target', ['mmdet', 'detrex'])
def test_round_trip_of_further_targets(build, variant, target):
    expected = build(variant).state_dict()
    assert_equal(convert(convert(expected, target=target)), expected)
    if target == 'mmdet' and variant != 'DETR':  # whose neck has no biases, zeros being none
        written = convert(without_neck_bias(expected), target=target)
        assert not any(re.fullmatch(r'neck.*conv\.bias', key) for key in written)


@pytest.mark.parametrize('variant', ['base', 'DETR'])
def test_a_neck_of_ones_own(build, variant):
    """More levels, a norm: ours all the same, though no other code base has it."""
    weights = dict(build(variant).state_dict())
    weights |= {
        f'neck.{part}.weight': torch.ones(2) for part in ('convs.0.gn', 'extra_convs.1.conv', 'extra_convs.1.gn')
    }
    weights['neck.extra_convs.1.conv.bias'] = torch.ones(2)
    assert find_layout(weights).name == 'mmdet_ddetr'
    assert convert(weights).keys() == weights.keys()
    with pytest.raises(CheckpointError, match=r'have no counterpart there: neck\.'):
        convert(weights, target='official')


def test_first_releases_of_mmdet2(build):
    """The names in MMDetection's published DETR of 2020."""
    expected = build('DETR').state_dict()
    old = [(r'attentions\.0', 'self_attn'), (r'attentions\.1', 'multihead_attn'), (r'ffns\.0', 'ffn')]
    old += [('decoder.post_norm', 'decoder.norm')]
    theirs = renamed(expected, RENAMES['mmdet2', 'DETR'] + old)
    assert 'bbox_head.transformer.decoder.layers.0.multihead_attn.attn.in_proj_weight' in theirs
    assert 'bbox_head.reg_ffn.layers.0.0.weight' in theirs
    assert_equal(convert(theirs), expected)


def test_timm_and_transformers_backbones(build):
    """The two kinds of names that a ResNet has on the hub."""
    expected = build('base').state_dict()
    theirs = convert(expected, target='huggingface')
    assert 'model.backbone.conv_encoder.model.encoder.stages.1.layers.0.shortcut.normalization.running_var' in theirs
    prefix = re.escape('model.backbone.conv_encoder.model.')
    timm = [
        (r'embedder\.embedder\.convolution', 'conv1'),
        (r'embedder\.embedder\.normalization', 'bn1'),
        (r'shortcut\.convolution', 'downsample.0'),
        (r'shortcut\.normalization', 'downsample.1'),
        (r'layer\.(\d)\.convolution', lambda m: f'conv{int(m[1]) + 1}'),
        (r'layer\.(\d)\.normalization', lambda m: f'bn{int(m[1]) + 1}'),
        (r'encoder\.stages\.(\d)\.layers', lambda m: f'layer{int(m[1]) + 1}'),
    ]
    assert 'model.backbone.conv_encoder.model.layer2.0.downsample.1.running_var' in renamed(theirs, timm)
    assert_equal(convert(renamed(theirs, timm)), expected)
    since_5 = [
        (prefix, 'model.backbone.model.'),
        (r'self_attn\.out_proj', 'self_attn.o_proj'),
        (r'\.(fc\d)', r'.mlp.\1'),
    ]
    assert_equal(convert(renamed(theirs, since_5)), expected)


def resnet50_keys(prefix):
    """Names in torchvision's ResNet-50 with frozen batch norms."""
    keys = [f'{prefix}conv1.weight', *norm(f'{prefix}bn1')]
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            name = f'{prefix}layer{layer}.{block}'
            for i in (1, 2, 3):
                keys += [f'{name}.conv{i}.weight', *norm(f'{name}.bn{i}')]
            if block == 0:
                keys += [f'{name}.downsample.0.weight', *norm(f'{name}.downsample.1')]
    return keys


def norm(name):
    return [f'{name}.{part}' for part in ('weight', 'bias', 'running_mean', 'running_var')]


def linear(*names):
    return [f'{name}.{part}' for name in names for part in ('weight', 'bias')]


def official_keys(refine, two_stage, num_layers=6):
    """Names in a checkpoint of fundamentalvision/Deformable-DETR."""
    keys = resnet50_keys('backbone.0.body.')
    keys += linear(*(f'input_proj.{level}.{part}' for level in range(4) for part in (0, 1)))
    deform = ('sampling_offsets', 'attention_weights', 'value_proj', 'output_proj')
    for i in range(num_layers):
        layer = f'transformer.encoder.layers.{i}'
        keys += linear(*(f'{layer}.self_attn.{part}' for part in deform))
        keys += linear(*(f'{layer}.{part}' for part in ('norm1', 'linear1', 'linear2', 'norm2')))
        layer = f'transformer.decoder.layers.{i}'
        keys += linear(*(f'{layer}.cross_attn.{part}' for part in deform), f'{layer}.self_attn.out_proj')
        keys += [f'{layer}.self_attn.in_proj_weight', f'{layer}.self_attn.in_proj_bias']
        keys += linear(*(f'{layer}.{part}' for part in ('norm1', 'norm2', 'linear1', 'linear2', 'norm3')))
    keys.append('transformer.level_embed')
    parts = ('enc_output', 'enc_output_norm', 'pos_trans', 'pos_trans_norm') if two_stage else ('reference_points',)
    keys += linear(*(f'transformer.{part}' for part in parts))
    keys += [] if two_stage else ['query_embed.weight']
    box = [f'bbox_embed.{o}.layers.{i}' for o in range(num_layers + two_stage) for i in range(3)]
    classes = [f'class_embed.{o}' for o in range(num_layers + two_stage)]
    keys += linear(*box, *classes)
    keys += linear(*(f'transformer.decoder.{name}' for name in box)) if refine else []
    keys += linear(*(f'transformer.decoder.{name}' for name in classes)) if two_stage else []
    return keys


@pytest.mark.parametrize(
    ('variant', 'refine', 'two_stage', 'count'),
    [('base', False, False, 561), ('refine', True, False, 597), ('two-stage', True, True, 630)],
)
def test_official_key_set(build, variant, refine, two_stage, count):
    """The published checkpoints have so many keys; ours become exactly theirs."""
    assert len(official_keys(refine, two_stage)) == count
    theirs = convert(build(variant).state_dict(), target='official')
    assert sorted(theirs) == sorted(official_keys(refine, two_stage, num_layers=2))


@pytest.mark.parametrize('target', ['official', 'huggingface'])
@pytest.mark.parametrize('variant', MODELS)
def test_round_trip_is_exact(build, variant, target):
    model = build(variant)
    if variant in ('base', 'two-stage without refine'):
        assert len({id(branch) for branch in model.bbox_head.reg_branches}) == 1
    ours = model.state_dict()
    theirs = convert(ours, target=target)
    rows = {len(value) for key, value in theirs.items() if key.startswith('class_') and key.endswith('weight')}
    assert rows == ({92} if variant == 'DETR' else {91})
    assert not any('num_batches_tracked' in key for key in theirs)
    assert_equal(convert(theirs), ours)
    assert_equal(convert(convert(theirs, target='huggingface', classes='keep'), target=target), theirs)


def test_conversion_between_foreign_layouts(build):
    """official -> huggingface keeps the rows of unused ids, which no way through 80 classes could."""
    theirs = convert(build('two-stage', num_classes=91).state_dict(), target='official')
    back = convert(convert(theirs, target='huggingface'), target='official')
    assert_equal(back, theirs)
    assert back['class_embed.0.bias'][[0, 12, 83]].abs().max() < 10  # not refilled


def test_copies_that_files_leave_out(build):
    """safetensors stores a shared tensor once, under any of its names."""
    expected = build('base').state_dict()
    theirs = convert(expected, target='huggingface')
    shared = [key for key in theirs if re.match(r'(class|bbox)_embed\.[1-9]', key)]
    assert len(shared) == 8
    report = ConversionReport()
    assert_equal(convert({k: v for k, v in theirs.items() if k not in shared}, report=report), expected)
    assert sum('branches' in key for key in report.added) == 8

    expected = build('two-stage').state_dict()
    theirs = convert(expected, target='huggingface')
    only_aliases = {k: v for k, v in theirs.items() if not k.startswith(('class_embed', 'bbox_embed'))}
    assert len(only_aliases) < len(theirs)
    assert_equal(convert(only_aliases), expected)


def test_wrapped_checkpoints(build):
    ours = build('refine').state_dict()
    for wrapped in (
        {'model': {f'module.{key}': value for key, value in convert(ours, target='official').items()}, 'epoch': 49},
        {'state_dict': ours, 'meta': {}},
    ):
        assert_equal(convert(wrapped), ours)
    checkpoint = {'state_dict': ours, 'meta': {}}
    assert adopt(checkpoint, build('base')) is checkpoint  # ours already
    with pytest.raises(CheckpointError, match='no known layout: none of the 1 keys'):
        adopt({'state_dict': {'fc.weight': torch.zeros(1)}}, build('base'))


def test_weights_with_the_names_of_the_model_are_left_alone(build):
    """A DETR of MMDetection's takes MMDetection's weights, and a backbone's alone are of no layout."""
    theirs = renamed(build('DETR').state_dict(), RENAMES['mmdet', 'DETR'])
    detr = torch.nn.Module()
    detr.state_dict = lambda: theirs
    checkpoint = {'state_dict': dict(theirs)}
    assert adopt(checkpoint, detr) is checkpoint
    assert adopt(checkpoint, build('DETR')) is not checkpoint
    backbone = {'state_dict': {'backbone.conv1.weight': torch.zeros(1), 'fc.weight': torch.zeros(1)}}
    assert adopt(backbone, build('DETR')) is backbone


def test_mmdet_neck_without_bias(build):
    """A missing bias is a bias of zero: added for our models, the official codes and the hub."""
    ours = build('base').state_dict()
    zoo = {key: value for key, value in ours.items() if not re.fullmatch(r'neck.*conv\.bias', key)}
    assert len(ours) - len(zoo) == 4
    report = ConversionReport()
    completed = convert(zoo, report=report)
    assert set(completed) == set(ours)
    assert sum('the same as none' in why for why in report.added.values()) == 4
    assert not any(completed[key].any() for key in set(ours) - set(zoo))
    assert not convert(zoo, target='official')['input_proj.3.0.bias'].any()


def test_report(build):
    ours = build('two-stage').state_dict()
    report = ConversionReport()
    convert(ours, target='official', report=report)
    assert len(report.dropped) == 53
    assert len(report.added) == 3 * 6 + 3 * 2
    assert report.resized['bbox_head.cls_branches.2.weight'] == (
        '[80, 64] -> [91, 64], a row for each COCO category id'
    )
    assert 'backbone.layer*.*.bn*.num_batches_tracked' in str(report)
    assert report.every_key().count('\n') + 1 == 53 + 24 + 6
    assert str(ConversionReport()) == 'nothing dropped, added or resized'


@pytest.mark.parametrize(
    ('variant', 'text'),
    [
        ('base', 'Deformable DETR, ResNet-50, 4 levels, 2 + 2 layers, 12 queries, 80 class rows'),
        ('two-stage', 'Deformable DETR, ResNet-50, 4 levels, 2 + 2 layers, box refinement, two-stage, 80 class rows'),
        ('DETR', 'DETR, ResNet-50, 2 + 2 layers, 12 queries, 81 class rows'),
    ],
)
def test_description(build, variant, text):
    assert describe(build(variant).state_dict()) == text


# --- classes ---------------------------------------------------------------------------------------------------------


def numbered_rows(build, variant, rows):
    """Official weights whose class branches have i in row i."""
    theirs = convert(build(variant, num_classes=7).state_dict(), target='official')
    for key, value in theirs.items():
        if 'class_embed' in key:
            numbers = torch.arange(rows, dtype=value.dtype)
            theirs[key] = numbers if key.endswith('bias') else numbers[:, None].expand(-1, 64).clone()
    return theirs


def test_coco_ids():
    assert len(IDS) == 80
    assert IDS[:12] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)
    assert IDS[-8:] == (82, 84, 85, 86, 87, 88, 89, 90)
    # as in the annotations: 'stop sign' is 13, 'backpack' 27, 'dining table' 67, 'toilet' 70, 'tv' 72, 'toothbrush' 90
    assert [IDS.index(i) for i in (13, 27, 67, 70, 72, 90)] == [11, 24, 60, 61, 62, 79]


def test_91_to_80_by_hand(build):
    """Each class gets the row of its id; the encoder's branch keeps row 0, as it says "object"."""
    ours = convert(numbered_rows(build, 'two-stage', 91))
    for part in ('weight', 'bias'):
        for layer in (0, 1):
            rows = ours[f'bbox_head.cls_branches.{layer}.{part}'].reshape(80, -1)[:, 0]
            assert rows.tolist() == list(IDS)
        encoder = ours[f'bbox_head.cls_branches.2.{part}'].reshape(80, -1)[:, 0]
        assert encoder.tolist() == [0, *IDS[1:]]


def test_80_to_91_by_hand(build):
    theirs = convert(convert(numbered_rows(build, 'two-stage', 91)), target='official')
    unused = sorted(set(range(91)) - set(IDS))
    assert len(unused) == 11
    assert theirs['class_embed.1.bias'][list(IDS)].tolist() == list(IDS)
    assert theirs['class_embed.1.bias'][unused].tolist() == [-100] * 11
    assert not theirs['class_embed.1.weight'][unused].any()
    assert theirs['class_embed.2.bias'][0] == 0  # "object"
    assert theirs['class_embed.2.bias'][1] == -100


def test_no_object_row_of_detr(build):
    ours = convert(numbered_rows(build, 'DETR', 92))
    assert ours['bbox_head.cls_branches.1.bias'].tolist() == [*IDS, 91]
    theirs = convert(ours, target='huggingface')
    assert theirs['class_labels_classifier.bias'][91] == 91


def test_other_numbers_of_classes_stay(build):
    """91 rows are COCO's ids only where nothing speaks against it."""
    report = ConversionReport()
    ours = convert(numbered_rows(build, 'base', 20), report=report)
    assert ours['bbox_head.cls_branches.0.bias'].tolist() == list(range(20))
    assert not report.resized
    for settings in (dict(classes='keep'), dict(names=[f'part {i}' for i in range(91)])):
        ours = convert(numbered_rows(build, 'base', 91), **settings)
        assert len(ours['bbox_head.cls_branches.0.bias']) == 91
    ours = convert(build('base', num_classes=80).state_dict(), target='official', classes='keep')
    assert len(ours['class_embed.0.bias']) == 80


def test_coco_names_are_recognised(build):
    from mmdet.datasets import CocoDataset

    names = ['N/A'] * 91
    for i, name in zip(IDS, CocoDataset.METAINFO['classes']):
        names[i] = name
    assert len(convert(numbered_rows(build, 'base', 91), names=names)['bbox_head.cls_branches.0.bias']) == 80
    names[44] = 'jar'
    assert len(convert(numbered_rows(build, 'base', 91), names=names)['bbox_head.cls_branches.0.bias']) == 91


# --- errors ----------------------------------------------------------------------------------------------------------


def test_wrong_class_mapping_is_refused(build):
    with pytest.raises(CheckpointError, match="'coco' maps 91 classes, but the class branches have 20 rows"):
        convert(numbered_rows(build, 'base', 20), classes='coco')
    with pytest.raises(CheckpointError, match="'coco', but the classes are part 0, part 1, .*use 'keep'"):
        convert(numbered_rows(build, 'base', 91), classes='coco', names=[f'part {i}' for i in range(91)])
    with pytest.raises(CheckpointError, match="classes: got 'voc', expected one of auto, coco, keep"):
        convert({}, classes='voc')
    theirs = numbered_rows(build, 'refine', 91)
    theirs['class_embed.1.bias'] = torch.zeros(80)
    with pytest.raises(CheckpointError, match=r'different numbers of rows: .*cls_branches\.1\.bias.: 80'):
        convert(theirs)


def test_unknown_layouts(build):
    theirs = convert(build('refine').state_dict(), target='official')
    theirs['transformer.decoder.layers.0.gate.weight'] = theirs['mask_head.bias'] = torch.zeros(1)
    with pytest.raises(
        CheckpointError,
        match=r'the nearest, official DeformableDETR, has (\d+) of the \d+ keys, '
        r'but not transformer\.decoder\.layers\.0\.gate\.weight, mask_head\.bias$',
    ):
        convert(theirs)
    with pytest.raises(CheckpointError, match=r'none of the 1 keys \(fc\.weight, \.\.\.\) is one of a detector of'):
        convert({'fc.weight': torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"expected named tensors, .*got \['epoch'\]"):
        convert({'epoch': 3})
    with pytest.raises(CheckpointError, match='the nearest, detrex DeformableDETR'):
        convert(build('base').state_dict(), source='detrex')
    with pytest.raises(CheckpointError, match="layout: got 'd2', expected one of mmdet_ddetr, mmdet, "):
        convert(build('base').state_dict(), source='d2')
    with pytest.raises(CheckpointError, match="target: got 'mmdet2', expected one of mmdet_ddetr, official, hugg"):
        convert(build('base').state_dict(), target='mmdet2')


def test_incomplete_weights(build):
    ours = build('refine').state_dict()
    with pytest.raises(CheckpointError, match=r'is incomplete: encoder\.layers\.0\.norms\.0\.weight is missing'):
        convert({key: value for key, value in ours.items() if key.startswith('backbone')})
    theirs = convert(ours, target='huggingface')
    del theirs['model.decoder.layers.1.self_attn.k_proj.bias']
    with pytest.raises(
        CheckpointError, match=r'1\.self_attn\.attn\.in_proj_bias needs q, k, v; the checkpoint lacks k'
    ):
        convert(theirs)
    theirs = convert(ours, target='official')
    theirs['transformer.decoder.bbox_embed.1.layers.2.bias'] = torch.ones(4)
    with pytest.raises(CheckpointError, match=r'bbox_embed\.1\.layers\.2\.bias should be a second name of bbox_embed'):
        convert(theirs)


def test_weights_without_place_in_the_target(build):
    ours = build('base').state_dict()
    ours['backbone.layer2.0.conv2.conv_offset.weight'] = torch.zeros(1)  # a deformable convolution
    with pytest.raises(CheckpointError, match=r'no known layout: .* but not backbone\.layer2\.0\.conv2\.conv_offset'):
        convert(ours, target='official')
    detr = build('DETR').state_dict()
    detr['bbox_head.cls_branches.1.bias'] = detr['bbox_head.cls_branches.1.bias'] + 1
    with pytest.raises(CheckpointError, match='different cls_branches; this layout has one for all'):
        convert(detr, target='official')


# --- documentation ---------------------------------------------------------------------------------------------------


def test_the_page_lists_what_there_is():
    """docs/checkpoints.md: which layouts are written, and which detectors each has."""
    page = (Path(__file__).parents[2] / 'docs/checkpoints.md').read_text()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in page.splitlines() if line[:1] == '|']
    layouts = {cells[0].strip('`'): cells[4] == 'yes' for cells in rows if cells[0].strip('`') in NAMES}
    assert layouts == {name: name in TARGETS for name in NAMES}
    (header,) = (cells for cells in rows if cells[0] == 'detector')
    columns = {name: header.index(f'`{name}`') for name in NAMES if f'`{name}`' in header}
    assert {*columns, 'official', NATIVE} == set(NAMES)
    listed = {}
    for cells in rows:
        if title := re.match(r'\[([\w -]+)\]\(\.\./configs/', cells[0]):
            listed[re.sub('[- ]', '', title[1])] = {name for name, i in columns.items() if cells[i] == 'yes'}
    there = {layout.architecture: set() for layout in LAYOUTS if ' ' not in layout.architecture}
    for layout in LAYOUTS:
        there[layout.architecture.split()[-1]].add(layout.name)
    assert listed == {architecture: names - {'official', NATIVE} for architecture, names in there.items()}


def test_a_dab_detr_that_transformers_does_not_have(build):
    state_dict = {key: value for key, value in build('DABDETR').state_dict().items() if 'ref_anchor_head' not in key}
    with pytest.raises(CheckpointError, match='has the MLP ref_anchor_head in its decoder: this one cannot'):
        make_configs(state_dict, {})
