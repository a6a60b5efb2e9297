"""A folder as labelling tools write it is found to be what it is, and each fault names the user's own file and line."""

import json
import random
import re
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np
import pytest

from mmdet_ddetr.apis.data_check import check_folder
from mmdet_ddetr.datasets import DataError, find_data
from mmdet_ddetr.datasets.file_names import misspelt_names

WIDTH, HEIGHT = 40, 20
BOX = (4, 5, 20, 15)  # x1, y1, x2, y2 of the one box in each image, in px


def picture(path, seed=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = abs(hash(str(path))) if seed is None else seed
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def yolo_line(label=0, box=BOX):
    x1, y1, x2, y2 = box
    return f'{label} {(x1 + x2) / 2 / WIDTH} {(y1 + y2) / 2 / HEIGHT} {(x2 - x1) / WIDTH} {(y2 - y1) / HEIGHT}\n'


def xml(path, name='cat', box=BOX, size=True, filename=None, extra=''):
    x1, y1, x2, y2 = box
    size = f'<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>' if size else ''
    corners = f'<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>'
    item = f'<object>\n<name>{escape(name)}</name>{extra}\n<bndbox>{corners}</bndbox>\n</object>'
    filename = filename or path.with_suffix('.png').name
    text(path, f'<annotation>\n<filename>{filename}</filename>\n{size}\n{item}\n</annotation>\n')


def read(split):
    return json.loads(split.ann_file.read_text())


def found_in(root, tmp_path, **options):
    """What is found and passes the check: the folder, and of each split files and (class, x, y, w, h)."""
    folder, _, said = check_folder(find_data(root, tmp_path / 'work', **options), tmp_path / 'work')
    contents = {}
    for split in folder.splits:
        coco = read(split)
        names = {category['id']: category['name'] for category in coco['categories']}
        boxes = [(names[a['category_id']], *np.round(a['bbox'], 6).tolist()) for a in coco['annotations']]
        contents[split.name] = sorted(image['file_name'] for image in coco['images']), boxes
    return folder, contents, said


def refusal(root, tmp_path, **options):
    with pytest.raises(DataError) as error:
        check_folder(find_data(root, tmp_path / 'work', **options), tmp_path / 'work')
    return str(error.value)


CAT = ('cat', 4, 5, 16, 10)
LABELME = '{"version": "5", "shapes": [{"label": "cat", "points": [[4, 5], [20, 15]]}], "imagePath": "a.png"}'
DATA_YAML = 'train: {train}\nval: {val}\nnc: 2\nnames: [cat, dog]\n'


# --------------------------------------------------------------------------------------------------------------- YOLO
def ultralytics(root):
    for split in ('train', 'val'):
        picture(root / f'images/{split}/{split}_1.png')
        text(root / f'labels/{split}/{split}_1.txt', yolo_line())
    text(
        root / 'data.yaml', 'path: ../datasets/pets\ntrain: images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n'
    )
    return ['images/train/train_1.png'], ['images/val/val_1.png']


def roboflow(root):
    """Its paths have a .. too many."""
    for split in ('train', 'valid'):
        picture(root / f'{split}/images/{split}_1.png')
        text(root / f'{split}/labels/{split}_1.txt', yolo_line())
    text(root / 'data.yaml', DATA_YAML.format(train='../train/images', val='../valid/images'))
    return ['train/images/train_1.png'], ['valid/images/valid_1.png']


def lists(root):
    """Of files; the paths are of the machine that wrote them."""
    for split in ('train', 'val'):
        picture(root / f'images/{split}_1.png')
        text(root / f'labels/{split}_1.txt', yolo_line())
        text(root / f'{split}.txt', f'/home/me/pets/images/{split}_1.png\n')
    text(root / 'data.yaml', DATA_YAML.format(train='train.txt', val='/home/me/pets/val.txt'))
    return ['images/train_1.png'], ['images/val_1.png']


def darknet(root):
    """CVAT's: names beside, lists, labels beside the pictures."""
    for split, folder in (('train', 'obj_train_data'), ('valid', 'obj_valid_data')):
        picture(root / f'{folder}/{split}_1.png')
        text(root / f'{folder}/{split}_1.txt', yolo_line())
        text(root / f'{split}.txt', f'data/{folder}/{split}_1.png\n')
    text(root / 'obj.names', 'cat\ndog\n')
    return ['obj_train_data/train_1.png'], ['obj_valid_data/valid_1.png']


def names_beside(root):
    """No data.yaml: splits are folders."""
    for split in ('train', 'val'):
        picture(root / f'images/{split}/{split}_1.png')
        text(root / f'labels/{split}/{split}_1.txt', yolo_line())
    text(root / 'classes.txt', 'cat\ndog\n')
    picture(root / 'docs/example.png')  # no part of the data
    return ['images/train/train_1.png'], ['images/val/val_1.png']


@pytest.mark.parametrize('layout', [ultralytics, roboflow, lists, darknet, names_beside], ids=lambda f: f.__name__)
def test_yolo_layouts(tmp_path, layout):
    root = tmp_path / 'pets'
    train, val = layout(root)
    before = sorted(root.rglob('*'))
    folder, contents, said = found_in(root, tmp_path)
    assert folder.format == 'YOLO' and contents == {'train': (train, [CAT]), 'val': (val, [CAT])}
    assert said.count('warning') == said.count("1 x category without a box\n                    id 1, 'dog'") == 2
    assert sorted(root.rglob('*')) == before, 'something was written beside the data'


def absolute_lists(root):
    """Of this machine."""
    lists(root)
    for split in ('train', 'val'):
        text(root / f'{split}.txt', f'{root}/images/{split}_1.png\n')


def voc_folders(root):
    for split in ('train', 'val'):
        picture(root / f'{split}/{split}_1.png')
        xml(root / f'{split}/{split}_1.xml')


def csv_with_absolute_paths(root):
    for split in ('train', 'val'):
        picture(root / f'images/{split}_1.png')
        text(root / f'{split}.csv', f'{root}/images/{split}_1.png,4,5,20,15,cat\n')


def coco(root):
    for split in ('train', 'val'):
        picture(root / f'images/{split}/1.png')
        box = dict(id=1, image_id=1, category_id=0, bbox=[4, 5, 16, 10], area=160, iscrowd=0)
        images = [dict(id=1, file_name='1.png', width=WIDTH, height=HEIGHT)]
        content = dict(images=images, annotations=[box], categories=[dict(id=0, name='cat')])
        text(root / f'annotations/{split}.json', json.dumps(content))


@pytest.mark.parametrize(
    'layout',
    [ultralytics, roboflow, lists, absolute_lists, voc_folders, csv_with_absolute_paths, coco],
    ids=lambda f: f.__name__,
)
def test_every_spelling_of_a_folder_has_the_same_output(tmp_path, monkeypatch, layout):
    root = tmp_path / 'd' / 'my pets'
    layout(root)
    (tmp_path / 'here').mkdir()
    (tmp_path / 'link').symlink_to(root)
    monkeypatch.chdir(tmp_path / 'here')
    outcomes = []
    for number, spelling in enumerate([str(root), '../d/my pets', f'{tmp_path}/here/../d/my pets', '../link']):
        folder, contents, said = found_in(spelling, tmp_path / str(number))
        assert 'leads out of' not in said
        said = said.replace(str(tmp_path / str(number)), 'OUT').replace(spelling, 'ROOT')
        outcomes.append((folder.format, contents, said))
    assert all(outcome == outcomes[0] for outcome in outcomes[1:])
    assert str(tmp_path) not in outcomes[0][2]


@pytest.fixture
def pets(tmp_path):
    """A YOLO data set of three images in train and one in val."""
    root = tmp_path / 'pets'
    for split, number in (('train', 1), ('train', 2), ('train', 3), ('val', 1)):
        picture(root / f'images/{split}/{split}_{number}.png')
        text(root / f'labels/{split}/{split}_{number}.txt', yolo_line(0) + yolo_line(1, (0, 0, 10, 10)))
    text(root / 'data.yaml', DATA_YAML.format(train='images/train', val='images/val'))
    return root


@pytest.mark.parametrize(
    ('line', 'rule', 'place'),
    [
        ('7 0.5 0.5 0.2 0.2', 'class that has no name', ': class 7, but data.yaml names 0 to 1'),
        ('0 312 0.5 0.2 0.2', 'coordinate outside of [0, 1]', ': 312'),
        ('0 0.5 0.5 0.2', 'line that is not a class and four numbers', ": '0 0.5 0.5 0.2'"),
        ('0 0.5 0.5 0.2 nan', 'line that is not a class and four numbers', ": '0 0.5 0.5 0.2 nan'"),
        ('RBC 0.5 0.5 0.2 0.2', 'class that is no number', ": class must be a number, found 'RBC'"),
        ('cat 0.5 0.5 0.2', 'line that is not a class and four numbers', ": 'cat 0.5"),
        ('0.5 0.5 0.5 0.2 0.2', 'class that is no whole number', ': class 0.5'),
        ('0 0.1 0.1 0.5 0.5 0.3 0.9 0.2', 'polygon of an odd number of coordinates', ': 7 numbers'),
        ('0 0.5 0.5 0 0.2', 'bbox without an area', ' (images/train/train_2.png): bbox'),
        ('0 0.5 0.5 0.001 0.2', 'bbox thinner than 1 px', ' (images/train/train_2.png): bbox'),
    ],
)
def test_faults_of_yolo_lines(pets, tmp_path, line, rule, place):
    path = pets / 'labels/train/train_2.txt'
    path.write_text(f'{yolo_line()}\n{line}\n')
    said = refusal(pets, tmp_path)
    assert rule in said and f'labels/train/train_2.txt, line 3{place}' in said and '--drop-bad' in said
    assert ' 1 x ' in said and '\n1 error in' in said
    folder, reports, said = check_folder(find_data(pets, tmp_path / 'work'), tmp_path / 'work', drop_bad=True)
    unread = 'bbox' not in rule
    assert ('\ntrain: 1 unreadable label left out; the copy' in said) == unread
    assert len(read(folder.train)['annotations']) == 5 and not reports['train'].errors


def test_yolo_images_without_objects(pets, tmp_path):
    (pets / 'labels/train/train_1.txt').write_text('')
    (pets / 'labels/train/train_2.txt').unlink()
    _, contents, said = found_in(pets, tmp_path)
    assert len(contents['train'][0]) == 3 and len(contents['train'][1]) == 2
    assert '2 x image without boxes\n                    labels/train/train_1.txt' in said
    assert '1 x image without a label file (taken as an image without objects)' in said


def test_yolo_number_of_classes(pets, tmp_path):
    (pets / 'data.yaml').write_text(DATA_YAML.format(train='images/train', val='images/val').replace('nc: 2', 'nc: 3'))
    assert 'data.yaml, line 3: nc is 3, names has 2' in found_in(pets, tmp_path)[2]


def test_yolo_label_without_image(pets, tmp_path):
    (pets / 'images/train/train_2.png').unlink()
    said = refusal(pets, tmp_path)
    assert '1 x label file without an image' in said and 'labels/train/train_2.txt, line 1' in said


def test_yolo_names_that_differ_in_capitals(pets, tmp_path):
    (pets / 'images/train/train_2.png').rename(pets / 'images/train/Train_2.PNG')
    _, contents, said = found_in(pets, tmp_path)
    assert len(contents['train'][1]) == 6
    assert 'labels/train/train_2.txt, for images/train/Train_2.PNG' in said


def test_yolo_polygons_and_confidences(pets, tmp_path):
    (pets / 'labels/train/train_1.txt').write_text('1 0.1 0.25 0.5 0.25 0.3 0.75\n0 0.5 0.5 0.5 0.5 0.93\n')
    _, contents, said = found_in(pets, tmp_path)
    assert contents['train'][1][:2] == [('dog', 4, 5, 16, 10), ('cat', 10, 5, 20, 10)]
    assert 'polygon (the box around it is used)\n                    labels/train/train_1.txt, line 1' in said


def test_yolo_keypoints(pets, tmp_path):
    with open(pets / 'data.yaml', 'a') as file:
        file.write('kpt_shape: [2, 2]\n')
    (pets / 'labels/train/train_1.txt').write_text('1 0.3 0.5 0.4 0.5 0.1 0.1 0.2 0.2\n')
    _, contents, said = found_in(pets, tmp_path)
    assert contents['train'][1][0] == ('dog', 4, 5, 16, 10)
    assert '1 x keypoints behind the box (not used)' in said


def test_yolo_oriented_boxes(pets, tmp_path):
    """They are told from polygons where every line has four corners."""
    corners = '0.1 0.25 0.5 0.25 0.5 0.75 0.1 0.75'
    for path in pets.glob('labels/*/*.txt'):
        path.write_text(f'0 {corners}\n')
    _, contents, said = found_in(pets, tmp_path)
    assert contents['train'][1] == [CAT] * 3
    assert '3 x oriented box, or polygon of four corners (the upright box around it is used)' in said
    path.write_text(f'0 {corners} 0.05 0.5\n')
    assert 'oriented box' not in found_in(pets, tmp_path)[2]


def test_yolo_classes_that_begin_at_1(pets, tmp_path):
    for path in pets.glob('labels/*/*.txt'):
        path.write_text(yolo_line(1) + yolo_line(2, (0, 0, 10, 10)))
    cause = 'no box has class 0 and some have class 2: do the classes begin at 1?'
    assert f'3 x class that has no name ({cause})' in refusal(pets, tmp_path)
    path.write_text(yolo_line(0))
    assert cause not in refusal(pets, tmp_path)


def test_yolo_in_pixels(pets, tmp_path):
    """One cause and no further faults, and no --drop-bad, which would leave nothing."""
    for path in pets.glob('labels/*/*.txt'):
        path.write_text('0 12 10 16 10\n')
    said = refusal(pets, tmp_path)
    assert 'every box has a number above 1, such as 16 in labels/train/train_1.txt, line 1' in said
    assert 'look like pixels' in said and '--drop-bad' not in said


def test_yolo_image_with_labels_of_another_format(pets, tmp_path):
    """It is not an image without objects."""
    (pets / 'labels/train/train_2.txt').unlink()
    text(pets / 'images/train/train_2.json', LABELME)
    _, contents, said = found_in(pets, tmp_path)
    assert len(contents['train'][0]) == 2 and 'without a label file' not in said
    assert 'not read (left out; convert the labels to YOLO)' in said
    assert 'images/train/train_2.png: images/train/train_2.json, LabelMe' in said


@pytest.mark.parametrize('splits', [['val'], ['train', 'val']])
def test_yolo_split_with_labels_of_another_format_alone(pets, tmp_path, splits):
    """It is told where no picture of a split is left, and what the labels are where none is left at all."""
    for split in splits:
        for path in (pets / 'labels' / split).glob('*.txt'):
            path.unlink()
            text(pets / 'images' / split / f'{path.stem}.json', LABELME)
    if splits == ['val']:
        assert 'images/val/val_1.json, LabelMe' in found_in(pets, tmp_path)[2]
    else:
        assert re.search(r'(?s)no images to train on.*is in the format of LabelMe', refusal(pets, tmp_path))


def test_one_large_number_is_no_pixel(pets, tmp_path):
    """A wrong digit is an error of its line."""
    for path in pets.glob('labels/*/*.txt'):
        path.write_text('0 0.5 0.5 1.2 0.4\n')
    said = refusal(pets, tmp_path)
    assert 'pixels' not in said and 'labels/train/train_1.txt, line 1: 1.2' in said


def test_xml_of_an_unknown_encoding(tmp_path):
    text(tmp_path / 'data' / 'x.xml', '<?xml version="1.0" encoding="foo"?><annotation/>')
    assert 'has no labels of COCO, YOLO, Pascal VOC or CSV' in refusal(tmp_path / 'data', tmp_path)


def test_yolo_boxes_of_a_turned_picture(pets, tmp_path):
    """Shares are of the upright picture, which is 20 x 40 here."""
    from PIL import Image

    path = pets / 'images/train/train_1.png'
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    (pets / 'labels/train/train_1.txt').write_text('0 0.5 0.5 0.5 0.5\n')
    assert found_in(pets, tmp_path)[1]['train'][1][0] == ('cat', 5, 10, 10, 20)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('train: images/train\nnames: [cat\n', 'data.yaml, line 3: not YAML'),
        ('train: images/train\nval: images/val\nnames: cat\n', 'data.yaml, line 3: names is cat, expected a list'),
        ('names: [cat, dog]\ntrain: pictures/all\n', "data.yaml, line 2: train is 'pictures/all', which is not there"),
        ('names: !!python/object/apply:os.system [ls]\n', 'data.yaml, line 1: not YAML: could not determine a cons'),
    ],
)
def test_faults_of_data_yaml(pets, tmp_path, content, message):
    (pets / 'data.yaml').write_text(content)
    with pytest.raises(DataError, match='data.yaml') as error:
        find_data(pets, tmp_path / 'work')
    assert message in str(error.value)


