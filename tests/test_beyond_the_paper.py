"""The switches that are off by default: what they change, and what they must not change."""

import copy
import math

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import fit
from mmdet_ddetr.checkpoints.fitting import take_classes
from mmdet_ddetr.checkpoints.report import ConversionReport
from mmdet_ddetr.heads import SetHead
from mmdet_ddetr.layers import QueryGroups
from mmdet_ddetr.task_modules import task_aligned_match
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_dropout

CLASSES, Q, K, MANY = 3, 20, 2, 30
SWITCHES = dict(
    mixed_selection=True,
    decoder=dict(look_forward_twice=True),
    dn_cfg=dict(group_cfg=dict(dynamic=True, num_dn_queries=8)),
    num_queries_one2many=MANY,
    k_one2many=K,
    lambda_one2many=0.5,
)
SHAPES = [(64, 80), (50, 64)]


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def make_model(**switches):
    cfg = shrink(get_config('deformable-detr-refine-twostage_r50_16xb2-50e_coco').model)
    for stack in (cfg.encoder, cfg.decoder):
        for name, part in stack.layer_cfg.items():
            if name.endswith('_cfg'):
                part.embed_dims = 32
    cfg.backbone.base_channels = 8
    cfg.neck.update(in_channels=[16, 32, 64], out_channels=32)
    cfg.positional_encoding.num_feats = 16
    cfg.bbox_head.num_classes = CLASSES
    cfg.update(switches)
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    return without_dropout(randomise(model))


def decode(model, inputs, samples):
    """What the head gets."""
    torch.manual_seed(1)
    return model.forward_transformer(model.extract_feat(inputs), samples)


def test_matching_queries_do_not_see_the_ground_truth():
    """Nor do they see the one-to-many queries: in training, their states are those of a prediction."""
    model = make_model(**SWITCHES)
    inputs, samples = make_batch(SHAPES, [3, 2], CLASSES)
    _, others = make_batch(SHAPES, [3, 2], CLASSES, seed=1)
    _, more = make_batch(SHAPES, [7, 0], CLASSES, seed=2)
    with torch.no_grad():
        results = [decode(model.train(), inputs, s) for s in (samples, others, more)]
        predicted = decode(model.eval(), inputs, samples)
    groups = results[0]['groups']
    assert groups == QueryGroups(Q, MANY, K, 0.5, dn_groups=2, dn_size=6)
    for result in results:
        for name in ('hidden', 'reference'):
            torch.testing.assert_close(result[name][:, :, :Q], predicted[name], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(
                result[name][:, :, : Q + MANY], results[0][name][:, :, : Q + MANY], rtol=1e-5, atol=1e-5
            )
    first, second = (groups.split(result['hidden'], 2)[2] for result in results[:2])
    assert not torch.allclose(first, second), 'the denoising queries are made of the ground truth'


def test_predictions_and_evaluation_losses_have_no_training_queries():
    model = make_model(**SWITCHES).eval()
    inputs, samples = make_batch(SHAPES, [3, 2], CLASSES)
    with torch.no_grad():
        results = model(inputs, copy.deepcopy(samples), mode='predict')
        logits, boxes = model(inputs, samples, mode='tensor')
        losses = model(inputs, samples, mode='loss')
    assert [len(result.pred_instances) for result in results] == [Q * CLASSES] * 2
    assert logits.shape == (3, 2, Q, CLASSES) and boxes.shape == (3, 2, Q, 4)
    assert not any('dn_' in name or 'one2many_' in name for name in losses)


@pytest.mark.parametrize('counts', [(3, 2), (0, 0), (1, 40)])
def test_one_to_many_losses_are_those_of_repeated_ground_truth(counts):
    """Hybrid matching, with the loss of one-to-one matching as reference; 2 x 40 boxes are more than the queries."""
    head = SetHead(CLASSES, embed_dims=8, num_pred_layer=3)
    logits, boxes = torch.randn(3, 2, Q + MANY, CLASSES), torch.rand(3, 2, Q + MANY, 4) * 0.4 + 0.3
    _, samples = make_batch(SHAPES, counts, CLASSES)
    truth, metas = [s.gt_instances for s in samples], [s.metainfo for s in samples]
    groups = QueryGroups(Q, MANY, K, lambda_one2many=0.5)
    losses = head.loss_by_feat(logits, boxes, None, None, truth, metas, groups)
    one2one = head.loss_by_feat(logits[:, :, :Q], boxes[:, :, :Q], None, None, truth, metas)
    repeated = [InstanceData(bboxes=gt.bboxes.repeat(K, 1), labels=gt.labels.repeat(K)) for gt in truth]
    one2many = head.loss_by_feat(logits[:, :, Q:], boxes[:, :, Q:], None, None, repeated, metas)
    expected = dict(one2one)
    for name, value in one2many.items():
        layer, _, term = name.rpartition('.')
        expected[f'{layer}.one2many_{term}' if layer else f'one2many_{term}'] = 0.5 * value
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-6, atol=1e-7)


