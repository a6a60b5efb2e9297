"""Every detector learns eight photographs by heart: real images, all losses, matching, predictions and evaluation."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from torch.optim.lr_scheduler import LambdaLR

from mmdet_ddetr.apis import get_config, list_configs
from mmdet_ddetr.registry import DATASETS, METRICS, MODELS
from mmdet_ddetr.testing import without_download

COCO = Path(__file__).parents[2] / 'shared/data/coco-mini'
NAMES = [name for name, path in list_configs().items() if path.parent.name == 'quickstart' and name.endswith('_shapes')]
IMAGES, WARM_UP, EVERY, STEPS = 4, 100, 100, 1500  # images a step; steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COCO.exists(), reason='needs a few images of COCO beside the checkout'),
]


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
    """Annotations of eight photographs with two to eight objects each, none of them a crowd."""
    coco = json.loads((COCO / 'annotations/instances_train2017.json').read_text())
    objects = {image['id']: [] for image in coco['images']}
    for annotation in coco['annotations']:
        objects[annotation['image_id']].append(annotation)
    chosen = [i for i in sorted(objects) if 2 <= len(objects[i]) <= 8 and not any(a['iscrowd'] for a in objects[i])][:8]
    coco['images'] = [image for image in coco['images'] if image['id'] in chosen]
    coco['annotations'] = [annotation for i in chosen for annotation in objects[i]]
    path = tmp_path_factory.mktemp('eight') / 'annotations.json'
    path.write_text(json.dumps(coco))
    return path


def learn(name, model, eight, parameters, size, gradient):
    """Train until AP50 is 0.9.

    Args:
        parameters: groups for the optimiser.
        size: px, the longer side of the images.
        gradient: norm that it is clipped to.
    """
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(size, size), keep_ratio=True),
        dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
    ]
    dataset = DATASETS.build(
        dict(
            type='mmdet_ddetr.CocoDataset',
            ann_file=str(eight),
            data_prefix=dict(img=str(COCO / 'train2017')),
            pipeline=pipeline,
        )
    )
    items = [dataset[i] for i in range(len(dataset))]
    batches = [pseudo_collate(items[i : i + IMAGES]) for i in range(0, len(items), IMAGES)]
    metric = METRICS.build(dict(type='mmdet_ddetr.CocoMetric', ann_file=str(eight), metric='bbox'))
    evaluator = Evaluator([metric])
    evaluator.dataset_meta = dataset.metainfo
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-4)
    schedule = LambdaLR(optimizer, lambda step: min(1, (step + 1) / WARM_UP))
    best = 0.0
    for step in range(STEPS):
        data = model.train().data_preprocessor(copy.deepcopy(batches[step % len(batches)]), training=True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), gradient)
        optimizer.step()
        schedule.step()
        if (step + 1) % EVERY == 0:
            for batch in batches:
                with torch.no_grad():
                    evaluator.process(model.eval().test_step(copy.deepcopy(batch)))
            best = max(best, evaluator.evaluate(len(dataset))['coco/bbox_mAP_50'])
            print(f'{name}: step {step + 1}, loss {loss.item():.3f}, AP50 {best:.3f}')
            if best >= 0.9:
                return
    pytest.fail(f'AP50 {best:.3f} after {STEPS} steps')


@pytest.mark.parametrize('name', NAMES)
def test_eight_photographs(name, eight):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    config = get_config(name)
    config.model.bbox_head.num_classes = 80
    config.model.backbone.frozen_stages = -1
    model = MODELS.build(config.model)
    model.init_weights()
    slow = [p for n, p in model.named_parameters() if n.startswith('backbone.')]
    fast = [p for n, p in model.named_parameters() if not n.startswith('backbone.')]
    learn(name, model, eight, [dict(params=fast, lr=1e-3), dict(params=slow, lr=1e-4)], size=128, gradient=1.0)


def test_deformable_convolution_and_roi_pooling(eight):
    """A Faster R-CNN with DCNv2 and modulated deformable RoI pooling, narrow and from scratch, learns to move both."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    config = without_download(get_config('faster-rcnn_r50_fpn-mdpool_8xb2-1x_coco').model)
    config.backbone.update(
        base_channels=16,
        norm_cfg=dict(type='BN'),
        norm_eval=False,
        frozen_stages=-1,
        dcn=dict(type='mmdet_ddetr.DCNv2', deform_groups=1),
        stage_with_dcn=(False, True, True, True),
    )
    config.neck.update(in_channels=[64, 128, 256, 512], out_channels=64)
    config.rpn_head.update(in_channels=64, feat_channels=64)
    config.rpn_head.anchor_generator.scales = [4]  # for small images
    config.train_cfg.rpn_proposal.update(nms_pre=200, max_per_img=200)
    config.test_cfg.rpn.update(nms_pre=200, max_per_img=100)
    config.train_cfg.rcnn.sampler.num = 64
    head = config.roi_head
    head.bbox_roi_extractor.out_channels = 64
    head.bbox_roi_extractor.roi_layer.update(output_channels=64, deform_fc_channels=64)
    head.bbox_head.update(in_channels=64, fc_out_channels=256)
    model = MODELS.build(config)
    model.init_weights()
    zero = [n for n, p in model.named_parameters() if ('conv_offset' in n or 'roi_layers.0' in n) and not p.any()]
    assert len(zero) == 2 * (13 + 2)  # of 13 convolutions, and of the last layers for small boxes
    learn('faster-rcnn', model, eight, [dict(params=model.parameters(), lr=1e-3)], size=160, gradient=10.0)
    weights = dict(model.named_parameters())
    assert [name for name in zero if not weights[name].any()] == []