def test_classes_without_names_say_how_to_name_them(tmp_path):
    root = tmp_path / 'pets'
    names_beside(root)
    (root / 'classes.txt').unlink()
    said = found_in(root, tmp_path)[2]
    remedy = 'no classes.txt (write a classes.txt with one name a line beside the pictures)'
    assert remedy in said and 'class 0' in found_in(root, tmp_path)[1]['train'][1][0][0]
    text(root / 'images/train/classes.txt', 'cat\n')
    assert found_in(root, tmp_path)[1]['train'][1] == [CAT], 'the remedy works'


def test_a_blank_line_among_names_is_refused(tmp_path):
    """It would move all later classes."""
    root = tmp_path / 'pets'
    names_beside(root)
    text(root / 'classes.txt', 'cat\ndog\n\n \n')
    assert found_in(root, tmp_path)[1]['train'][1] == [CAT]
    for content, line in (('\ncat\ndog\n', 1), ('cat\n \ndog\n', 2)):
        text(root / 'classes.txt', content)
        with pytest.raises(DataError, match=rf'classes.txt, line {line}: blank, expected the name of class {line - 1}'):
            find_data(root, tmp_path / 'work')


def test_val_split_of_data_yaml_that_is_not_there(pets, tmp_path):
    """Roboflow names it even where all images are in train."""
    (pets / 'data.yaml').write_text(DATA_YAML.format(train='images/train', val='../valid/images'))
    folder, contents, said = found_in(pets, tmp_path, val_fraction=0.34)
    assert len(contents['train'][0]) == 2 and len(contents['val'][0]) == 1
    assert "data.yaml, line 2: val is '../valid/images'" in said and 'no val split is there' in said


