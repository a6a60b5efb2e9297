"""SAM-DETR against its official code, which has no maintained port, and the known defects of that code.

The fixtures hold random weights, rounded to fp16, of ZhangGongjie/SAM-DETR (C = 16, 2 encoder layers, no backbone), and
what it gives for features cos(0), cos(1), ... of two images, in a padded batch and each alone. Of each parameter's
gradient they hold the norm and the product with cos(0), cos(1), ...: of the sum of logits and boxes, each times such a
cosine. Changed for it was what the code hard-codes (256 channels, the widths of the point MLP, the groups of the neck's
norm, 8 heads on several levels), and the order of a sum: the positions of padding are sines of numbers near 10^6, which
rounding decides.
"""

from pathlib import Path

import pytest
import torch
from mmcv.ops import roi_align as mmcv_roi_align
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from official import cosines, samples_of
from parity import TOLERANCE, without_gradient

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import convert
from mmdet_ddetr.checkpoints.layouts import find_layout
from mmdet_ddetr.layers import SAMDecoder, SemanticAlignedAttention, on_own_maps, roi_align
from mmdet_ddetr.layers.conditional_transformer import position_of
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_download

FIXTURES = Path(__file__).parent / 'fixtures'
PLAIN = 'sam-detr_r50_4xb4-50e_coco'
CASES = {  # file, config, heads, decoder layers, width of the decoder's FFN
    'plain': ('sam_detr.pt', PLAIN, 8, 3, 32),
    'Gaussians, norm in the neck': ('sam_detr_smca.pt', 'sam-detr-smca_r50_4xb4-12e_coco', 8, 3, 32),
    'Gaussians, three levels': (
        'sam_detr_smca_multi_scale.pt',
        'sam-detr-smca-multi-scale_r50_8xb2-12e_coco',
        4,
        6,
        64,
    ),
}
C, CLASSES = 16, 3


