"""docs/from_mmdet.md: every row of its table turns a config of MMDetection into one of ours."""

import re

import pytest
import torch
from documented import ROOT
from mmengine.registry import DefaultScope

from mmdet_ddetr import get_config
from mmdet_ddetr.registry import MODELS
from mmdet_ddetr.testing import make_batch, shrink

TEXT = (ROOT / 'docs' / 'from_mmdet.md').read_text()
ROWS = dict(
    re.findall(r'^\| ([\w -]+?)(?:, all.*?)? \| `mmdet_ddetr\.(\w+)` \| `mmdet_ddetr\.SetHead` \|$', TEXT, re.MULTILINE)
)
CONFIGS = {
    'DETR': ['detr/detr_r50_8xb2-150e_coco.py'],
    'Deformable DETR': [
        f'deformable_detr/deformable-detr{variant}_r50_16xb2-50e_coco.py'
        for variant in ('', '-refine', '-refine-twostage')
    ],
    'Conditional DETR': ['conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'],
    'DAB-DETR': ['dab_detr/dab-detr_r50_8xb2-50e_coco.py'],
}


def test_the_table():
    assert set(ROWS) == set(CONFIGS)


@pytest.mark.parametrize('config, name', [(config, ROWS[row]) for row in CONFIGS for config in CONFIGS[row]])
def test_two_lines(config, name, tmp_path):
    """It builds, takes MMDetection's weights with ``strict=True``, gives its logits and boxes, and learns."""
    (tmp_path / 'mine.py').write_text(
        f"_base_ = 'mmdet::{config}'\n"
        f"model = dict(type='mmdet_ddetr.{name}', bbox_head=dict(type='mmdet_ddetr.SetHead'))\n"
    )
    (tmp_path / 'theirs.py').write_text(f"_base_ = 'mmdet::{config}'\n")
    with DefaultScope.overwrite_default_scope('mmdet'):
        ours, theirs = (MODELS.build(shrink(get_config(tmp_path / file).model)) for file in ('mine.py', 'theirs.py'))
    theirs.init_weights()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    inputs, samples = make_batch([(64, 96)], [2], num_classes=80)
    with torch.no_grad():
        for mine, his in zip(
            ours.eval()(inputs, samples, mode='tensor')[:2], theirs.eval()(inputs, samples, mode='tensor')
        ):
            torch.testing.assert_close(mine, his, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(ours.train().parse_losses(ours(inputs, samples, mode='loss'))[0])