# ---------------------------------------------------------------------------------------------------------- Pascal VOC
def devkit(root):
    for split in ('train', 'val'):
        picture(root / f'VOC2007/JPEGImages/{split}_1.png')
        xml(root / f'VOC2007/Annotations/{split}_1.xml')
        text(root / f'VOC2007/ImageSets/Main/{split}.txt', f'{split}_1\n')
    text(root / 'VOC2007/ImageSets/Main/trainval.txt', 'train_1\nval_1\n')
    picture(root / 'VOC2007/JPEGImages/unlisted.png')
    xml(root / 'VOC2007/Annotations/unlisted.xml')
    text(root / 'VOC2007/ImageSets/Main/cat_train.txt', 'train_1  1\n')
    return ['JPEGImages/train_1.png'], ['JPEGImages/val_1.png']


def roboflow_voc(root):
    for split in ('train', 'valid'):
        picture(root / f'{split}/{split}_1.png')
        xml(root / f'{split}/{split}_1.xml')
    return ['train/train_1.png'], ['valid/valid_1.png']


def apart(root):
    for split in ('train', 'val'):
        picture(root / f'images/{split}/1.png')
        xml(root / f'annotations/{split}/1.xml', filename='C:\\photos\\other.jpg')
    return ['images/train/1.png'], ['images/val/1.png']


