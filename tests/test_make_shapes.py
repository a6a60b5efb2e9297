"""tools/make_shapes.py: the same seed gives the same bytes, and the boxes are where the shapes are."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / 'tools' / 'make_shapes.py'
SMALL = ['--train', '6', '--val', '3', '--test', '2', '--size', '64']


@pytest.fixture(scope='module')
def make_shapes():
    spec = importlib.util.spec_from_file_location('make_shapes', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digest(folder):
    """Of the names and bytes of all files below a folder."""
    state = hashlib.sha256()
    for path in sorted(folder.rglob('*')):
        if path.is_file():
            state.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return state.hexdigest()


def test_same_seed_same_bytes(make_shapes, tmp_path):
    for name, seed in (('a', '5'), ('b', '5'), ('c', '6')):
        make_shapes.main([str(tmp_path / name), *SMALL, '--seed', seed])
    assert digest(tmp_path / 'a') == digest(tmp_path / 'b')
    assert digest(tmp_path / 'a' / 'images') != digest(tmp_path / 'c' / 'images')


def test_a_split_does_not_depend_on_the_others(make_shapes, tmp_path):
    make_shapes.main([str(tmp_path / 'a'), *SMALL])
    make_shapes.main([str(tmp_path / 'b'), *SMALL, '--train', '2', '--test', '4'])
    assert digest(tmp_path / 'a' / 'images' / 'val') == digest(tmp_path / 'b' / 'images' / 'val')
    for split in ('train', 'test'):  # the shorter one is the beginning of the longer
        a, b = (sorted((tmp_path / x / 'images' / split).iterdir()) for x in 'ab')
        for one, other in zip(a, b):
            assert one.name == other.name and one.read_bytes() == other.read_bytes()


def test_boxes_are_tight_around_visible_pixels(make_shapes, monkeypatch):
    def paint(rng, image, alpha):  # the n-th shape gets the colour n
        image[alpha > 0.5] = image.max() + 1 if image.base is None else image.base.max() + 1

    monkeypatch.setattr(make_shapes, 'texture', lambda rng, size: np.zeros((size, size, 3), np.float32))
    monkeypatch.setattr(make_shapes, 'add_clutter', lambda rng, image: None)
    monkeypatch.setattr(make_shapes, 'finish', lambda rng, image: image)
    monkeypatch.setattr(make_shapes, 'paint', paint)
    n_boxes = 0
    for index in range(40):
        image, boxes = make_shapes.draw_image(np.random.default_rng(index), 128)
        assert image.max() == len(boxes)
        for colour, (label, (x, y, w, h)) in enumerate(boxes, 1):
            rows, columns = np.nonzero(image[..., 0] == colour)
            assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert 0 <= label < len(make_shapes.CLASSES)
        n_boxes += len(boxes)
    assert n_boxes > 40


@pytest.mark.parametrize(
    ('hole', 'area'), [(None, 8 * 6), ([(-2, -1), (2, -1), (2, 1), (-2, 1)], 8 * 6 - 4 * 2)], ids=['full', 'with hole']
)
def test_coverage_of_a_rectangle(make_shapes, hole, area):
    corners = np.array([(-4, -3), (4, -3), (4, 3), (-4, 3)]) + 10.0
    covered = make_shapes.coverage(corners, None if hole is None else np.array(hole) + 10.0, 2, 1, 16, 18)
    assert covered.shape == (18, 16)
    rows, columns = np.nonzero(covered > 0.5)
    # the window starts at (2, 1): columns 6..13 of the picture are 4..11 of the window, rows 7..12 are 6..11
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (4, 11, 6, 11)
    assert np.count_nonzero(covered > 0.5) == area


def test_what_a_detector_needs(make_shapes, tmp_path):
    """Classes in balance, sizes, crowds and empty images, and nothing that the data check objects to."""
    from mmdet_ddetr.datasets import check_coco, find_coco_folder

    make_shapes.main([str(tmp_path / 'shapes'), '--train', '150', '--val', '2', '--test', '2'])
    folder = find_coco_folder(tmp_path / 'shapes')
    assert folder.has_test
    report = check_coco(folder.train.ann_file, folder.train.image_dir, decode=True)
    assert not report.errors and not report.warnings and not report.repairs
    annotations = report.coco['annotations']
    areas = np.array([annotation['area'] for annotation in annotations])
    assert np.mean(areas < 32**2) >= 0.3
    assert np.mean((areas >= 32**2) & (areas < 96**2)) >= 0.2 and np.mean(areas >= 96**2) >= 0.05
    per_class = np.bincount([annotation['category_id'] for annotation in annotations], minlength=6)
    assert per_class[0] == 0 and per_class[1:].min() > 0.12 * len(annotations)
    per_image = np.bincount([annotation['image_id'] for annotation in annotations], minlength=151)[1:]
    assert per_image.max() >= 12 and per_image.max() <= make_shapes.MAX_BOXES and (per_image == 0).any()
    assert all(a['area'] == a['bbox'][2] * a['bbox'][3] and a['iscrowd'] == 0 for a in annotations)


def test_leaves_a_finished_folder_and_foreign_files_alone(make_shapes, tmp_path, capsys):
    out_dir = tmp_path / 'shapes'
    out_dir.mkdir()
    (out_dir / 'thesis.txt').write_text('irreplaceable')
    with pytest.raises(SystemExit, match='did not write'):
        make_shapes.main([str(out_dir), *SMALL])
    assert [path.name for path in out_dir.iterdir()] == ['thesis.txt']

    make_shapes.main([str(out_dir), *SMALL, '--force'])
    (out_dir / 'images' / 'val' / 'val_000001.jpg').write_bytes(b'mark')
    make_shapes.main([str(out_dir), *SMALL])  # the same request: nothing is written
    assert 'already complete' in capsys.readouterr().out
    assert (out_dir / 'images' / 'val' / 'val_000001.jpg').read_bytes() == b'mark'

    make_shapes.main([str(out_dir), *SMALL, '--val', '1'])  # another request: its own pictures are replaced
    assert [path.name for path in (out_dir / 'images' / 'val').iterdir()] == ['val_000001.jpg']
    assert (out_dir / 'images' / 'val' / 'val_000001.jpg').read_bytes() != b'mark'
    assert (out_dir / 'thesis.txt').read_text() == 'irreplaceable'


def test_goes_on_after_an_interruption(make_shapes, tmp_path, monkeypatch):
    make_shapes.main([str(tmp_path / 'whole'), *SMALL])
    with monkeypatch.context() as patch:
        patch.setattr(make_shapes.cv2, 'imwrite', lambda *_: False)  # the disk is full
        with pytest.raises(OSError, match='train_000001.jpg'):
            make_shapes.main([str(tmp_path / 'broken'), *SMALL])
    make_shapes.main([str(tmp_path / 'broken'), *SMALL])
    assert digest(tmp_path / 'broken') == digest(tmp_path / 'whole')


@pytest.mark.parametrize(
    ('option', 'value'),
    [('--size', '32'), ('--size', '100000'), ('--train', '0'), ('--seed', '-1')],
    ids=lambda text: text.strip('-'),
)
def test_bad_arguments(make_shapes, tmp_path, capsys, option, value):
    with pytest.raises(SystemExit):
        make_shapes.main([str(tmp_path / 'shapes'), option, value])
    assert f'{option} is {value}, expected' in capsys.readouterr().err


def test_needs_no_torch(tmp_path):
    code = (
        'import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__"); '
        'sys.exit("torch" in sys.modules or "mmengine" in sys.modules)'
    )
    run = subprocess.run([sys.executable, '-c', code, str(SCRIPT), str(tmp_path / 'shapes'), *SMALL])
    assert run.returncode == 0
    assert json.loads((tmp_path / 'shapes' / 'make_shapes.json').read_text())['finished']
