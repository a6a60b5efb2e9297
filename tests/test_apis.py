"""Configs by name, the inferencer, mmdet's inference functions and the command line tools, on a trained checkpoint."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import mmdet.apis
import numpy as np
import pytest

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import DDetrInferencer, find_config, list_configs

ROOT = Path(__file__).parents[1]
NAME = 'deformable-detr-refine-twostage_lite0_shapes'
CLASSES = ['circle', 'square', 'triangle', 'star', 'ring']
QUICK = [
    '--cfg-options',
    'model.backbone.init_cfg=None',
    'train_dataloader.batch_size=8',  # an epoch is one iteration
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
]
QUICK += ['train_dataloader.persistent_workers=False', 'val_dataloader.persistent_workers=False']
QUICK_TEST = ['--cfg-options', 'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']


@pytest.fixture(scope='module')
def checkpoint(workspace, run_tool):
    """The last checkpoint of one epoch with tools/train.py."""
    code, text = run_tool('train.py', NAME, '--work-dir=wd', '--seed=1', *QUICK, 'train_cfg.max_epochs=1')
    assert code == 0, text
    return workspace / 'wd/epoch_1.pth'


@pytest.fixture(scope='module')
def images(workspace):
    return workspace / 'data/shapes/images'


# --- configs ---------------------------------------------------------------------------------------------------------


def test_find_config():
    path = ROOT / 'configs/quickstart' / f'{NAME}.py'
    assert find_config(NAME).samefile(path)
    assert find_config(f'{NAME}.py').samefile(path)
    assert find_config(path) == path
    assert get_config(NAME).model.num_queries == 60


def test_list_configs_has_no_fragment():
    assert set(list_configs()) == {p.stem for p in ROOT.glob('configs/*/*.py') if p.parent.name != '_base_'}


@pytest.mark.parametrize('name', ['deformable-detr-refine_r50_16xb2-50e_voc', f'no/such/folder/{NAME}.py'])
def test_unknown_config_names_the_nearest(name):
    with pytest.raises(FileNotFoundError, match=f"'{name}'.*like .*deformable-detr-refine"):
        find_config(name)


def test_unknown_config_that_is_like_none():
    """A list of all would fill the screen."""
    with pytest.raises(FileNotFoundError, match="no config 'nope': .*; docs/model_zoo.md .* its (.*) names$") as info:
        find_config('nope')
    assert f' {len(list_configs())} names' in str(info.value) and len(str(info.value)) < 200
    assert (ROOT / 'docs/model_zoo.md').is_file()


# --- the inferencer --------------------------------------------------------------------------------------------------


def test_inferencer_on_a_folder(checkpoint, images, tmp_path):
    inferencer = DDetrInferencer(weights=checkpoint, device='cpu', show_progress=False)
    assert list(inferencer.model.dataset_meta['classes']) == CLASSES

    results = inferencer(images / 'val', batch_size=3, out_dir=str(tmp_path), pred_score_thr=0.0)['predictions']
    names = sorted(path.stem for path in (images / 'val').iterdir())
    assert len(results) == len(names) == 4
    assert sorted(path.stem for path in (tmp_path / 'preds').iterdir()) == names
    for name, result in zip(names, results, strict=True):  # in the order of the file names
        assert json.loads((tmp_path / 'preds' / f'{name}.json').read_text()) == result
        assert len(result['bboxes']) == len(result['scores']) == len(result['labels']) == 100
        picture = cv2.imread(str(tmp_path / 'vis' / f'{name}.jpg'))
        assert (np.abs(picture.astype(int) - cv2.imread(str(images / 'val' / f'{name}.jpg'))) > 64).any(), (
            'nothing drawn'
        )


def test_inferencer_batches_do_not_change_results(checkpoint, images):
    """By name; images of two sizes in one batch; a file, a Path and an array are the same image."""
    inferencer = DDetrInferencer(NAME, checkpoint, device='cpu', show_progress=False)
    path = next((images / 'test').iterdir())
    image = cv2.imread(str(path))
    batch = inferencer([str(path), path, image, image[:60]], batch_size=4)['predictions']
    alone = inferencer(path)['predictions'][0]
    for result in batch[:3]:
        np.testing.assert_allclose(result['bboxes'], alone['bboxes'], rtol=1e-4, atol=1e-2)
        np.testing.assert_allclose(result['scores'], alone['scores'], rtol=1e-4)
    assert np.array(batch[3]['bboxes'])[:, 3].max() <= 60  # clipped to its own size


def test_inferencer_takes_configs_of_mmdet(images):
    with pytest.warns(UserWarning, match='randomly initialized'):
        inferencer = DDetrInferencer(
            get_config('deformable-detr_r50_16xb2-50e_coco'), device='cpu', show_progress=False
        )
    assert len(inferencer.model.dataset_meta['classes']) == 80


def test_inferencer_errors(checkpoint, tmp_path):
    with pytest.raises(ValueError, match=f'weights: {NAME} has no published checkpoint'):
        DDetrInferencer(NAME)
    with pytest.raises(FileNotFoundError, match=r"weights: no checkpoint '.*nothing\.pth'"):
        DDetrInferencer(NAME, tmp_path / 'nothing.pth')
    with pytest.raises(FileNotFoundError, match="'deformable-detr-refine-twostage_lite0_shape'.*" + NAME):
        DDetrInferencer('deformable-detr-refine-twostage_lite0_shape', checkpoint)
    with pytest.raises(ValueError, match=r'weights: .* is \[5.*\] in the checkpoint and \[80.*\] in the model'):
        DDetrInferencer('deformable-detr-refine-twostage_lite0_finetune', checkpoint, device='cpu')
    inferencer = DDetrInferencer(weights=checkpoint, device='cpu', show_progress=False)
    with pytest.raises(ValueError, match='no image in'):
        inferencer(tmp_path)


def test_mmdet_inference(checkpoint, images):
    """mmdet's functions take our configs as they are, and agree with the inferencer."""
    model = mmdet.apis.init_detector(str(find_config(NAME)), str(checkpoint), device='cpu')
    assert list(model.dataset_meta['classes']) == CLASSES
    path = str(next((images / 'val').iterdir()))
    sample, from_array = (mmdet.apis.inference_detector(model, image) for image in (path, cv2.imread(path)))
    expected = DDetrInferencer(weights=checkpoint, device='cpu', show_progress=False)(path)['predictions'][0]
    np.testing.assert_allclose(sample.pred_instances.scores, expected['scores'], rtol=1e-5)
    np.testing.assert_allclose(from_array.pred_instances.scores, expected['scores'], rtol=1e-5)