def named_by_filename(root):
    for split in ('train', 'val'):
        picture(root / f'{split}/photo_{split}.png')
        xml(root / f'{split}/1.xml', filename=f'photo_{split}.png')
    return ['train/photo_train.png'], ['val/photo_val.png']


def lists_beside(root):
    for split in ('train', 'val'):
        picture(root / f'img/{split}_1.png')
        xml(root / f'xml/{split}_1.xml')
        text(root / f'{split}.txt', f'img/{split}_1.png xml/{split}_1.xml\n')
    return ['img/train_1.png'], ['img/val_1.png']


def two_years(root):
    """With pictures of one name."""
    for year, splits in (('VOC2007', {'train': '1', 'val': '2'}), ('VOC2012', {'train': '2', 'val': '1'})):
        for split, name in splits.items():
            picture(root / f'{year}/JPEGImages/{name}.png')
            xml(root / f'{year}/Annotations/{name}.xml')
            text(root / f'{year}/ImageSets/Main/{split}.txt', f'{name}\n')
    return (['VOC2007/JPEGImages/1.png', 'VOC2012/JPEGImages/2.png'],
            ['VOC2007/JPEGImages/2.png', 'VOC2012/JPEGImages/1.png'])  # fmt: skip


@pytest.mark.parametrize(
    'layout', [devkit, two_years, lists_beside, roboflow_voc, apart, named_by_filename], ids=lambda f: f.__name__
)
def test_voc_layouts(tmp_path, layout):
    root = tmp_path / 'pets'
    train, val = layout(root)
    folder, contents, said = found_in(root, tmp_path)
    assert folder.format == 'Pascal VOC'
    assert contents == {'train': (train, [CAT] * len(train)), 'val': (val, [CAT] * len(val))}
    assert 'warning' not in said and ('1 XML files are in no list' in said) == (layout is devkit)


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / 'pets'
    for split, number in (('train', 1), ('train', 2), ('train', 3), ('val', 1)):
        picture(root / f'{split}/{split}_{number}.png')
        xml(root / f'{split}/{split}_{number}.xml')
    return root


