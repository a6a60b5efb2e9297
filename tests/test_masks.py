"""The mask head against Hugging Face's, against formulas and by hand; and detectors with it."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope

from mmdet_ddetr import get_config
from mmdet_ddetr.heads import MaskHead
from mmdet_ddetr.registry import MODELS
from mmdet_ddetr.testing import make_batch, randomise, shrink

C, M = 32, 8
WIDTHS = [24, 16, 8]  # of C4, C3 and C2


def make_inputs(B=2):
    """Maps of two images of 64 x 96, a third of the second padding; three queries of the first, two of the second."""
    H, W = 2, 3
    mask = torch.zeros(B, H, W, dtype=torch.bool)
    mask[1, :, 2] = True
    return dict(
        query=torch.randn(5, C),
        image=torch.tensor([0, 0, 0, 1, 1]),
        source=torch.randn(B, C, H, W),
        memory=torch.randn(B, C, H, W),
        mask=mask,
        finer=tuple(torch.randn(B, width, H * 2**i, W * 2**i) for i, width in enumerate(WIDTHS, 1)),
    )


def test_parity_with_hugging_face():
    modeling = pytest.importorskip('transformers.models.detr.modeling_detr')
    if not hasattr(modeling, 'DetrFPNFusionStage'):
        pytest.skip('the names below are those of transformers 5')
    attention = randomise(modeling.DetrMHAttentionMap(C, M), std=0.3)
    convs = randomise(modeling.DetrMaskHeadSmallConv(C + M, WIDTHS, C), std=0.1)
    ours = MaskHead(WIDTHS, embed_dims=C, num_heads=M)
    pairs = [(ours.attention.query_proj, attention.q_proj), (ours.attention.key_proj, attention.k_proj)]
    pairs += [(ours.out, convs.output_conv)]
    blocks = [convs.conv1, convs.conv2, *(stage.refine for stage in convs.fpn_stages)]
    for conv, block in zip(ours.convs, blocks, strict=True):
        pairs += [(conv[0], block.conv), (conv[1], block.norm)]
    pairs += [(lateral, stage.fpn_adapter) for lateral, stage in zip(ours.laterals, convs.fpn_stages, strict=True)]
    for mine, theirs in pairs:
        mine.load_state_dict(theirs.state_dict())

    inputs = make_inputs()
    padding = torch.zeros(2, 1, 1, 2, 3).masked_fill(inputs['mask'][:, None, None], torch.finfo(torch.float).min)
    queries = inputs['query'].expand(2, -1, -1)  # theirs computes all queries of every image
    with torch.no_grad():
        maps = attention(queries, inputs['memory'], attention_mask=padding)
        expected = convs(inputs['source'], maps, list(inputs['finer'])).view(2, 5, 16, 24)
        logits = ours(**inputs)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected[inputs['image'], torch.arange(5)], rtol=1e-4, atol=1e-5)


def test_attention_sums_to_one_outside_the_padding():
    head, inputs = MaskHead(WIDTHS, embed_dims=C, num_heads=M), make_inputs()
    with torch.no_grad():
        maps = head.attention(inputs['query'], inputs['image'], inputs['memory'], inputs['mask'])
    assert maps.shape == (5, M, 2, 3)
    torch.testing.assert_close(maps.sum((1, 2, 3)), torch.ones(5))
    assert not maps[3:, :, :, 2].any() and maps[:3, :, :, 2].all()


def test_loss_by_formula():
    """Focal loss per pixel, mean over pixels; dice loss with 1 added above and below (official code)."""
    head = MaskHead(WIDTHS, embed_dims=C, num_heads=M)
    logits, targets = torch.randn(3, 5, 7), torch.rand(3, 5, 7) > 0.6
    p = logits.sigmoid()
    right = torch.where(targets, p, 1 - p)
    focal = torch.where(targets, 0.25, 0.75) * (1 - right) ** 2 * -right.log()
    overlap = (p * targets).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (p.sum((1, 2)) + targets.sum((1, 2)) + 1)
    losses = head.loss(logits, targets, avg_factor=torch.tensor(2.0))
    torch.testing.assert_close(losses['loss_mask'], focal.mean((1, 2)).sum() / 2)
    torch.testing.assert_close(losses['loss_dice'], dice.sum() / 2)
    # at the resolution of the targets
    coarse, fine = torch.full((1, 2, 2), 3.0), torch.full((1, 8, 8), 3.0)
    target = torch.ones(1, 8, 8)
    for name, value in head.loss(coarse, target, torch.tensor(1.0)).items():
        torch.testing.assert_close(value, head.loss(fine, target, torch.tensor(1.0))[name])


def test_masks_of_the_original_image():
    """Logits of a padded batch of 8 x 12; the image has 8 x 8 of it and was 16 x 16; its right half is object."""
    logits = torch.full((1, 2, 3), -1.0)
    logits[:, :, 1] = 5.0
    meta = dict(batch_input_shape=(8, 12), img_shape=(8, 8), ori_shape=(16, 16))
    logits = MaskHead.without_padding(logits, meta)
    assert logits.shape == (1, 8, 8)
    masks = MaskHead.predict(logits, meta['ori_shape'])
    assert masks.dtype == torch.bool and masks.shape == (1, 16, 16)
    # between the centres of the first two cells, at 2 and 6 of 8 px, the logit is 0 at 2 + 4 / 6
    assert not masks[..., :4].any() and masks[..., 6:].all()
    assert torch.equal(MaskHead.predict(logits, (8, 8)), masks[:, ::2, ::2])


# --- in a detector ----------------------------------------------------------------------------------------------------

DETECTORS = {
    'DETR': 'detr-masks_r50_8xb2-25e_coco',
    'Deformable DETR': 'deformable-detr-masks_r50_8xb2-25e_coco',
    'two-stage': 'deformable-detr-masks_r50_8xb2-25e_coco',
    'Conditional DETR': 'conditional-detr_r50_8xb2-50e_coco',
    'DAB-DETR': 'dab-detr_r50_8xb2-50e_coco',
    'DAB-Deformable-DETR': 'dab-deformable-detr_r50_8xb2-50e_coco',
    'SMCA-DETR': 'smca-detr_r50_8xb2-50e_coco',
    'SMCA-DETR, convolutions': 'smca-detr-multi-scale-conv_r50_8xb1-50e_coco',
    'Anchor DETR': 'anchor-detr_r50_8xb1-50e_coco',
    'SAM-DETR': 'sam-detr_r50_4xb4-50e_coco',
}
MASKS = dict(own_maps=False, backbone=dict(out_indices=(0, 1, 2, 3)), mask_head=dict(in_channels=[1024, 512, 256]))


@pytest.fixture(scope='module', params=DETECTORS)
def model(request):
    init_default_scope('mmdet')
    cfg = get_config(DETECTORS[request.param]).model
    if 'mask_head' not in cfg:
        cfg.update(MASKS, type=f'{cfg.type}WithMasks')
    cfg = shrink(cfg)
    cfg.freeze_detector = False
    if request.param == 'two-stage':
        cfg.update(with_box_refine=True, as_two_stage=True)
    torch.manual_seed(0)
    model = randomise(MODELS.build(cfg))
    torch.nn.init.zeros_(model.mask_head.out.bias)  # else all logits may have one sign
    return model


@pytest.mark.parametrize('counts', [pytest.param([0, 0], marks=pytest.mark.slow), [2, 1]], ids=['no box', 'boxes'])
def test_losses(model, counts):
    inputs, samples = make_batch([(64, 96), (57, 64)], counts, 80)
    model.train().zero_grad()
    losses = model(inputs, samples, mode='loss')
    if sum(counts):
        assert min(losses['loss_mask'], losses['loss_dice']) > 0
    else:
        assert losses['loss_mask'] == losses['loss_dice'] == 0
    (losses['loss_mask'] + losses['loss_dice']).backward()
    assert all(parameter.grad is not None for parameter in model.mask_head.parameters())
    if sum(counts):
        assert all(parameter.grad.any() for parameter in model.mask_head.parameters())


def test_the_loss_is_of_the_matched_queries(model):
    """Of a batch of two images, the mask of the query that the last layer's box loss is for."""
    inputs, samples = make_batch([(64, 96), (57, 64)], [1, 2], 80)
    model.eval()
    with torch.no_grad():
        losses = model(inputs, samples, mode='loss')
        logits, boxes, _ = model(inputs, samples, mode='tensor')
        targets = model.bbox_head.collect_targets([s.gt_instances for s in samples], [s.metainfo for s in samples])
        (match,) = model.bbox_head.assigner.match([(logits[-1:], boxes[-1:])], [targets])
        maps, finer = model._extract_maps(inputs)
        head_inputs = model.forward_transformer(maps, samples)
        total = 0
        for image, query, target in zip(match.image, match.query, match.target):
            mask = model._mask_logits(
                head_inputs['hidden'][-1, image, query][None], image[None], head_inputs['memory'], maps, finer, samples
            )
            gt = samples[image].gt_instances.masks.masks[target - (image == 1).long()]
            mask = F.interpolate(mask[None], size=gt.shape, mode='bilinear')[0]
            total += model.mask_head.loss(mask, torch.from_numpy(gt)[None], torch.tensor(1.0))['loss_dice']
    torch.testing.assert_close(losses['loss_dice'], total / 3)


def test_one_matching_a_step(model, monkeypatch):
    """Masks and boxes share it, and with it the one copy to the host."""
    assigner, calls = model.bbox_head.assigner, []
    match = assigner.match
    monkeypatch.setattr(assigner, 'match', lambda *args: calls.append(args) or match(*args))
    model.train()(*make_batch([(64, 96), (57, 64)], [1, 2], 80), mode='loss')
    assert len(calls) == 1


def test_predictions(model):
    inputs, samples = make_batch([(64, 96), (57, 64)], [1, 1], 80)
    with torch.no_grad():
        results = model.eval()(inputs, samples, mode='predict')
    for result in results:
        found = result.pred_instances
        assert found.masks.dtype == torch.bool
        assert found.masks.shape == (len(found), *result.ori_shape)
        assert 0 < found.masks.float().mean() < 1


def test_a_frozen_detector_does_not_learn():
    init_default_scope('mmdet')
    model = MODELS.build(shrink(get_config('detr-masks_r50_8xb2-25e_coco').model))
    trained = {name.split('.')[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {'mask_head'}
    assert all(parameter.requires_grad for parameter in model.mask_head.parameters())
