import pytest
import torch
from mmdet.models.layers import CdnQueryGenerator
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.registry import init_default_scope
from torch.utils._python_dispatch import TorchDispatchMode

from mmdet_ddetr.apis import get_config
from mmdet_ddetr.heads import SetHead
from mmdet_ddetr.layers import DenoisingQueries, QueryGroups
from mmdet_ddetr.testing import make_batch, shrink

C, CLASSES = 8, 5


def targets_of(counts, shapes=((64, 80), (50, 64))):
    _, samples = make_batch(shapes, counts, CLASSES)
    return SetHead.collect_targets([s.gt_instances for s in samples], [s.metainfo for s in samples]), samples


@pytest.mark.parametrize('counts', [(3, 2), (4, 0), (0, 0), (1, 130)])
def test_same_as_mmdets_of_the_same_random_numbers(counts, monkeypatch):
    """Boxes, layout, number of groups; the noise of labels is drawn in another order, so both get the same."""
    targets, samples = targets_of(counts)
    theirs = CdnQueryGenerator(CLASSES, C, num_matching_queries=7)
    ours = DenoisingQueries(CLASSES, C)
    ours.load_state_dict(theirs.state_dict())

    def labels_of(labels, num_groups):
        return theirs.label_embedding(labels.repeat(2 * num_groups))

    monkeypatch.setattr(theirs, 'generate_dn_label_query', labels_of)
    monkeypatch.setattr(ours, 'noisy_labels', lambda labels: labels)
    torch.manual_seed(1)
    content, boxes, groups = ours(targets)
    torch.manual_seed(1)
    their_content, their_boxes, _, meta = theirs(samples)
    assert groups == meta['num_denoising_groups']
    assert boxes.shape == (2, meta['num_denoising_queries'], 4)
    assert torch.equal(content, their_content)
    torch.testing.assert_close(boxes, their_boxes.sigmoid(), rtol=1e-5, atol=1e-6)


def test_layout_and_size_of_the_noise():
    counts = (3, 1)
    targets, _ = targets_of(counts)
    generator = DenoisingQueries(CLASSES, C, group_cfg=dict(dynamic=False, num_groups=2), box_noise_scale=0.4)
    content, boxes, groups = generator(targets)
    assert groups == 2 and boxes.shape == (2, 2 * 2 * 3, 4)
    assert content.shape == (2, 2 * 2 * 3, C)
    boxes, content = boxes.view(2, 2, 2, 3, 4), content.view(2, 2, 2, 3, C)
    assert (boxes[1, :, :, 1:] == 0.5).all() and not content[1, :, :, 1:].any(), 'the places of missing targets'
    for image, count in enumerate(counts):
        truth = targets.boxes[targets.image == image]
        corners = bbox_cxcywh_to_xyxy(truth)
        for group in range(2):
            for kind, (least, most) in enumerate([(0.0, 0.2), (0.2, 0.4)]):
                noisy = bbox_cxcywh_to_xyxy(boxes[image, group, kind, :count])
                distance = (noisy - corners).abs() / truth[:, 2:].repeat(1, 2)
                inside = (noisy > 0.01) & (noisy < 0.99)  # a corner beyond the border is moved onto it
                assert inside.sum() > 1
                assert (distance[inside] <= most + 1e-3).all() and (distance[inside] >= least - 1e-3).all()


def test_share_of_noisy_labels():
    generator = DenoisingQueries(CLASSES, C, label_noise_scale=0.5)
    noisy = generator.noisy_labels(torch.full((40000,), 2))
    # a quarter is drawn anew, a fifth of which at 2 again; 0.01 is five standard deviations
    assert (noisy != 2).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert noisy.unique().tolist() == [0, 1, 2, 3, 4]
    none = DenoisingQueries(CLASSES, C, label_noise_scale=0.0)
    assert (none.noisy_labels(torch.full((100,), 2)) == 2).all()


def test_number_of_groups():
    generator = DenoisingQueries(CLASSES, C, group_cfg=dict(dynamic=True, num_dn_queries=100))
    assert [generator.num_groups(n) for n in (0, 1, 7, 100, 300)] == [1, 100, 14, 1, 1]


def test_a_fixed_number_of_groups_must_be_named():
    with pytest.raises(ValueError, match='group_cfg must name num_groups'):
        DenoisingQueries(CLASSES, C, group_cfg=dict(dynamic=False, num_groups=None))


