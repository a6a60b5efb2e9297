"""The pages of a newcomer, followed from top to bottom: get_started.md, train_on_your_data.md, from_mmdet.md."""

import os
import re
import subprocess
import sys

import pytest
from documented import ROOT, blocks

SHORTER = {  # what stands in a page -> what runs here
    r'--minutes \d+': '--epochs 1 --batch-size 8 --pictures 2',
    r'(make_shapes data/shapes)$': r'\1 --train 16 --val 4 --test 4',
    r'(mmdet_ddetr explain .*)': r'\1 --score-thr 0',  # after one epoch no score is high
}
SKIPPED = re.compile(r'^(pip|make) |--load-from hf://')  # installs; downloads R50's weights


@pytest.fixture
def follow(tmp_path):
    """``follow(page)``: run its blocks in their order, Python saved under the name that the page gives it."""
    (tmp_path / 'bin').mkdir()
    (tmp_path / 'bin/python').write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / 'bin/python').chmod(0o755)
    (tmp_path / 'tools').symlink_to(ROOT / 'tools')
    environment = dict(os.environ, PATH=f'{tmp_path / "bin"}:{os.environ["PATH"]}', PYTHONPATH=str(ROOT))
    environment.update(OMP_NUM_THREADS='1', OMP_WAIT_POLICY='passive', PYTHONWARNINGS='ignore')

    def shell(text):
        done = subprocess.run(['bash', '-c', text], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f'{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
        return done.stdout

    def call(page, program='program.py'):
        text, output = (ROOT / 'docs' / page).read_text(), []
        for language, block in re.findall(r'^```(\w+)\n(.*?)^```$', text, re.DOTALL | re.MULTILINE):
            if language == 'python':
                (tmp_path / program).write_text(block)
                if f'python {program}' not in text:
                    output.append(shell(f'python {program}'))
            for line in block.splitlines() if language == 'bash' else ():
                for pattern, replacement in SHORTER.items():
                    line = re.sub(pattern, replacement, line)
                if not SKIPPED.search(line):
                    output.append(shell(line))
        return '\n'.join(output)

    call.folder = tmp_path
    call.shell = shell
    return call


@pytest.mark.slow
def test_get_started(follow):
    output = follow('get_started.md', 'detect.py')
    assert 'mmdet_ddetr: ' in output and 'measured on the test split' in output
    assert len(list(follow.folder.glob('out/vis/*.jpg'))) == len(list(follow.folder.glob('out/preds/*.json'))) == 4
    assert list(follow.folder.glob('outputs/explain/*.html'))


@pytest.mark.slow
def test_train_on_your_data(follow):
    output = follow('train_on_your_data.md')
    assert 'measured on the test split' in output
    assert list(follow.folder.glob('out/vis/*.jpg')) and (follow.folder / 'detector.onnx').stat().st_size > 1e6
    page = (ROOT / 'docs/train_on_your_data.md').read_text()
    for name in re.findall(r'^\| `([^-\s]\S*)` \|', page, re.MULTILINE):
        assert list((follow.folder / 'work_dirs/mine').glob(name.rstrip('/'))), name


@pytest.mark.slow
def test_from_mmdet(follow):
    """Its commands, on a small data set; the model is R50's, so only its config is printed and its program is run."""
    config, hook, program = blocks(ROOT / 'docs' / 'from_mmdet.md', 'python')
    (follow.folder / 'mine.py').write_text(f'{config}\n{hook}\nmodel.update(backbone=dict(init_cfg=None))\n')
    printed = follow.shell('python -m mmdet_ddetr print_config mine.py')
    assert "type='mmdet_ddetr.DeformableDETR'" in printed and "type='mmdet_ddetr.AccelerateHook'" in printed
    small = 'model.backbone.depth=18 model.neck.in_channels=[128,256,512] model.encoder.num_layers=1'
    follow.shell('python -m mmdet_ddetr make_shapes data/coco --train 4 --val 2 --test 2 --size 96')
    data = ''.join(
        f'{split}_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict('
        f"data_root='data/coco/', ann_file='annotations/{split}.json', data_prefix=dict(img='images/{split}/'), "
        "metainfo=dict(classes=('circle', 'square', 'triangle', 'star', 'ring'))))\n"
        for split in ('train', 'val', 'test')
    )
    evaluators = ''.join(
        f"{split}_evaluator = dict(ann_file='data/coco/annotations/{split}.json')\n" for split in ('val', 'test')
    )
    with (follow.folder / 'mine.py').open('a') as file:
        file.write(data + evaluators + "train_cfg = dict(max_epochs=1)\nmodel['bbox_head'].update(num_classes=5)\n")
    follow.shell(f'python -m mmdet_ddetr train mine.py --work-dir work_dirs/mine --cfg-options {small}')
    follow.shell(f'python -m mmdet_ddetr test mine.py work_dirs/mine/epoch_1.pth --cfg-options {small}')
    (follow.folder / 'program.py').write_text(
        program.replace("'mine.py'", "'work_dirs/mine/mine.py'")
        .replace('epoch_50', 'epoch_1')
        .replace('photo', 'data/coco/images/test/test_000001')
    )
    assert '0 attentions of mmcv were changed' in follow.shell('python program.py')
