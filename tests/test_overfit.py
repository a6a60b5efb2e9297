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

COCO = Path(__file__).parents[2] / 'shared/data/coco-mini'
NAMES = [name for name, path in list_configs().items() if path.parent.name == 'quickstart' and name.endswith('_shapes')]
SIZE, IMAGES, WARM_UP, EVERY, STEPS = 128, 4, 100, 100, 1500  # px; images a step; steps

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


@pytest.mark.parametrize('name', NAMES)
def test_eight_photographs(name, eight):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    config = get_config(name)
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=True),
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
    config.model.bbox_head.num_classes = 80
    config.model.backbone.frozen_stages = -1
    model = MODELS.build(config.model)
    model.init_weights()
    items = [dataset[i] for i in range(len(dataset))]
    batches = [pseudo_collate(items[i : i + IMAGES]) for i in range(0, len(items), IMAGES)]
    metric = METRICS.build(dict(type='mmdet_ddetr.CocoMetric', ann_file=str(eight), metric='bbox'))
    evaluator = Evaluator([metric])
    evaluator.dataset_meta = dataset.metainfo
    slow = [p for n, p in model.named_parameters() if n.startswith('backbone.')]
    fast = [p for n, p in model.named_parameters() if not n.startswith('backbone.')]
    optimizer = torch.optim.AdamW([dict(params=fast, lr=1e-3), dict(params=slow, lr=1e-4)], weight_decay=1e-4)
    schedule = LambdaLR(optimizer, lambda step: min(1, (step + 1) / WARM_UP))
    best = 0.0
    for step in range(STEPS):
        data = model.train().data_preprocessor(copy.deepcopy(batches[step % len(batches)]), training=True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
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
