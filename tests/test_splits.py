"""A val split that is made has its share of each class, and no picture that resembles one of train."""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmdet_ddetr.datasets import CocoSplit, DataError, find_data, similar, split_off_val
from mmdet_ddetr.datasets.similar import group_alike
from mmdet_ddetr.datasets.splits import choose_val

SHARED = Path(__file__).parents[2] / 'shared' / 'data'


def scene(seed, size=(48, 64)):
    """Something smooth with edges, as photographs are."""
    return cv2.resize(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8), size[::-1])


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
    return path


def test_pictures_that_are_alike(tmp_path):
    original = scene(0, (96, 128))
    noisy = np.clip(original + np.random.default_rng(1).normal(0, 4, original.shape), 0, 255).astype(np.uint8)
    paths = [
        write(tmp_path / 'a.png', original),
        write(tmp_path / 'other.png', scene(1)),
        write(tmp_path / 'smaller.jpg', cv2.resize(original, (64, 48))),
        write(tmp_path / 'noisy.png', noisy),
        write(tmp_path / 'brighter.png', np.clip(original.astype(int) + 25, 0, 255).astype(np.uint8)),
        tmp_path / 'missing.png',
        write(tmp_path / 'mirrored.png', original[:, ::-1]),
        write(tmp_path / 'x_jpg.rf.0a1b.jpg', scene(2)),
        write(tmp_path / 'x_jpg.rf.9c8d.jpg', scene(2)[::-1]),
    ]
    assert group_alike(paths) == [[0, 2, 3, 4], [1], [5], [6], [7, 8]]


def test_frames_of_a_video_are_alike_by_what_follows(tmp_path):
    """A camera that pans over a wide scene: successive frames resemble each other, the first and the last do not."""
    wide = scene(3, (96, 600))
    frames = [write(tmp_path / f'cam{i // 8}_{i}.png', wide[:, 16 * i : 16 * i + 128]) for i in range(16)]
    assert group_alike(frames) == [list(range(8)), list(range(8, 16))]
    renamed = [write(tmp_path / f'{name}.png', cv2.imread(str(path))) for name, path in zip('sdlkjhgf', frames)]
    assert len(group_alike(renamed)) > 1, 'without names that follow each other it takes more likeness'


def alike_by_brute_force(thumbnails):
    """Components of the graph that has every pair, found without a matrix."""
    grey = np.asarray(thumbnails, float)
    coarse = grey.reshape(-1, 8, 2, 9, 2).mean((2, 4))
    lighter = coarse[:, :, 1:] > coarse[:, :, :-1]
    grey = grey - grey.mean((1, 2), keepdims=True)
    groups = [{i} for i in range(len(grey))]
    for i in range(len(grey)):
        for j in range(i):
            if (lighter[i] != lighter[j]).sum() <= 8 and np.abs(grey[i] - grey[j]).mean() <= 12:
                one, other = (next(group for group in groups if k in group) for k in (i, j))
                if one is not other:
                    one |= other
                    groups.remove(other)
    return sorted(map(sorted, groups))


@pytest.mark.parametrize('block', [7, 512])
def test_groups_are_those_of_all_pairs(monkeypatch, block):
    monkeypatch.setattr(similar, 'BLOCK', block)
    sizes = set()
    for seed in range(8):
        random = np.random.default_rng(seed)
        scenes = random.integers(0, 256, (5, 16, 18))
        drift = random.normal(0, 6, (60, 16, 18)) + 12 * random.integers(0, 2, (60, 1, 18))
        thumbnails = np.clip(scenes[random.integers(0, 5, 60)] + drift, 0, 255).astype(np.uint8)
        paths = [Path(f'{chr(97 + i // 26)}{chr(97 + i % 26)}.png') for i in range(60)]
        by_path = dict(zip(paths, thumbnails))
        monkeypatch.setattr(similar, '_thumbnail', by_path.get)
        monkeypatch.setattr(similar, '_series', lambda path: path)  # no neighbours
        groups = group_alike(paths)
        assert groups == alike_by_brute_force(thumbnails)
        sizes |= set(map(len, groups))
    assert len(sizes) > 3, 'groups of several sizes are to be compared'


def test_many_identical_pictures_keep_few_pairs(monkeypatch):
    paths = [Path(f'{i}.png') for i in range(3000)]
    monkeypatch.setattr(similar, '_thumbnail', lambda path: np.arange(288, dtype=np.uint8).reshape(16, 18))
    assert len(similar._alike(paths)) < 2 * len(paths)
    assert group_alike(paths) == [list(range(3000))]


