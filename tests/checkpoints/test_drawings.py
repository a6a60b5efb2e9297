"""The weights that `tools/finetune.py` starts from: what they fit, what they know, how they are made."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.registry import init_default_scope

from mmdet_ddetr import get_config
from mmdet_ddetr.checkpoints import CheckpointError, drawings, load
from mmdet_ddetr.hooks import FitCheckpointHook
from mmdet_ddetr.layers import ImageSizes

FINETUNE = 'deformable-detr-refine-twostage-dn_lite0_finetune'
REPO = Path(__file__).parents[2]


def built(config, **head):
    init_default_scope('mmdet')
    cfg = get_config(config)
    cfg.model.bbox_head.update(head)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    return cfg, model


def test_all_but_backbone_and_classes_fit():
    cfg, model = built(FINETUNE, num_classes=3)
    start = load(cfg.load_from)
    fitted, report = FitCheckpointHook().start_from(start, model, ['RBC', 'WBC', 'Platelets'])
    own = model.state_dict()
    assert {key for key in own if key not in fitted} == {key for key in own if key.startswith('backbone.')}
    assert set(fitted) <= set(own)
    assert all(value.shape == own[key].shape for key, value in fitted.items())
    anew = {key for key in report.resized if 'cls_branches' not in key}
    assert anew == {'dn_query_generator.label_embedding.weight'}
    row = start['state_dict']['bbox_head.cls_branches.3.weight'][0]  # "object", of the encoder's proposals
    assert torch.equal(fitted['bbox_head.cls_branches.3.weight'][0], row.to(fitted['bbox_head.cls_branches.3.weight']))


def test_it_knows_objects():
    """With the backbone's own ImageNet weights, it finds shapes that it has not seen."""
    _, model = built(drawings.CONFIG)
    model.init_weights()
    model.load_state_dict(load('drawings://lite0')['state_dict'], strict=False)
    model.eval()
    draw = runpy.run_path(str(REPO / 'tools/make_shapes.py'))['draw_image']
    found = total = 0
    for index in range(6):
        image, truth = draw(np.random.default_rng((99, index)), 192)
        pixels = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].float()
        with torch.no_grad():
            boxes, scores, labels = model.detect(
                (pixels - 127) / 128, ImageSizes(torch.tensor([[192.0, 192.0]]), (192, 192))
            )
        for label, (x, y, w, h) in truth:
            iou = bbox_overlaps(torch.tensor([[x, y, x + w, y + h]]).float(), boxes[0])[0]
            found += bool(((iou > 0.5) & (labels[0] == label) & (scores[0] > 0.3)).any())
            total += 1
    assert total > 20 and found > 0.7 * total, (found, total)


def test_no_such_file():
    for name in ('lite9', '../drawings/lite0', ''):
        with pytest.raises(
            CheckpointError, match=f'^no checkpoint .drawings://{name}.; after drawings:// there is lite0$'
        ):
            load(f'drawings://{name}')


def test_keep(tmp_path):
    weights = {'backbone.stem.conv.weight': torch.ones(2), 'neck.weight': torch.tensor([0.1]), 'count': torch.tensor(3)}
    meta = dict(dataset_meta=dict(classes=('circle',)), experiment_name='x')
    torch.save(dict(state_dict=weights, optimizer=dict(state={}), meta=meta), tmp_path / 'epoch_6.pth')
    drawings.keep(tmp_path / 'epoch_6.pth', tmp_path / 'kept.pth')
    kept = torch.load(tmp_path / 'kept.pth', weights_only=True)
    assert kept['state_dict'] == {'neck.weight': torch.tensor([0.1]).half(), 'count': torch.tensor(3)}
    assert kept['meta'] == dict(config=drawings.CONFIG, dataset_meta=dict(classes=('circle',)))
    assert kept.keys() == {'state_dict', 'meta'}