def small(name=PLAIN, num_heads=8, decoder_layers=3, ffn=32, **changes):
    """The model of a config with C channels; R18 with as many in C5."""
    init_default_scope('mmdet')
    config = shrink(get_config(name).model)
    config.update(num_queries=10, **changes)
    for stack, number, width in ((config.encoder, 2, 32), (config.decoder, decoder_layers, ffn)):
        stack.num_layers = number
        stack.layer_cfg.ffn_cfg.update(embed_dims=C, feedforward_channels=width)
        for cfg in (stack.layer_cfg[key] for key in ('self_attn_cfg', 'cross_attn_cfg') if key in stack.layer_cfg):
            cfg.update(embed_dims=C, num_heads=num_heads)
    config.decoder.layer_cfg.cross_attn_cfg.hidden_dims = (8, 16, 16)
    config.backbone.update(base_channels=2, stem_channels=2)
    config.neck.update(in_channels=[channels // 32 for channels in config.neck.in_channels], out_channels=C)
    if config.neck.norm_cfg:
        config.neck.norm_cfg.num_groups = 4
    config.positional_encoding.num_feats = C // 2
    config.bbox_head.num_classes = CLASSES
    torch.manual_seed(0)
    return MODELS.build(config).eval()


def load(file):
    """The fixture, with its weights by official names."""
    fixture = torch.load(FIXTURES / file, weights_only=True)
    sizes = [torch.Size(shape).numel() for shape in fixture['shapes'].values()]
    weights = fixture['weights'].float().split(sizes)
    fixture['state_dict'] = {
        name: tensor.view(shape) for (name, shape), tensor in zip(fixture['shapes'].items(), weights)
    }
    return fixture


def official_pair(case, boxes_on_padding):
    """(fixture, our model with its weights)."""
    file, name, *sizes = CASES[case]
    fixture, model = load(file), small(name, *sizes)
    for layer in model.decoder.layers:
        layer.cross_attn.aligner.boxes_on_padding = boxes_on_padding
    keys = model.load_state_dict(convert(fixture['state_dict']), strict=False)
    assert not keys.unexpected_keys and all(key.startswith('backbone.') for key in keys.missing_keys)
    return fixture, model


@pytest.mark.parametrize('case', CASES)
def test_parity_with_the_official_code(case):
    """Of a padded batch. Measured: 2e-6 in logits, 3e-7 in boxes, 2e-5 of each in gradients."""
    fixture, model = official_pair(case, boxes_on_padding=True)
    feats = model.neck(tuple(cosines(shape) for shape in fixture['features']))
    logits, boxes = model.bbox_head(**model.forward_transformer(feats, samples_of(fixture)))
    torch.testing.assert_close(logits, fixture['logits'], **TOLERANCE)
    torch.testing.assert_close(boxes, fixture['boxes'], **TOLERANCE)

    ((logits * cosines(logits.shape)).sum() + (boxes * cosines(boxes.shape, 1)).sum()).backward()
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    ours = convert(ours, source='mmdet_ddetr', target='official', classes='keep')
    largest = fixture['gradients'][:, 0].max()
    for name, expected in zip(fixture['shapes'], fixture['gradients']):
        gradient = ours[name].flatten().double()
        found = torch.stack([gradient.norm(), gradient @ torch.cos(torch.arange(len(gradient)).double())])
        assert (found - expected).abs().max() <= 1e-4 * expected[0] + 1e-6 * largest, name


@pytest.mark.parametrize('case', CASES)
def test_an_image_of_a_padded_batch_gets_what_the_official_code_gives_it_alone(case):
    """In the official code, boxes read the padding; what lies there depends on the other images."""
    fixture, model = official_pair(case, boxes_on_padding=False)
    samples = samples_of(fixture)
    with torch.no_grad():
        feats = on_own_maps(model.neck, tuple(cosines(shape) for shape in fixture['features']), samples)
        model.own_maps = True
        logits, boxes = model.bbox_head(**model.forward_transformer(feats, samples))
    torch.testing.assert_close(logits, fixture['alone']['logits'], **TOLERANCE)
    torch.testing.assert_close(boxes, fixture['alone']['boxes'], **TOLERANCE)
    assert (fixture['logits'] - fixture['alone']['logits']).abs().max() > 0.05


@pytest.mark.parametrize('classes', [80, 91])
@pytest.mark.parametrize('name', ['sam-detr_r50_4xb4-12e_coco', CASES['Gaussians, three levels'][1]])
def test_official_layout(name, classes):
    """There and back, bit for bit, of a whole detector, and recognised on both sides."""
    model = small(name)
    state_dict = randomise(model).state_dict()
    for key in [key for key in state_dict if 'cls_branches' in key]:
        state_dict[key] = torch.randn(classes, *state_dict[key].shape[1:])
    official = convert(state_dict, target='official')
    layout = find_layout(official)
    assert (layout.name, layout.architecture) == ('official', 'SAMDETR')
    assert find_layout(state_dict).architecture == 'SAMDETR'
    assert len(official['class_embed.2.bias']) == 91
    assert torch.equal(
        official['transformer.decoder.bbox_embed.1.layers.2.bias'], official['bbox_embed.1.layers.2.bias']
    )
    back = convert(official)
    assert back.keys() == state_dict.keys()
    if classes == 80:
        for key in state_dict:
            assert 'num_batches_tracked' in key or torch.equal(back[key], state_dict[key]), key
    else:
        assert len(back['bbox_head.cls_branches.0.bias']) == 80


# --- RoIAlign --------------------------------------------------------------------------------------------------------

BOXES = torch.tensor(
    [
        [[3.3, 2.1, 4.4, 3.9], [0.4, 0.3, 0.2, 0.3], [8.0, 5.0, 16.0, 10.0]],  # smaller than a cell; the whole map
        [[0.0, 9.7, 7.9, 8.8], [15.9, 5.0, 9.1, 2.2], [8.1, 4.9, 6.0, 9.9]],  # out at a corner, and at a side
    ]
)


def by_stand_in(memory, shape, boxes):
    """mmcv's, by the stand-in that tests/test_compat.py holds to a loop."""
    corners = torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)
    rois = torch.cat([torch.cat([box.new_full((len(box), 1), i), box], 1) for i, box in enumerate(corners)])
    pooled = mmcv_roi_align(memory.transpose(1, 2).unflatten(2, shape), rois, 7, 1.0, 0, 'avg', True)
    return pooled.flatten(2).transpose(1, 2).unflatten(0, boxes.shape[:2])


def test_roi_align_is_mmcvs():
    shape, weights = (10, 16), torch.randn(2, 3, 49, 5, dtype=torch.float64)
    memory = torch.randn(2, 160, 5, dtype=torch.float64, requires_grad=True)
    found, expected = (align(memory, shape, BOXES.double()) for align in (roi_align, by_stand_in))
    torch.testing.assert_close(found, expected)
    found, expected = (torch.autograd.grad((pooled * weights).sum(), memory)[0] for pooled in (found, expected))
    torch.testing.assert_close(found, expected)


def test_roi_align_of_the_upper_left():
    """As of a map that ends where the image does, whatever lies beyond."""
    memory = torch.randn(2, 10, 16, 5, dtype=torch.float64)
    whole = memory.clone()
    whole[0, 8:], whole[0, :, 11:], whole[1, :, 15:] = 1e6, 1e6, 1e6
    found = roi_align(whole.flatten(1, 2), (10, 16), BOXES.double(), torch.tensor([[11, 8], [15, 10]]))
    for i, (w, h) in enumerate(((11, 8), (15, 10))):
        own = memory[i : i + 1, :h, :w].flatten(1, 2)
        torch.testing.assert_close(found[i : i + 1], by_stand_in(own, (h, w), BOXES[i : i + 1].double()))


def test_roi_align_moves_no_box():
    boxes = BOXES.clone().requires_grad_()
    assert not roi_align(torch.randn(2, 160, 5), (10, 16), boxes).requires_grad
    assert roi_align(torch.randn(2, 160, 5).bfloat16(), (10, 16), boxes.bfloat16()).dtype is torch.bfloat16


# --- what the official code gets wrong, or only gets right in one size -----------------------------------------------


def test_levels_of_the_layers():
    """Coarse to fine, whatever the numbers; the official code stops with more than 6 layers."""
    for layers, levels, expected in (
        (6, 3, '221100'),
        (6, 1, '000000'),
        (3, 3, '210'),
        (8, 3, '22211100'),
        (2, 3, '21'),
    ):
        attn = dict(embed_dims=8, num_heads=2)
        layer = dict(self_attn_cfg=attn, cross_attn_cfg=attn, ffn_cfg=dict(embed_dims=8, feedforward_channels=8))
        decoder = SAMDecoder(num_layers=layers, layer_cfg=layer)
        assert ''.join(str(decoder.level_of(i, levels)) for i in range(layers)) == expected


@pytest.mark.parametrize(('num_heads', 'layers'), [(2, 1), (1, 7)])
@pytest.mark.parametrize('name', [PLAIN, CASES['Gaussians, three levels'][1]])
def test_other_depths_and_heads(name, num_heads, layers):
    model = randomise(small(name, num_heads, layers)).train()
    losses = model(*make_batch([(64, 96), (57, 64)], [60, 1], CLASSES), mode='loss')
    assert torch.isfinite(sum(losses.values())) and len(losses) == 3 * layers


def test_attention_against_a_loop():
    """Of one query: RoIAlign, the points of the heads, what is found there, and attention with whole vectors."""
    M, H, W = 2, 3, 4
    attention = randomise(SemanticAlignedAttention(C, M, gaussian=True, hidden_dims=(8,)), std=0.3).double()
    aligner = attention.aligner
    query, memory, key_pos = (torch.randn(1, n, C, dtype=torch.float64) for n in (1, H * W, H * W))
    box = torch.tensor([[[0.4, 0.5, 0.3, 0.6]]], dtype=torch.float64)
    features = by_stand_in(memory, (H, W), box * torch.tensor([W, H, W, H]))[0, 0]  # [49, C]
    squeezed = (features @ aligner.squeeze.weight[:, :, 0, 0].T + aligner.squeeze.bias).relu()
    found = aligner.points(squeezed.T.flatten()).view(2, M, 2)
    keys = attention.kcontent_proj(memory) + attention.kpos_sine_proj(key_pos)
    gates = [gate(query).view(M, C).sigmoid() for gate in (aligner.content_gate, aligner.position_gate)]
    values, outputs = attention.v_proj(memory)[0].view(H * W, M, C // M), []
    for m in range(M):
        point, scale = found[0, m].tanh(), found[1, m]
        grid = features.T.view(1, C, 7, 7)
        content = torch.nn.functional.grid_sample(grid, point.view(1, 1, 1, 2), align_corners=False).flatten()
        place = box[0, 0, :2] + box[0, 0, 2:] / 2 * point
        q = attention.qcontent_proj(content * gates[0][m])
        q = q + attention.qpos_sine_proj(position_of(place[None, None], C)[0, 0] * gates[1][m])
        logits = []
        for cell in range(H * W):
            away = place * torch.tensor([W, H]) - torch.tensor([cell % W + 0.5, cell // W + 0.5])
            logits.append(q @ keys[0, cell] / C**0.5 - (away * scale).square().sum() / 8)
        outputs.append(torch.stack(logits).softmax(0) @ values[:, m])
    expected = query + attention.out_proj(torch.cat(outputs))
    result = attention(
        query,
        key=memory,
        value=memory,
        key_pos=key_pos,
        reference_points=box,
        spatial_shapes=[(H, W)],
        valid_ratios=torch.ones(1, 1, 2, dtype=torch.float64),
    )
    torch.testing.assert_close(result, expected)


def test_a_layer_starts_from_the_box_before():
    """However near 0 or 1 it is. The official code sums without a limit: such a box would not come back."""
    model = small()
    torch.nn.init.constant_(model.query_embedding.weight, 30.0)
    for branch in model.bbox_head.reg_branches:
        torch.nn.init.constant_(branch[-1].bias, -11.0)
    with torch.no_grad():
        outputs = model.forward_transformer(model.extract_feat(torch.randn(1, 3, 64, 96)))
        _, boxes = model.bbox_head(**outputs)
    torch.testing.assert_close(outputs['reference'][1:], boxes[:-1])
    assert boxes[0].max() < 0.7 and boxes[1].max() < 0.01


def test_every_parameter_moves():
    """But for what the first self-attention makes of no contents, and biases of all keys."""
    for name in (PLAIN, CASES['Gaussians, three levels'][1]):
        model = randomise(small(name))
        first = 'decoder.layers.0.self_attn.'
        still = without_gradient(model, make_batch([(128, 160), (96, 121)], [3, 1], CLASSES))
        assert set(still) <= {first + f'{proj}.weight' for proj in ('qcontent_proj', 'kcontent_proj', 'v_proj')}


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('sam-detr_r50_4xb4-12e_coco', 58_074_058),
        ('sam-detr_r50-dc5_8xb1-50e_coco', 58_073_546),
        ('sam-detr-smca_r50_4xb4-50e_coco', 58_122_794),
        ('sam-detr-multi-scale_r50_8xb2-12e_coco', 54_972_298),
        ('sam-detr-smca-multi-scale_r50_8xb2-50e_coco', 55_021_546),
    ],
)
def test_parameters_of_the_official_logs(name, expected):
    """``n_parameters`` there: those that are trained, of models with 91 classes."""
    init_default_scope('mmdet')
    config = without_download(get_config(name).model)
    config.bbox_head.num_classes = 91
    with torch.device('meta'):
        model = MODELS.build(config)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_initialisation():
    """As in the official code, where Xavier overwrites the zeros of the last layer of the points."""
    model = small()
    model.init_weights()
    assert 0.7 < model.query_embedding.weight.std() < 1.3
    bound = model.neck.convs[0].conv.weight[0].numel() ** -0.5  # nn.Conv2d's own, not Xavier's
    assert 0.8 * bound < model.neck.convs[0].conv.weight.abs().max() <= bound
    for branch in model.bbox_head.reg_branches:
        assert not branch[-1].weight.any() and not branch[-1].bias.any()
    last = model.decoder.layers[0].cross_attn.aligner.points[-1]
    assert last.weight.abs().max() > 0.9 * (6 / sum(last.weight.shape)) ** 0.5 and not last.bias.any()


def test_denoising():
    """Queries of noisy ground truth are boxes with contents, too."""
    model = small(dn_cfg=dict(group_cfg=dict(num_dn_queries=4))).train()
    losses = model(*make_batch([(64, 96), (57, 64)], [2, 1], CLASSES), mode='loss')
    assert losses['dn_loss_iou'] > 0 and 'd1.dn_loss_cls' in losses


def test_messages():
    with pytest.raises(ValueError, match='embed_dims must be divisible by num_heads, got embed_dims=12, num_heads=5'):
        SemanticAlignedAttention(12, 5)
    with pytest.raises(ValueError, match='embed_dims must be divisible by 4, got 6'):
        SemanticAlignedAttention(6, 2)
    with pytest.raises(ValueError, match='batch_first must be True'):
        SemanticAlignedAttention(16, 4, batch_first=False)
    with pytest.raises(ValueError, match='the neck gives 1 levels, num_feature_levels is 3'):
        small(num_feature_levels=3)(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match='as_two_stage must be False and with_box_refine True'):
        small(as_two_stage=True)
    attention, x = SemanticAlignedAttention(16, 4), torch.zeros(1, 6, 16)
    inputs = dict(key=x, value=x, key_pos=x, valid_ratios=torch.ones(1, 1, 2))
    with pytest.raises(ValueError, match=r'expected one of spatial_shapes and reference_points \[B, Q, 4\]'):
        attention(x, reference_points=torch.zeros(1, 6, 2), spatial_shapes=[(2, 3)], **inputs)
    with pytest.raises(ValueError, match='looks into boxes on one map'):
        attention(x, reference_points=torch.zeros(1, 6, 4), spatial_shapes=[(2, 2), (1, 2)], **inputs)