@pytest.mark.skipif(not SHARED.is_dir(), reason='the real data are not here')
def test_real_pictures_are_not_alike():
    assert all(len(group) == 1 for group in group_alike(sorted((SHARED / 'coco-mini/val2017').iterdir())))
    cells = sorted((SHARED / 'bccd/images').iterdir())[:60]
    assert [[cells[i].stem[-2:] for i in group] for group in group_alike(cells) if len(group) > 1] == [['37', '38']]


def test_each_class_is_dealt_out():
    """100 images: a common class, two rarer ones, a tenth without any; 20 of them are one group."""
    classes = [set() if i % 10 == 0 else {'common'} | ({'rare'} if i % 13 == 1 else set()) for i in range(100)]
    for i in (3, 7, 51, 88):
        classes[i].add('four')
    classes[99].add('one')
    groups = [list(range(40, 60)), *([i] for i in range(100) if not 40 <= i < 60)]
    for seed in range(20):
        val = choose_val(groups, classes, 0.2, seed)
        count = Counter(name for i in val for name in classes[i] or {'none'})
        assert len(val) == 20 and abs(count['none'] - 2) <= 1 and count['four'] == 1 and count['one'] == 0
        assert count['rare'] in (1, 2) and len(val & set(range(40, 60))) in (0, 20)
        small = choose_val(groups, classes, 0.1, seed)
        assert len(small) in (9, 10) and not small & set(range(40, 60)), 'the group is larger than val'
        assert sum('four' in classes[i] for i in small) == 1, 'a class of four images has one of them in val'
    one, again, other = (choose_val(groups, classes, 0.2, seed) for seed in (1, 1, 2))
    assert one == again != other
    films = [list(range(start, start + 20)) for start in range(0, 80, 20)]
    classes = [{'common', 'in each film'} if i in (5, 25, 45, 65) else {'common'} for i in range(100)]
    assert len(choose_val([*films, *([i] for i in range(80, 100))], classes, 0.1)) == 10, 'a film is larger than val'
    films = [list(range(start, start + 12)) for start in range(0, 96, 12)]
    val = choose_val([*films, *([i] for i in range(96, 100))], [{1}] * 100, 0.2)
    assert len(val) == 16, 'one film and the other four: those alone are too few'
    for n in (2, 3, 7):
        assert len(choose_val([[i] for i in range(n)], [{1}] * n, 0.15)) == 1


def coco_of(tmp_path, pictures):
    images = [dict(id=i, file_name=name, width=64, height=48) for i, name in enumerate(pictures)]
    for name, pixels in pictures.items():
        write(tmp_path / name, pixels)
    boxes = [dict(id=i + 1, image_id=i, category_id=0, bbox=[1, 1, 9, 9]) for i in range(len(images))]
    path = tmp_path / 'train.json'
    path.write_text(json.dumps(dict(images=images, annotations=boxes, categories=[dict(id=0, name='a')])))
    return CocoSplit('train', path, tmp_path)


def names(split):
    return [image['file_name'] for image in json.loads(split.ann_file.read_text())['images']]


def test_copies_stay_on_one_side(tmp_path):
    pictures = {f'{kind}{i}.png': cv2.resize(scene(i), size) for i in range(8)
                for kind, size in (('a', (64, 48)), ('b', (128, 96)))}  # fmt: skip
    split = coco_of(tmp_path, pictures)
    for seed in range(4):
        train, val, notes = split_off_val(split, 0.25, tmp_path / f'out{seed}', seed)
        numbers = [{name[1] for name in names(part)} for part in (train, val)]
        assert len(names(val)) == 4 and not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 8
    assert notes[0] == 'no val split is there: 4 images (25%) of train became val, nearly the same share of each class'
    assert notes[1] == '16 images in 8 groups look nearly alike: each group is on one side'


def test_a_camera_that_stands_still(tmp_path):
    """All are alike: val is the end of it, and that is said."""
    still = scene(0)
    pictures = {f'frame{i}.png': np.clip(still.astype(int) + i, 0, 255).astype(np.uint8) for i in range(12)}
    train, val, notes = split_off_val(coco_of(tmp_path, pictures), 0.25, tmp_path / 'out')
    assert names(val) == ['frame9.png', 'frame10.png', 'frame11.png'] and len(names(train)) == 9
    assert 'frame9.png to frame11.png, are val: its AP will look better than it is' in notes[-1]