# --- the tools -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resume(checkpoint, run_tool):
    options = [*QUICK, 'train_cfg.max_epochs=2', 'default_hooks.logger.interval=1']
    code, text = run_tool('train.py', NAME, '--work-dir=wd', '--resume', *options)
    assert code == 0, text
    assert 'resumed epoch: 1, iter: 1' in text
    assert 'Epoch(train) [2][1/1]' in text
    assert 'Epoch(train) [1]' not in text


def test_test_tool(checkpoint, workspace, run_tool):
    args = [NAME, checkpoint, '--work-dir=tested', '--out=out.pkl', '--show-dir=pictures', *QUICK_TEST]
    code, text = run_tool('test.py', *args)
    assert code == 0, text
    assert 'coco/bbox_mAP: ' in text
    with open(workspace / 'out.pkl', 'rb') as file:
        assert len(pickle.load(file)) == 4
    assert len(list(workspace.glob('tested/*/pictures/*.*'))) == 4


def test_tta(checkpoint, run_tool):
    """With the config of a resumed training, as it is written to the work directory."""
    code, text = run_tool('test.py', NAME, checkpoint, '--work-dir=tta', '--tta', *QUICK_TEST, 'resume=True')
    assert code == 0, text
    assert 'coco/bbox_mAP: ' in text


@pytest.mark.parametrize('name', ['train.py', 'test.py', 'finetune.py', 'complexity.py'])
def test_help_is_fast(name):
    """mim asks for it before each training: nothing is imported for it that takes time."""
    code = f"""
import runpy, sys
sys.argv = ['{name}', '-h']
sys.path.insert(0, 'tools')
try:
    runpy.run_path('tools/{name}', run_name='__main__')
finally:
    print('imported:', *{{module.partition('.')[0] for module in sys.modules}})
"""
    text = subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert not {'torch', 'numpy', 'cv2', 'mmengine', 'mmcv', 'mmdet'} & set(text.split('imported:')[1].split())
    assert '--gpus' not in text, 'mim would pass --gpus or --device'


@pytest.mark.parametrize(
    ('name', 'args', 'rank'),
    [
        ('train.py', ['none.py'], '--local_rank'),
        pytest.param('test.py', ['none.py', 'none.pth'], '--local-rank', marks=pytest.mark.slow),
    ],
)
def test_arguments_of_launchers(name, args, rank, run_tool):
    """Old and new launchers spell the rank differently; the run gets as far as the missing config."""
    code, text = run_tool(name, *args, f'{rank}=1', '--launcher=pytorch')
    assert code != 0
    assert text.splitlines()[-1].startswith(f"{name}: no config 'none.py'")


def test_train_errors(run_tool):
    options = ['--cfg-options', 'auto_scale_lr=None']
    code, text = run_tool('train.py', NAME, '--auto-scale-lr', *options)
    assert code != 0
    assert '--auto-scale-lr: ' in text.splitlines()[-1]


@pytest.mark.parametrize(
    ('script', 'args'), [('dist_train.sh', ['c.py', '2']), ('dist_test.sh', ['c.py', 'e.pth', '2'])]
)
def test_distributed_scripts(script, args, tmp_path):
    """The command they end in, with ``echo`` for Python."""
    command = ['bash', ROOT / 'tools' / script, *args, '--amp']
    env = dict(PYTHON='echo', PORT='1234', NNODES='3', NODE_RANK='1', MASTER_ADDR='host', PATH='/usr/bin:/bin')
    text = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    assert text.startswith(
        '-m torch.distributed.run --nnodes 3 --node-rank 1 --nproc-per-node 2 --master-addr host --master-port 1234 '
    )
    assert text.endswith(f'{" ".join(args[:-1])} --launcher pytorch --amp\n')