def test_faults_of_voc_files(voc, tmp_path):
    xml(voc / 'train/train_2.xml', size=False)
    _, contents, said = found_in(voc, tmp_path)
    assert 'XML without the size of its image (taken from the image)\n' in said
    assert 'train/train_2.xml: no <size>' in said and len(contents['train'][1]) == 3
    for content, rule, place in [
        ('<annotation>\n<object>\n</annotation>', 'file that is not XML', 'train/train_2.xml, line 3: mismatched tag'),
        (
            '<!DOCTYPE a [\n<!ENTITY b "c">\n]>\n<annotation/>',
            'XML file that is not read',
            'line 2: it defines entities',
        ),
        ('<annotation>\n<object/></annotation>', 'object without a name', 'train/train_2.xml, line 2'),
        (
            '<annotation>\n<object><name>cat</name></object></annotation>',
            'object without a <bndbox>',
            "train/train_2.xml, line 2: 'cat'",
        ),
        (
            '<annotation>\n<object><name>cat</name><bndbox><xmin>1</xmin><ymin>x</ymin></bndbox></object></annotation>',
            '<bndbox> without four numbers',
            "train/train_2.xml, line 2: ymin is 'x'",
        ),
    ]:
        (voc / 'train/train_2.xml').write_text(content)
        said = refusal(voc, tmp_path)
        assert rule in said and place in said and '\n1 error in' in said