def test_added_images_leave_the_known_where_they_are(tmp_path):
    """An image that was trained on never becomes val, in the same work_dir or with the detector of another."""
    pictures = {f'p{i:02}.png': scene(i) for i in range(20)}
    for seed in range(6):
        first = dict(list(pictures.items())[:14] if seed % 2 else list(pictures.items())[6:])
        out, other = tmp_path / f'{seed}', tmp_path / f'other{seed}'
        train, val, notes = split_off_val(coco_of(tmp_path, first), 0.15, out, seed)
        old_train, old_val = set(names(train)), set(names(val))
        assert len(old_train) == 12 and len(old_val) == 2 and len(notes) == 1
        for folder, earlier in ((other, [out]), (out, [out])):
            train, val, notes = split_off_val(coco_of(tmp_path, pictures), 0.15, folder, seed + 1, earlier)
            assert old_train < set(names(train)) and old_val < set(names(val)) and len(names(val)) == 3
            assert notes[1:] == ['14 images are on the side that an earlier split gave them; 6 are new']


def test_without_an_earlier_split_added_images_move_few():
    names = [f'p{i}.png' for i in range(200)]
    moved = 0
    for seed in range(5):
        before = choose_val([[i] for i in range(190)], [{1}] * 190, 0.2, seed, names)
        after = choose_val([[i] for i in range(200)], [{1}] * 200, 0.2, seed, names)
        moved += len((after - before) & set(range(190)))
        reordered = names[::-1]
        again = choose_val([[i] for i in range(200)], [{1}] * 200, 0.2, seed, reordered)
        assert {names[i] for i in after} == {reordered[i] for i in again}, 'the order of the file is of no account'
    assert moved <= 5 * 8, f'{moved} of 5 x 152 came from train to val'


def test_new_pictures_follow_the_known_that_they_are_like(tmp_path):
    first = {f'p{i}.png': scene(i) for i in range(6)}
    train, val, _ = split_off_val(coco_of(tmp_path, first), 0.3, tmp_path / 'out')
    side_of = {name: side for side, part in (('train', train), ('val', val)) for name in names(part)}
    copies = {f'a copy of {name}': cv2.resize(pixels, (128, 96)) for name, pixels in first.items()}
    train, val, _ = split_off_val(coco_of(tmp_path, copies | first), 0.3, tmp_path / 'out', earlier=[tmp_path / 'out'])
    for name, side in side_of.items():
        assert {name, f'a copy of {name}'} <= set(names(train if side == 'train' else val))


def test_images_that_were_all_trained_on_make_no_val_split(tmp_path):
    pictures = {f'p{i}.png': scene(i) for i in range(6)}
    train, val, _ = split_off_val(coco_of(tmp_path, pictures), 0.3, tmp_path / 'out')
    rest = {name: pictures[name] for name in names(train)}
    with pytest.raises(DataError, match='4 images, all of which are in the train split of .*out.*another --work-dir'):
        split_off_val(coco_of(tmp_path, rest), 0.3, tmp_path / 'out', earlier=[tmp_path / 'out'])
    rest = {name: pixels for name, pixels in pictures.items() if name not in rest}
    _, val, _ = split_off_val(coco_of(tmp_path, rest), 0.5, tmp_path / 'out', earlier=[tmp_path / 'out'])
    assert len(names(val)) == 1


def test_the_split_beside_the_checkpoint_is_kept(tmp_path):
    for count, work_dir, load_from in ((14, 'mine', None), (20, 'mine2', tmp_path / 'mine/best.pth')):
        coco_of(tmp_path / 'data', {f'p{i:02}.png': scene(i) for i in range(20 - count, 20)})
        folder = find_data(tmp_path / 'data', tmp_path / work_dir, seed=count, load_from=load_from)
        if count == 14:
            trained_on = set(names(folder.train))
    assert len(trained_on) == 12 and trained_on < set(names(folder.train)) and len(names(folder.val)) == 3
    assert '14 images are on the side that an earlier split gave them; 6 are new' in folder.notes
    (tmp_path / 'mine2/iter_3.pth').touch()
    again = find_data(tmp_path / 'data', tmp_path / 'mine2', 0.4)
    assert names(again.train) == names(folder.train)
    (tmp_path / 'mine2/iter_3.pth').unlink()  # nothing was trained there: other options make another split
    again = find_data(tmp_path / 'data', tmp_path / 'mine2', 0.4)
    assert len(names(again.val)) == 8