def test_denoising_losses_against_a_loop():
    """Two images of 2 and 1 boxes, 2 groups: queries 0, 1 | 2, 3 and 4, 5 | 6, 7, positive | negative."""
    head = SetHead(CLASSES, embed_dims=8, num_pred_layer=2)
    logits, boxes = torch.randn(2, 2, Q + 8, CLASSES), torch.rand(2, 2, Q + 8, 4) * 0.4 + 0.3
    _, samples = make_batch(SHAPES, [2, 1], CLASSES)
    truth, metas = [s.gt_instances for s in samples], [s.metainfo for s in samples]
    groups = QueryGroups(Q, dn_groups=2, dn_size=4)
    losses = head.loss_by_feat(logits, boxes, None, None, truth, metas, groups)
    targets = head.collect_targets(truth, metas)
    positives = {(0, 0): 0, (0, 1): 1, (0, 4): 0, (0, 5): 1, (1, 0): 2, (1, 4): 2}  # (image, query): target
    for layer, prefix in enumerate(('d0.', '')):
        cls, l1 = 0.0, 0.0
        for image in range(2):
            for query in range(8):
                target = positives.get((image, query))
                for c, p in enumerate(logits[layer, image, Q + query].sigmoid().tolist()):
                    if target is not None and c == targets.labels[target]:
                        cls -= 0.25 * (1 - p) ** 2 * torch.tensor(p).log().item()
                    else:
                        cls -= 0.75 * p**2 * torch.tensor(1 - p).log().item()
                if target is not None:
                    l1 += (boxes[layer, image, Q + query] - targets.boxes[target]).abs().sum().item()
        assert losses[f'{prefix}dn_loss_cls'].item() == pytest.approx(2 * cls / 6, rel=1e-5)
        assert losses[f'{prefix}dn_loss_bbox'].item() == pytest.approx(5 * l1 / 6, rel=1e-5)


def test_look_forward_twice():
    """The last layer's boxes teach the layer before, too, and no earlier one; no value changes."""
    inputs, samples = make_batch(SHAPES, [3, 2], CLASSES)
    outputs, taught = {}, {}
    for twice in (False, True):
        model = make_model(decoder=dict(look_forward_twice=twice)).train()
        logits, boxes = model.bbox_head(**decode(model, inputs, samples))
        outputs[twice] = logits, boxes
        boxes[-1].sum().backward()
        grads = [branch[-1].bias.grad for branch in model.bbox_head.reg_branches]
        taught[twice] = [grad is not None and bool(grad.any()) for grad in grads]
    assert all(torch.equal(a, b) for a, b in zip(*outputs.values()))
    assert taught[False] == [False, False, True, False]  # 3 decoder layers and the encoder's branch
    assert taught[True] == [False, True, True, False]


def given_to_decoder(model, inputs, samples):
    """Its queries and its keyword arguments, in a prediction."""
    given = []
    hook = model.eval().decoder.register_forward_pre_hook(
        lambda _, args, kwargs: given.append((args[0], kwargs)), with_kwargs=True
    )
    decode(model, inputs, samples)
    hook.remove()
    return given[0]


def test_mixed_selection():
    """Contents are learned and the same for every image; positions and references are the image's own."""
    inputs, samples = make_batch(SHAPES, [3, 2], CLASSES)
    plain_query, plain_kwargs = given_to_decoder(make_model(), inputs, samples)
    model = make_model(mixed_selection=True)
    query, kwargs = given_to_decoder(model, inputs, samples)
    assert torch.equal(query, model.query_embedding.weight.expand(2, Q, 32))
    assert not torch.equal(plain_query[0], plain_query[1])
    for name in ('query_pos', 'reference_points'):
        assert not torch.equal(kwargs[name][0], kwargs[name][1])
        assert kwargs[name].shape == plain_kwargs[name].shape