def test_voc_image_that_is_missing_or_of_another_size(voc, tmp_path):
    (voc / 'train/train_2.png').unlink()
    cv2.imwrite(str(voc / 'train/train_3.png'), np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    said = refusal(voc, tmp_path)
    assert f'train/train_2.xml ({voc}/train/train_2.png): no such file' in said
    assert f'train/train_3.xml ({voc}/train/train_3.png): recorded as 40x20, the file is 41x20' in said


def test_voc_image_without_xml_is_left_out(voc, tmp_path):
    picture(voc / 'train/train_4.png')
    _, contents, said = found_in(voc, tmp_path)
    assert len(contents['train'][0]) == 3 and 'image without an XML file (left out)' in said


def test_voc_image_with_labels_of_another_format(voc, tmp_path):
    picture(voc / 'train/train_4.png')
    text(voc / 'train/train_4.json', LABELME)
    _, contents, said = found_in(voc, tmp_path)
    assert len(contents['train'][0]) == 3 and 'image without an XML file' not in said
    assert 'image whose labels are in a format that is not read (left out; convert the labels to Pascal VOC)' in said
    assert 'train/train_4.png: train/train_4.json, LabelMe' in said


def test_voc_counts_from_one_unless_a_zero_tells_otherwise(voc, tmp_path):
    xml(voc / 'train/train_2.xml', box=(-1, 5, 20, 15))  # written as xmin 0
    boxes = found_in(voc, tmp_path)[1]['train'][1]
    assert boxes[:2] == [('cat', 5, 6, 15, 9), ('cat', 0, 6, 20, 9)]


def test_voc_difficult_objects_are_neither_trained_nor_counted(voc, tmp_path):
    xml(voc / 'train/train_2.xml', extra='<difficult>1</difficult>')
    folder, _, said = found_in(voc, tmp_path)
    assert [a['iscrowd'] for a in read(folder.train)['annotations']] == [0, 1, 0]
    assert 'object marked difficult (neither trained nor counted, as VOC itself does)\n' in said
    assert "train/train_2.xml, line 4: 'cat'" in said


def test_class_names_that_differ_in_capitals_are_one(voc, tmp_path):
    xml(voc / 'train/train_2.xml', name=' Cat')
    folder, contents, said = found_in(voc, tmp_path)
    assert [name for name, *_ in contents['train'][1]] == ['cat'] * 3
    assert "'Cat', 1 x, first in train/train_2.xml, line 4; 'cat', 3 x" in said
    for number, name in enumerate('aAb', start=1):
        xml(voc / f'train/train_{number}.xml', name=name)
    assert {name for name, *_ in found_in(voc, tmp_path)[1]['train'][1]} == {'a', 'A', 'b'}, 'characters to be read'


def test_voc_names_in_lists(tmp_path):
    root = tmp_path / 'pets'
    devkit(root)
    text(root / 'VOC2007/ImageSets/Main/train.txt', 'train_1\n\ntrain_9\n')
    said = refusal(root, tmp_path)
    assert 'name in a list without an XML file' in said and 'ImageSets/Main/train.txt, line 3: train_9' in said


# ------------------------------------------------------------------------------------------------------------- others
def coco_files(root, annotations, images, written=None):
    """A COCO file of three images with a box each, ``images`` with numbers in it, of which it writes ``written``."""
    coco = dict(images=[], annotations=[], categories=[dict(id=0, name='cat')])
    for id in (1, 2, 3):
        path = root / images.format(id)
        picture(path)
        name = written.format(id) if written else path.name
        coco['images'].append(dict(id=id, file_name=name, width=WIDTH, height=HEIGHT))
        box = dict(bbox=[4, 5, 16, 10], area=160, iscrowd=0)
        coco['annotations'].append(dict(id=id, image_id=id, category_id=0, **box))
    text(root / annotations, json.dumps(coco))


@pytest.mark.parametrize(
    ('annotations', 'images'),
    [
        ('result.json', 'images/{}.png'),
        ('annotations/instances_default.json', 'images/{}.png'),
        ('annotations/instances_default.json', 'images/default/{}.png'),
        ('annotations/instances_Night.json', 'images/Night/{}.png'),
    ],
)
def test_one_coco_file_alone(tmp_path, annotations, images):
    """Label Studio's and CVAT's export."""
    root = tmp_path / 'pets'
    coco_files(root, annotations, images)
    folder, contents, said = found_in(root, tmp_path)
    assert folder.format == 'COCO' and [len(names) for names, _ in contents.values()] == [2, 1]
    assert 'file_name' not in said


def test_splits_of_coco_in_capitals(tmp_path):
    """CVAT's subsets have the names that the user gave them."""
    root = tmp_path / 'pets'
    for split in ('Train', 'Validation', 'TEST'):
        coco_files(root, f'annotations/instances_{split}.json', f'images/{split}/{split}_{{}}.png')
    folder, contents, said = found_in(root, tmp_path)
    assert folder.val.ann_file == root / 'annotations/instances_Validation.json'
    assert {name: len(names) for name, (names, _) in contents.items()} == dict(train=3, val=3, test=3)
    assert folder.test.image_dir == root / 'images/TEST' and 'file_name' not in said


@pytest.mark.parametrize(
    ('images', 'written'),
    [
        ('{}.png', 'http://localhost:8080/data/upload/3/{}.png'),
        ('a ä {}.png', '/data/upload/3/a%20%C3%A4%20{}.png'),
        ('a ä {}.png', '/data/local-files/?d=pets/a%20%C3%A4%20{}.png'),
        ('{}.png', 'images\\{}.png'),
        ('{}.PNG', '{}.png'),
        ('deep/{}.png', 's3://bucket/deep/{}.png'),
    ],
    ids=['address', 'encoded', 'query', 'backslash', 'capitals', 'folder'],
)
@pytest.mark.parametrize('with_val', [False, True])
def test_image_names_as_tools_write_them(tmp_path, images, written, with_val):
    """Label Studio and tools on Windows: found, said, and in the files that are trained on."""
    root = tmp_path / 'pets'
    coco_files(root, 'train.json', f'images/{images}', written)
    content = (root / 'train.json').read_text()
    if with_val:
        text(root / 'val.json', content)
    folder, contents, said = found_in(root, tmp_path)
    assert {name for names, _ in contents.values() for name in names} == {images.format(id) for id in (1, 2, 3)}
    assert folder.train.image_dir == root / 'images' and (root / 'train.json').read_text() == content
    assert '3 x file_name that is not there as it is written' in said
    assert f'{written.format(1)} -> {images.format(1)}' in said


def test_image_names_that_mean_no_file_or_several(tmp_path):
    root = tmp_path / 'pets'
    for name in ('1.png', 'a/2.png', 'b/2.png', '3.png', '../5.png', 'masks/6.png'):
        picture(root / name)
    names = [
        'x/1.png',
        'x/2.png',
        'b\\2.png',
        '3.png',
        'x/3.png',
        '..%2F5.png',
        'x/4.png',
        '6.png',
        'http://[',
        '%00',
        '',
        None,
    ]
    entries = [dict(file_name=name) for name in names]
    assert misspelt_names(root, entries) == {'x/1.png': '1.png', 'b\\2.png': 'b/2.png'}
    assert misspelt_names(root, [*entries, dict(file_name='y/1.png')]) == {'b\\2.png': 'b/2.png'}, 'one file, two names'


def test_nothing_is_dropped_where_nothing_would_be_left(tmp_path):
    root = tmp_path / 'pets'
    for split in ('train', 'val'):
        coco_files(root, f'{split}.json', f'{split}/{{}}.png')
    (root / 'train/2.png').unlink()
    assert refusal(root, tmp_path).endswith('or train without the bad images and boxes: --drop-bad')
    for path in root.glob('train/*'):
        path.unlink()
    assert refusal(root, tmp_path).endswith('Correct the files')


@pytest.mark.parametrize(
    ('name', 'content', 'kind'),
    [
        ('1.json', LABELME, 'LabelMe'),
        ('annotations.xml', '<annotations><image name="1.png"/></annotations>', 'CVAT for images'),
        ('project.json', '[{"id": 1, "annotations": [{"result": []}], "data": {"image": "1.png"}}]', 'Label Studio'),
        ('min.json', '[{"id": 1, "image": "1.png", "label": [], "annotation_id": 1}]', 'Label Studio'),
        ('train/_annotations.createml.json', '[{"image": "1.png", "annotations": []}]', 'CreateML'),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, name, content, kind):
    root = tmp_path / 'pets'
    picture(root / '1.png')
    text(root / name, content)
    with pytest.raises(DataError) as error:
        find_data(root, tmp_path / 'work')
    said = str(error.value)
    assert f'{name} is in the format of {kind}' in said and 'which is not read: ' in said and 'COCO' in said
    assert 'looked for' not in said


def test_training_reads_what_was_found(pets, tmp_path):
    """The data set that a config trains on, of another format: labels, boxes and images."""
    from mmengine.registry import init_default_scope

    from mmdet_ddetr import get_config
    from mmdet_ddetr.apis.finetune import configure
    from mmdet_ddetr.registry import DATASETS

    init_default_scope('mmdet')
    folder, reports, _ = check_folder(find_data(pets, tmp_path / 'work'), tmp_path / 'work')
    cfg = configure(get_config('deformable-detr-refine-twostage-dn_lite0_finetune'), folder, reports['train'].classes)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    info = dataset.get_data_info(0)
    assert len(dataset) == 3 and info['img_path'] == str(pets / 'images/train/train_1.png')
    assert [(i['bbox_label'], i['bbox']) for i in info['instances']] == [(0, [4, 5, 20, 15]), (1, [0, 0, 10, 10])]
    assert dataset[0]['inputs'].shape[0] == 3 and dataset.metainfo['classes'] == ('cat', 'dog')


BYTES = [
    b'',
    b'\0',
    b'\xff\xfe',
    b'\xef\xbb\xbf',
    b'-1',
    b'1e999',
    b'nan',
    b'"',
    b'<',
    b'&a;',
    b'../',
    b'[' * 2000,
    b'\n',
    b',',
]


@pytest.mark.parametrize('kind', ['yolo', 'voc', 'csv'])
def test_damaged_files_are_refused_in_words(tmp_path, request, kind):
    """Bytes put in, taken out or doubled at random: data, or a sentence; nothing else."""
    if kind == 'csv':
        root = tmp_path / 'pets'
        for name in 'ab':
            picture(root / f'{name}.png')
        text(root / 'labels.csv', 'image,label,x1,y1,x2,y2\n' + 'a.png,cat,4,5,20,15\nb.png,dog,4,5,20,15\n' * 3)
    else:
        root = request.getfixturevalue(dict(yolo='pets', voc='voc')[kind])
    files = [path for path in sorted(root.rglob('*')) if path.suffix in ('.txt', '.yaml', '.xml', '.csv')]
    outcomes = set()
    for seed in range(60):
        rng = random.Random(seed)
        path = rng.choice(files)
        sound = path.read_bytes()
        damaged = bytearray(sound)
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(damaged) + 1)
            damaged[start : start + rng.choice((0, 0, 1, 5, 40))] = rng.choice(BYTES)
        path.write_bytes(bytes(damaged))
        try:
            check_folder(find_data(root, tmp_path / 'work', 0.3), tmp_path / 'work', drop_bad=seed % 2 == 0)
            outcomes.add('fine')
        except DataError as error:
            outcomes.add('refused')
            assert str(root) in str(error) and '\0' not in str(error)
        path.write_bytes(sound)
    assert outcomes == {'fine', 'refused'}


def test_nothing_is_known(tmp_path):
    picture(tmp_path / 'pets/1.png')
    with pytest.raises(DataError, match=r'(?s)no labels of COCO.*all files found: 1 \.png'):
        find_data(tmp_path / 'pets', tmp_path / 'work')


def test_a_file_that_is_passed_over_is_named_with_the_reason(tmp_path):
    root = tmp_path / 'pets'
    picture(root / '1.png')
    text(root / 'annotations.json', '{"images": [{"id": 1, "file_na')
    with pytest.raises(
        DataError, match=r'CSV; passed over: .*/annotations\.json is not JSON: Unterminated .* in line 1'
    ):
        find_data(root, tmp_path / 'work')
    (root / 'annotations.json').unlink()
    text(root / '1.xml', '<!DOCTYPE annotation [\n<!ENTITY a "b">]>\n<annotation></annotation>\n')
    with pytest.raises(DataError, match=r'passed over: XML file that is not read: 1\.xml: line 2: it defines entities'):
        find_data(root, tmp_path / 'work')


def test_an_unpacked_archive_with_a_folder_inside(pets, tmp_path):
    outer = tmp_path / 'download'
    outer.mkdir()
    pets.rename(outer / 'pets')
    (outer / '__MACOSX').mkdir()
    assert found_in(outer, tmp_path)[0].root == Path(outer, 'pets')


# ---------------------------------------------------------------------------------------------------------------- CSV
@pytest.mark.parametrize(
    ('table', 'said'),
    [
        ('filename,width,height,class,xmin,ymin,xmax,ymax\n1.png,40,20,cat,4,5,20,15\n', 'corners in px'),
        ('1.png,4,5,20,15,cat\n2.png,,,,,\n', 'no header; boxes are corners in px'),
        ('cat;1.png;4;5;16;10,0\nx;2.png;30;12;4;5\nx;2.png;9;2;4;5\n', 'no header; boxes are corner and sides in px'),
        ('image,width,height,class,x,y,w,h\n1.png,40,20,cat,4,5,16,10\n', 'corner and sides in px'),
        ('path,label,x,y,w,h\n/home/me/pets/images/1.png,cat,4,5,16,10\n', 'corner and sides in px'),
        ('ImageID,LabelName,XMin,XMax,YMin,YMax\n1,cat,0.1,0.5,0.25,0.75\n', 'corners in shares'),
        ('image;x_center;y_center;width;height;label\n1.png;0,3;0,5;0,4;0,5;cat\n', 'centre and sides in shares'),
        ('image_id,width,height,bbox,source\n1,40,20,"[4.0, 5.0, 16.0, 10.0]",usask\n', 'corner and sides in px'),
        ('TRAIN,gs://bucket/1.png,cat,0.1,0.25,,,0.5,0.75,,\n', 'no header; boxes are corners in shares'),
        (
            'filename,file_size,region_count,region_id,region_shape_attributes,region_attributes\n1.png,9,1,0,'
            '"{""name"":""rect"",""x"":4,""y"":5,""width"":16,""height"":10}","{""class"":""cat""}"\n',
            'corner and sides in px',
        ),
    ],
    ids=['roboflow', 'keras', 'semicolons', 'sizes', 'absolute', 'open', 'centres', 'column', 'automl', 'via'],
)
def test_csv_columns(tmp_path, table, said):
    root = tmp_path / 'pets'
    for number in (1, 2, 3):
        picture(root / f'images/{number}.png')
    text(root / 'labels.csv', table)
    more = '3.png,4,5,20,15,cat\n'
    text(root / 'val.csv', more)
    folder, contents, text_of_check = found_in(root, tmp_path)
    name = 'object' if 'usask' in table else 'cat'
    assert folder.format == 'CSV' and contents['train'][1][0] == (name, *CAT[1:])
    assert contents['val'] == (['images/3.png'], [CAT]) and said in text_of_check
    warning = "no column of classes was found (all boxes are of one class, 'object'; the names class, class_name,"
    assert (warning in text_of_check) == (name == 'object')


@pytest.mark.parametrize(
    'row',
    ['7,{},4,5,20,15', '{},4,5,20,15,val,7', '{},0.1,0.25,0.5,0.75,7', '7,0.1,0.25,0.5,0.75,{}', '{},7,,4,5,20,15'],
)
def test_csv_with_a_number_for_the_class(tmp_path, row):
    root = tmp_path / 'pets'
    for number in (1, 2):
        picture(root / f'{number}.png')
    text(root / 'labels.csv', ''.join(row.format(f'{number}.png').replace('val', ('train', 'val')[number - 1]) + '\n'
                                      for number in (1, 2)))  # fmt: skip
    _, contents, _ = found_in(root, tmp_path, val_fraction=None if 'val' in row else 0.5)
    assert contents['train'][1] == contents['val'][1] == [('7', *CAT[1:])]


@pytest.mark.parametrize('row', ['1.png,4,5,20,15,7', '7,4,5,20,15,1.png', '1,2,1.png,3,4,5'])
def test_csv_whose_class_cannot_be_told_is_refused(tmp_path, row):
    root = tmp_path / 'pets'
    picture(root / '1.png')
    text(root / 'labels.csv', f'{row}\n')
    with pytest.raises(
        DataError, match=r'labels\.csv, line 1: columns .* are numbers and there is no header.*filename,'
    ):
        find_data(root, tmp_path / 'work')


def test_csv_of_each_split_and_a_column_of_splits(tmp_path):
    root = tmp_path / 'pets'
    table = 'filename,class,xmin,ymin,xmax,ymax\n'
    for split in ('train', 'valid', 'test'):
        picture(root / f'{split}/1.png')
        text(root / f'{split}/_annotations.csv', f'{table}1.png,cat,4,5,20,15\n')
    contents = found_in(root, tmp_path)[1]
    assert contents == {name: ([f'{folder}/1.png'], [CAT]) for name, folder in
                        (('train', 'train'), ('val', 'valid'), ('test', 'test'))}  # fmt: skip
    rows = ''.join(f'{split}/1.png,{split},cat,4,5,20,15\n' for split in ('train', 'valid', 'test'))
    for path in root.glob('*/*.csv'):
        path.unlink()
    text(root / 'all.csv', 'path,split,class,xmin,ymin,xmax,ymax\n' + rows)
    assert found_in(root, tmp_path)[1] == contents


@pytest.mark.parametrize(
    ('row', 'rule', 'place'),
    [
        ('a.png,cat,1,2,x,9', 'row without the four numbers of a box', "labels.csv, line 3: '1, 2, x, 9'"),
        ('a.png,cat,1,2', 'row without the four numbers of a box', 'labels.csv, line 3'),
        (',cat,1,2,3,9', 'row without the name of an image', "labels.csv, line 3: ',cat,1,2,3,9'"),
        ('a.png,,1,2,3,9', 'row without a class', 'labels.csv, line 3'),
        ('a.png,cat,9,2,3,9', 'bbox without an area', 'labels.csv, line 3 (a.png): bbox'),
        ('a.png,cat,50,2,60,9', 'bbox outside the image', 'labels.csv, line 3 (a.png): bbox'),
        ('c.png,cat,1,2,3,9', 'image that does not load', 'labels.csv, line 3 ('),
    ],
)
def test_faults_of_csv_rows(tmp_path, row, rule, place):
    root = tmp_path / 'pets'
    picture(root / 'a.png')
    picture(root / 'b.png')
    picture(root / 'd.png')
    table = f'image,label,x1,y1,x2,y2\na.png,cat,4,5,20,15\n{row}\nb.png,cat,4,5,20,15\nd.png,cat,4,5,20,15\n'
    text(root / 'labels.csv', table)
    said = refusal(root, tmp_path, val_fraction=0.5)
    assert rule in said and place in said and '\n1 error in' in said


def test_csv_shares_and_one_that_is_none(tmp_path):
    root = tmp_path / 'pets'
    picture(root / 'a.png')
    picture(root / 'b.png')
    text(root / 'labels.csv', ('a.png,0.1,0.1,0.5,0.5,cat\n' * 2) + 'b.png,0.1,3,0.5,5,cat\n')
    assert 'labels.csv, line 3: 3' in refusal(root, tmp_path)


def test_unknown_columns_are_shown(tmp_path):
    text(tmp_path / 'pets/a.csv', 'photo,what\n1.png,cat\n')
    with pytest.raises(
        DataError, match=r'(?s)CSV files found: a\.csv \(photo, what\).*with these names: filename \(or'
    ):
        find_data(tmp_path / 'pets', tmp_path / 'work')