def test_no_target_still_gives_every_parameter_a_gradient():
    """Distributed training waits for the gradient of each parameter on each rank."""
    targets, _ = targets_of((0, 0))
    generator = DenoisingQueries(CLASSES, C)
    content, boxes, groups = generator(targets)
    assert content.shape == (2, 0, C) and boxes.shape == (2, 0, 4) and groups == 1
    torch.cat([content, torch.ones(2, 3, C)], 1).sum().backward()
    assert generator.label_embedding.weight.grad is not None


class Waits(TorchDispatchMode):
    """Names the operations that would wait for a value on an accelerator."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_accelerator():
    targets, samples = targets_of((3, 2))
    with Waits() as waits:
        content, _, groups = DenoisingQueries(CLASSES, C)(targets)
        QueryGroups(7, dn_groups=groups, dn_size=6).attention_mask(content.device)
    assert waits.names == []
    with Waits() as waits:
        CdnQueryGenerator(CLASSES, C, num_matching_queries=7)(samples)
    assert len(waits.names) > 2, "mmdet's does, or else this test would prove nothing"


def test_positive_queries_alone():
    """DN-DETR's form: one query a target and group, its centre within the box, its size within the noise."""
    targets, _ = targets_of((3, 1))
    config = dict(group_cfg=dict(dynamic=False, num_groups=50), box_noise_scale=0.4, label_noise_scale=0.0)
    generator = DenoisingQueries(CLASSES, C, contrastive=False, **config)
    content, boxes, groups = generator(targets)
    assert groups == 50 and boxes.shape == (2, 50 * 3, 4)
    truth = targets.boxes[:3]
    change = (boxes[0].view(50, 3, 4) - truth) / truth[:, 2:].repeat(1, 2)
    assert 0.17 < change[..., :2].abs().max() <= 0.2 + 1e-3
    assert 0.35 < change[..., 2:].abs().max() <= 0.4 + 1e-3
    assert torch.equal(content[0].view(50, 3, C)[7], generator.label_embedding(targets.labels[:3]))
    match = SetHead.denoising_match(QueryGroups(7, dn_groups=50, dn_size=3), targets, num_layers=1)
    assert match.query[:5].tolist() == [0, 1, 2, 0, 3]  # the second image's target is the first of its group


def test_an_image_of_many_objects_teaches_some_of_them():
    """No more than there are queries for; others each time, each at most once, all of the image's own."""
    targets, _ = targets_of((3, 40))
    generator = DenoisingQueries(CLASSES, C, group_cfg=dict(dynamic=True, num_dn_queries=7))
    few = [generator.choose(targets) for _ in range(2)]
    for chosen in few:
        assert chosen.counts == [3, 7] and chosen.image.tolist() == [0] * 3 + [1] * 7
        known = [(int(image), *box) for image, box in zip(targets.image, targets.boxes.tolist())]
        index = [known.index((int(image), *box)) for image, box in zip(chosen.image, chosen.boxes.tolist())]
        assert len(set(index)) == 10 and torch.equal(chosen.labels, targets.labels[index])
    assert not torch.equal(few[0].boxes, few[1].boxes)
    content, _, groups = generator(few[0])
    assert groups == 1 and content.shape[1] == 2 * 7
    assert generator.choose(targets_of((3, 7))[0]).counts == [3, 7]
    fixed = DenoisingQueries(CLASSES, C, group_cfg=dict(dynamic=False, num_groups=2, num_dn_queries=7))
    assert fixed.choose(targets) is targets


def test_loss_of_an_image_of_many_objects(monkeypatch):
    """That of its denoising queries has as many positives as they are."""
    init_default_scope('mmdet')
    config = shrink(get_config('deformable-detr-refine-twostage-dn_lite0_shapes').model)
    config.dn_cfg.group_cfg.num_dn_queries = 4
    model = MODELS.build(config).train()
    matches = []
    match = model.bbox_head.denoising_match
    monkeypatch.setattr(model.bbox_head, 'denoising_match', lambda *args: matches.append(match(*args)) or matches[-1])
    inputs, samples = make_batch([(64, 96), (64, 96)], [2, 15], model.bbox_head.num_classes)
    losses = model(inputs, samples, mode='loss')
    assert all(torch.isfinite(torch.as_tensor(value)).all() for value in losses.values())
    assert matches[0].per_layer == 2 + 4 and matches[0].query.max() < 2 * 4