def test_pure_selection():
    """Contents are the proposals' features, which no gradient of the decoder changes; all else is as without it."""
    inputs, samples = make_batch(SHAPES, [3, 2], CLASSES)
    _, plain_kwargs = given_to_decoder(make_model(), inputs, samples)
    model, seen = make_model(pure_selection=True), []
    model.memory_trans_norm.register_forward_hook(lambda *args: seen.append(args[2]))
    query, kwargs = given_to_decoder(model, inputs, samples)
    (features,) = seen
    assert not query.requires_grad
    same = (query[:, :, None] == features[:, None]).all(-1)  # [B, Q, S]
    assert same.any(-1).all() and (same.sum(1) <= 1).all(), 'each query has the features of a cell of its own'
    for name in ('query_pos', 'reference_points'):
        assert torch.equal(kwargs[name], plain_kwargs[name])
    with pytest.raises(ValueError, match='mixed_selection and pure_selection exclude each other'):
        make_model(mixed_selection=True, pure_selection=True)


def test_dense_loss():
    """It is that of the assigned cells, reaches the encoder and the backbone, and leaves all else as it is."""
    model = make_model(bbox_head=dict(num_classes=CLASSES, dense_loss=dict(topk=2, loss_weight=0.5))).train()
    inputs, samples = make_batch(SHAPES, [3, 2], CLASSES)
    head = model.bbox_head
    assert len(head.cls_branches) == len(head.reg_branches) == model.decoder.num_layers + 2
    losses = model(inputs, samples, mode='loss')

    head_inputs = decode(model, inputs, samples)
    features, places = head_inputs['cells']
    targets = head.collect_targets([s.gt_instances for s in samples], [s.metainfo for s in samples])
    logits = head.cls_branches[-1](features)
    boxes = (head.reg_branches[-1](features) + places).sigmoid()
    usable = places.isfinite().all(-1)
    match = task_aligned_match(logits, boxes, places[..., :2].sigmoid(), usable, targets, topk=2)
    assert 5 <= match.per_layer <= 10 and usable[match.image, match.query].all()
    difference = boxes[match.image, match.query] - targets.boxes[match.target]
    expected = 0.5 * 5.0 * difference.abs().sum() / match.per_layer
    torch.testing.assert_close(losses['dense_loss_bbox'], expected)

    dense = sum(value for name, value in losses.items() if name.startswith('dense_'))
    dense.backward()
    taught = {name.split('.')[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught == {'backbone', 'neck', 'encoder', 'level_embed', 'memory_trans_fc', 'memory_trans_norm', 'bbox_head'}
    assert 'cells' not in decode(model.eval(), inputs, samples)

    plain = make_model().train()
    plain.load_state_dict({key: value for key, value in model.state_dict().items() if key in plain.state_dict()})
    for name, value in plain(inputs, samples, mode='loss').items():
        torch.testing.assert_close(value, losses[name])


def test_dense_loss_fits():
    for wrong in (dict(as_two_stage=False), dict(with_box_refine=False, as_two_stage=False)):
        with pytest.raises(ValueError, match='dense_loss needs as_two_stage=True'):
            make_model(**wrong, bbox_head=dict(num_classes=CLASSES, dense_loss=dict()))
    source = make_model(bbox_head=dict(num_classes=CLASSES, dense_loss=dict()))
    model = make_model(bbox_head=dict(num_classes=5, dense_loss=dict()))
    rows = take_classes(source.state_dict(), model, 'abc', 'xcbya', ConversionReport())
    weight = f'bbox_head.cls_branches.{len(model.bbox_head.cls_branches) - 1}.weight'
    assert torch.equal(rows[weight][[4, 2, 1]], source.state_dict()[weight])


@pytest.mark.parametrize('counts', [[2, 1], [0, 1], [0, 0]])
def test_every_parameter_has_a_gradient(counts):
    """With and without boxes, on whatever rank."""
    model = make_model(**SWITCHES, bbox_head=dict(num_classes=CLASSES, dense_loss=dict())).train()
    losses = model(*make_batch(SHAPES, counts, CLASSES), mode='loss')
    names = {'dn_loss_cls', 'd1.dn_loss_iou', 'one2many_loss_cls', 'd0.one2many_loss_bbox', 'dense_loss_iou'}
    assert names < set(losses)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_autocast():
    """Losses are fp32. Those of denoising queries, which no top-k chooses, are near: 1 % was measured for 8 bits."""
    model = make_model(**SWITCHES).train()
    inputs, samples = make_batch(SHAPES, [2, 1], CLASSES)
    results = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            results.append(model(inputs, samples, mode='loss'))
    for name, loss in results[1].items():
        assert loss.dtype == torch.float32 and torch.isfinite(loss)
        if 'dn_' in name:
            assert loss.item() == pytest.approx(results[0][name].item(), rel=0.02)


def test_fewer_proposals_than_queries():
    """The encoder of a small image has 8*10 + 4*5 + 2*3 + 1*2 cells: not all one-to-many queries find one."""
    model = make_model(**dict(SWITCHES, num_queries_one2many=100)).train()
    inputs, samples = make_batch(SHAPES, [2, 1], CLASSES)
    assert decode(model, inputs, samples)['groups'].one2many == 108 - Q
    losses = model(inputs, samples, mode='loss')
    assert torch.isfinite(sum(losses.values()))


def test_one_to_many_queries_without_two_stages():
    """H-DETR has learned ones, too."""
    model = make_model(as_two_stage=False, num_queries_one2many=MANY).train()
    assert model.query_embedding.weight.shape == (Q + MANY, 64)
    inputs, samples = make_batch(SHAPES, [2, 1], CLASSES)
    losses = model(inputs, samples, mode='loss')
    assert losses['one2many_loss_bbox'] > 0
    (result, _) = model.eval()(inputs, samples, mode='predict')
    assert len(result.pred_instances) == Q * CLASSES


def test_off_means_the_paper():
    """No parameter, no argument of the decoder's layers and no loss more."""
    off = make_model(
        mixed_selection=False, decoder=dict(look_forward_twice=False), dn_cfg=None, num_queries_one2many=0
    ).train()
    plain = make_model().train()
    assert list(off.state_dict()) == list(plain.state_dict())
    inputs, samples = make_batch(SHAPES, [2, 1], CLASSES)
    assert 'groups' not in decode(plain, inputs, samples)
    on = make_model(**SWITCHES)
    assert set(on.state_dict()) - set(plain.state_dict()) == {
        'query_embedding.weight',
        'dn_query_generator.label_embedding.weight',
    }


def test_weights_of_other_classes_fit():
    source, model = make_model(**SWITCHES), make_model(**SWITCHES, bbox_head=dict(num_classes=5))
    model.load_state_dict(fit(source.state_dict(), model))
    embedding = 'dn_query_generator.label_embedding.weight'
    assert model.state_dict()[embedding].shape == (5, 32)
    assert torch.equal(model.query_embedding.weight, source.query_embedding.weight)


@pytest.mark.parametrize('switches', [dict(mixed_selection=True), dict(pure_selection=True), dict(dn_cfg=dict())])
def test_what_needs_two_stages_says_so(switches):
    with pytest.raises(ValueError, match='(needs|without) as_two_stage=True'):
        make_model(as_two_stage=False, **switches)


def test_look_forward_twice_needs_refinement():
    with pytest.raises(ValueError, match='look_forward_twice must be False: .* without with_box_refine=True'):
        make_model(with_box_refine=False, decoder=dict(look_forward_twice=True))


def test_relative_boxes():
    """A unit of x is a tenth of the reference's width, of w a factor of e^0.2, at every stage; else the paper's sum."""
    model = make_model(bbox_head=dict(num_classes=CLASSES, dense_loss=dict(), relative_boxes=True)).train()
    head = model.bbox_head
    reference = torch.tensor([[[0.5, 0.4, 0.2, 0.1]]])
    for branch in head.reg_branches:
        torch.nn.init.zeros_(branch[-1].weight)
        branch[-1].bias.data = torch.tensor([1.0, -2.0, 1.0, 100.0])
    moved = torch.tensor([[[0.52, 0.38, 0.2 * math.exp(0.2), 0.1 * 62.5]]])
    torch.testing.assert_close(head.refine(0, torch.zeros(1, 1, 32), reference), moved)
    torch.testing.assert_close(head.boxes_of_cells(-1, torch.zeros(1, 1, 32), reference.logit()), moved)
    point = reference[..., :2]  # no size to take shares of
    expected = torch.tensor([1.0, -2.0, 1.0, 100.0]) + torch.nn.functional.pad(point.logit(), (0, 2))
    torch.testing.assert_close(head.refine(0, torch.zeros(1, 1, 32), point), expected.sigmoid())

    inputs, samples = make_batch(SHAPES, [3, 0], CLASSES)
    losses = model(inputs, samples, mode='loss')
    assert torch.isfinite(sum(losses.values())), 'also with padding, where no object can be'
    enlarged = decode(model.eval(), inputs, samples)['reference']
    assert (enlarged[1:, ..., 3] > 1).any() and torch.isfinite(enlarged).all()
    for result in model(inputs, samples, mode='predict'):
        h, w = result.ori_shape
        boxes = result.pred_instances.bboxes
        assert (boxes >= 0).all() and (boxes <= torch.tensor([w, h, w, h])).all()
