"""tools/predict.py: what it writes of pictures and videos, and that no input takes the others with it."""

import csv
import json
import os
import resource
import runpy
import sys
from collections import OrderedDict
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.logging import MMLogger
from test_sources import FPS, gray, write_video

from mmdet_ddetr.apis import detect_files
from mmdet_ddetr.apis.pictures import encode_picture, write_picture
from mmdet_ddetr.export.description import ExportError
from mmdet_ddetr.export.runtime import Detections
from mmdet_ddetr.files import unfinished_name

TOOL = Path(__file__).parents[1] / 'tools/predict.py'


class Mean:
    """Finds one object in each picture: of class 1, scored by the picture's mean. Dark ones are too large for it."""

    classes, threshold, batch_size = ('dark', 'bright'), 0.3, None

    def __init__(self):
        self.batches = []

    def __call__(self, images, threshold):
        self.batches.append(len(images))
        if any(image.mean() < 5 for image in images):
            raise ExportError('images must be at most 1 x 1 px for this file')
        score = [np.array([image.mean() / 255]) for image in images]
        box = np.array([[1.0, 2, 11, 22]])
        return [Detections(box, s, np.array([1])).above(threshold) for s in score]


@pytest.fixture
def infer(monkeypatch, tmp_path, capsys):
    """Run the tool with that detector in a folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    detector = Mean()
    monkeypatch.setattr(detect_files, 'open_detector', lambda *args: detector)
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())  # one of another test writes to that test's stderr

    def call(*arguments):
        monkeypatch.setattr(
            sys, 'argv', ['predict.py', '--weights', 'detector.onnx', '--out', 'out', '--source', *map(str, arguments)]
        )
        monkeypatch.syspath_prepend(str(TOOL.parent))
        code = 0
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    call.detector = detector
    return call


def objects(name):
    return [item['score'] for item in json.loads(Path(name).read_text())['objects']]


def test_pictures_and_videos(infer):
    cv2.imwrite('a.png', gray(200))
    write_video('b.mp4', [30, 150, 50, 200, 250])
    code, told, error = infer('.', '--batch-size', 2)
    assert (code, error) == (0, '') and told == 'a.png: 1 bright\nb.mp4: in 5 frames 3 bright\nwrote out\n'
    assert sorted(path.name for path in Path('out').iterdir()) == ['a.jpg', 'a.json', 'b.jsonl', 'b.mp4']
    assert json.loads(Path('out/a.json').read_text()) == dict(
        image='a.png', width=64, height=48, objects=[dict(label='bright', score=0.7843, box=[1.0, 2.0, 11.0, 22.0])]
    )
    lines = [json.loads(line) for line in Path('out/b.jsonl').read_text().splitlines()]
    assert [(line['frame'], line['time'], len(line['objects'])) for line in lines] == [
        (0, 0, 0),
        (1, 0.08, 1),
        (2, 0.16, 0),
        (3, 0.24, 1),
        (4, 0.32, 1),
    ]
    drawn = cv2.VideoCapture('out/b.mp4')
    assert (drawn.get(cv2.CAP_PROP_FPS), drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == (FPS, 5)
    first, second = (drawn.read()[1] for _ in range(2))
    assert first[..., 0].std() < 2 < second[..., 0].std()  # a box is drawn on the second
    assert infer.detector.batches == [2, 2, 2]


def test_a_line_for_each_video(infer):
    """At its end, whatever comes after it and however they are batched; the last one may be cut."""
    write_video('a.mp4', [30, 150])
    write_video('b.mp4', [30, 30])
    cv2.imwrite('c.png', gray(200))
    write_video('d.mp4', [150] * 5)
    told = infer('.', '--batch-size', 3, '--most', 7)[1]
    assert told.splitlines() == [
        'a.mp4: in 2 frames 1 bright',
        'b.mp4: in 2 frames nothing',
        'c.png: 1 bright',
        'd.mp4: in 2 frames 2 bright',
        'wrote out',
    ]


def test_nothing_is_said_to_be_written_where_nothing_is(infer):
    Path('empty.jpg').touch()
    code, told, _ = infer('empty.jpg', 'none.mp4')
    assert (code, told) == ('predict.py: 2 of the inputs could not be used, see above', '')


def test_every_and_most_and_no_pictures(infer):
    write_video('b.mp4', [100, 150, 200, 250, 150, 100])
    assert infer('b.mp4', '--every', 2)[0] == 0
    drawn = cv2.VideoCapture('out/b.mp4')
    assert (drawn.get(cv2.CAP_PROP_FPS), drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == (FPS / 2, 3)
    assert infer('b.mp4', '--most', 2, '--no-pictures')[0] == 0
    assert len(Path('out/b.jsonl').read_text().splitlines()) == 2


def test_what_cannot_be_used_is_named_and_the_rest_is_done(infer):
    cv2.imwrite('a.png', gray(200))
    cv2.imwrite('dark.png', gray(0))
    cv2.imwrite('z.png', gray(100))
    Path('empty.jpg').touch()
    Path('photos').mkdir()
    inputs = ['a.png', 'empty.jpg', 'dark.png', 'none.jpg', 'photos/*.png', 'z.png', '7']
    code, told, error = infer(*inputs, '--batch-size', 4)
    assert code == 'predict.py: 5 of the inputs could not be used, see above'
    assert told == 'a.png: 1 bright\nz.png: 1 bright\nwrote out\n'
    assert error.splitlines() == [
        'empty.jpg: the file is empty',
        'none.jpg: no such file',
        'dark.png: images must be at most 1 x 1 px for this file',
        f"no file matches 'photos/*.png': the folder '{Path.cwd()}/photos' holds none",
        'camera 7: no camera of this number gives pictures',
    ]


@pytest.mark.parametrize(
    'out, message',
    [
        ('gray.png', "'gray.png' is a file, expected a folder"),
        ('gray.png/a', "'gray.png' is a file, expected a folder"),
        pytest.param(
            *('/proc/zz', "nothing can be written to '/proc/zz': No such file or directory"),
            marks=pytest.mark.skipif(sys.platform != 'linux', reason='no such folder'),
        ),
    ],
)
def test_a_folder_that_nothing_can_be_written_to(infer, out, message):
    cv2.imwrite('gray.png', gray(200))
    code, told, _ = infer('gray.png', '--out', out)
    assert (code, told) == (f'predict.py: --out: {message}', '')


@pytest.mark.parametrize('options', [(), ('--format', 'csv', '--no-pictures'), ('--format', 'coco', '--no-pictures')])
def test_a_full_disk(infer, options):
    """The error says which file, and no half of one is left."""
    for i in range(200):
        cv2.imwrite(f'{i}.png', gray(200, (5, 5)))
    with small_files():
        code, _, err = infer('.', *options)
    name = {(): '0.jpg', 'csv': 'results.csv', 'coco': 'predictions.json'}[options and options[1]]
    assert code == f"predict.py: --out: 'out/{name}': File too large"
    assert [path.name for path in Path('out').iterdir()] == ([] if options else ['0.json'])
    assert 'before the error' not in err


@contextmanager
def small_files():
    """As on a full disk, a file takes no more than a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(sys.platform != 'linux', reason='names of files are text there')
def test_a_name_that_is_no_text(infer):
    """Bytes that are no UTF-8, as archives of other systems bring them, take no other picture with them."""
    names = [os.fsdecode(b'a\xff.png'), 'b.png']
    for name in names:
        Path(name).write_bytes(cv2.imencode('.png', gray(200))[1])
    write_video('c.mp4', [30])
    os.rename('c.mp4', b'c\xff.mp4')
    code, told, error = infer('.', '--format', 'json', 'csv', 'coco')
    assert code == 'predict.py: 1 of the inputs could not be used, see above'
    assert error.endswith('the name is no UTF-8, which a video needs: rename it\n')
    assert told == 'a\\udcff.png: 1 bright\nb.png: 1 bright\nwrote out\n'
    with open('out/results.csv', encoding='utf-8', errors='surrogateescape') as file:
        assert [row['path'] for row in csv.DictReader(file)] == names
    assert Path('out/a_.jpg').is_file() and Path('out/a_.json').is_file()


@pytest.mark.parametrize('name, side', [('a.jpg', 65500), ('a.JPG', 65500), ('a.webp', 16383), ('a.png', 131000)])
def test_a_picture_longer_than_its_format(tmp_path, name, side):
    write_picture(tmp_path / 'new' / name, np.full((80, 131000, 3), 200, np.uint8))
    image = cv2.imread(str(tmp_path / 'new' / name))
    assert image.shape == (80 * side // 131000, side, 3) and abs(image.mean() - 200) < 2


def test_a_picture_that_has_no_file():
    """OpenCV only says False, or raises an error of its own."""
    for image, suffix in ((np.zeros((0, 5, 3), np.uint8), '.jpg'), (np.zeros((5, 5, 3), np.uint8), '.xyz')):
        with pytest.raises(OSError, match=rf'OpenCV cannot write a picture of 5x\d px as {suffix}'):
            encode_picture(image, suffix)


def test_a_fixed_number_of_images(infer):
    for name in 'abc':
        cv2.imwrite(f'{name}.png', gray(200))
    infer.detector.batch_size = 2
    assert infer('.')[0] == 0
    assert infer.detector.batches == [2, 2] and len(list(Path('out').glob('*.json'))) == 3


def test_coco_results(infer):
    for name in 'ab':
        cv2.imwrite(f'{name}.png', gray(200))
    Path('truth.json').write_text(
        json.dumps(dict(images=[dict(id=4, file_name='a.png')], categories=[dict(id=9, name='bright')]))
    )
    code, _, error = infer('.', '--coco', 'truth.json')
    assert code == 'predict.py: 1 of the inputs could not be used, see above'
    assert error == 'b.png: truth.json has no image of this name, which is left out of the COCO results\n'
    (result,) = json.loads(Path('out/results.bbox.json').read_text())
    assert (result['image_id'], result['category_id'], result['bbox']) == (4, 9, [1, 2, 10, 20])
    assert objects('out/b.json') == [0.7843]


def test_formats(infer):
    """A table of all, and a data set; only what is above the threshold."""
    for name, value in (('a', 200), ('b', 100)):
        cv2.imwrite(f'{name}.png', gray(value))
    write_video('c.mp4', [50, 150])
    assert infer('.', '--format', 'csv', 'coco', '--no-pictures', '--conf', 0.4)[0] == 0
    assert sorted(path.name for path in Path('out').iterdir()) == ['predictions.json', 'results.csv']
    with open('out/results.csv', newline='') as file:
        first, second = csv.DictReader(file)
    assert first == dict(
        dict(path='a.png', frame='', width='64', height='48', label='bright', score='0.7843'),
        **dict(x1='1.0', y1='2.0', x2='11.0', y2='22.0'),
    )
    assert (second['path'], second['frame'], second['label']) == ('c.mp4', '1', 'bright')
    found = json.loads(Path('out/predictions.json').read_text())
    assert found['categories'] == [dict(id=1, name='dark'), dict(id=2, name='bright')]
    assert [(image['id'], image['file_name']) for image in found['images']] == [
        (1, 'a.png'),
        (2, 'b.png'),
        (3, 'c.mp4'),
        (4, 'c.mp4'),
    ]
    first, second = found['annotations']
    assert first == dict(
        id=1, image_id=1, category_id=2, bbox=[1.0, 2.0, 10.0, 20.0], area=200.0, iscrowd=0, score=0.7843
    )
    assert second['image_id'] == 4 and found['images'][3]['frame'] == 1


@pytest.mark.parametrize('how', ['nothing is read', 'it fails', 'Ctrl-C'])
def test_earlier_results_stay_until_there_are_others(infer, capsys, how):
    """Those of a run that reads nothing or fails do not replace them; those of one that was interrupted do.

    What was found before a failure is kept beside them.
    """
    for name in 'ab':
        cv2.imwrite(f'{name}.png', gray(200))
    classes = [dict(id=9, name='bright')]
    Path('truth.json').write_text(json.dumps(dict(images=[dict(id=4, file_name='a.png')], categories=classes)))
    Path('out').mkdir()
    tables = [Path('out', name) for name in ('results.csv', 'predictions.json', 'results.bbox.json')]
    for table in tables:
        table.write_text('earlier')
    detect, failure = type(infer.detector).__call__, KeyboardInterrupt if how == 'Ctrl-C' else RuntimeError

    def fail(self, images, threshold):
        if len(self.batches) == 1:
            raise failure
        return detect(self, images, threshold)

    infer.detector.__class__ = type('Failing', (Mean,), dict(__call__=fail))
    sources = ['c.png'] if how == 'nothing is read' else ['a.png', 'b.png']
    options = ('--no-pictures', '--format', 'csv', 'coco', '--coco', 'truth.json')
    if how == 'it fails':
        with pytest.raises(RuntimeError):
            infer(*sources, *options)
        told = 'results_unfinished.csv and predictions_unfinished.json and results_unfinished.bbox.json'
        assert capsys.readouterr().err == f'what was found before the error is in out: {told}\n'
    else:
        assert infer(*sources, *options)[0] == (
            130 if how == 'Ctrl-C' else 'predict.py: 1 of the inputs could not be used, see above'
        )
    written = tables
    if how == 'it fails':
        written = [unfinished_name(table) for table in tables]
    assert sorted(Path('out').iterdir()) == sorted({*tables, *written})
    if how != 'nothing is read':
        csv_file, data_set, results = (table.read_text() for table in written)
        assert len(csv_file.splitlines()) == 2 and len(json.loads(data_set)['images']) == len(json.loads(results)) == 1
    if how != 'Ctrl-C':
        assert [table.read_text() for table in tables] == ['earlier'] * 3


def test_a_folder_where_results_should_be(infer):
    """It is found before a picture is looked at."""
    cv2.imwrite('a.png', gray(200))
    Path('out/results.csv').mkdir(parents=True)
    assert infer('a.png', '--format', 'csv')[0] == "predict.py: --out: 'out/results.csv': Is a directory"
    assert infer.detector.batches == []


@pytest.mark.parametrize('link', [None, 'the folder', 'the picture', 'the output'])
def test_no_source_is_replaced(infer, link):
    """Whatever leads to it, and not by what is drawn of another one either."""
    Path('out').mkdir()
    folder = Path('in' if link == 'the output' else 'out')
    folder.mkdir(exist_ok=True)
    cv2.imwrite(f'{folder}/a.jpg', gray(200))
    cv2.imwrite(f'{folder}/c.jpg', gray(100))
    write_video(f'{folder}/b.mp4', [100] * 5)
    names = 'a.jpg', 'b.mp4', 'c.jpg'
    before = [(folder / name).read_bytes() for name in names]
    Path('links').mkdir()
    if link == 'the folder':
        folder = Path('links/all')
        folder.symlink_to('../out')
    elif link == 'the picture':
        for name in names:
            Path('links', name).symlink_to(f'../out/{name}')
        folder = Path('links')
    elif link == 'the output':
        for name in names:
            Path('out', name).symlink_to(f'../in/{name}')
    for source in (folder, folder / 'a.jpg', folder / 'b.mp4'):
        code, told, error = infer(source)
        assert code.startswith('predict.py: --out: out/') and code.endswith(
            ' is one of the sources and would be replaced; take another folder'
        )
    assert [(folder / name).read_bytes() for name in names] == before
    if link != 'the output':
        assert infer.detector.batches == [] and sorted(path.name for path in Path('out').iterdir()) == sorted(names)


def test_beside_the_sources(infer):
    """Where no name is taken, and where nothing is drawn, the folder of the sources will do."""
    Path('out').mkdir()
    cv2.imwrite('out/a.png', gray(200))
    assert infer('out/a.png')[0] == 0 and Path('out/a.jpg').is_file()
    assert infer('out', '--no-pictures')[0] == 0
    before = Path('out/a.jpg').read_bytes()
    assert 'out/a.jpg is one of the sources' in infer('out')[0]
    assert 'out/a.jpg is one of the sources' in infer('out/a.png', 'out/a.jpg')[0]
    assert Path('out/a.jpg').read_bytes() == before


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('a.json', ()),
        ('b.jsonl', ()),
        ('a.jpg', ()),
        ('b.mp4', ()),
        ('results.csv', ('--format', 'csv')),
        ('predictions.json', ('--format', 'coco')),
        ('results.bbox.json', ('--coco', 'truth.json')),
    ],
)
def test_no_labels_beside_the_sources_are_replaced(infer, name, options):
    Path('out').mkdir()
    cv2.imwrite('out/a.png', gray(200))
    write_video('out/b.avi', [100] * 2)
    Path('out', name).write_text('{"version": "5.0.1", "shapes": []}')
    Path('truth.json').write_text(
        json.dumps(dict(images=[dict(id=4, file_name='a.png')], categories=[dict(id=9, name='bright')]))
    )
    before = sorted(path.name for path in Path('out').iterdir())
    code, _, _ = infer('out/a.png', 'out/b.avi', *options)
    assert code == (
        f'predict.py: --out: out/{name} is there, beside the sources, and would be replaced; take another folder'
    )
    assert sorted(path.name for path in Path('out').iterdir()) == before
    assert Path('out', name).read_text() == '{"version": "5.0.1", "shapes": []}' and infer.detector.batches == []
    # what was written here is replaced
    Path('out', name).unlink()
    for conf in (0, 0, 1, 0):  # with and without detections
        options = ('--format', 'json', 'csv', 'coco', '--coco', 'truth.json', '--conf', conf)
        assert infer('out/a.png', 'out/b.avi', *options)[0] == 0


def test_a_picture_that_is_called_like_a_table(infer):
    """Both are written."""
    cv2.imwrite('predictions.png', gray(200))
    assert infer('predictions.png', '--format', 'json', 'coco')[0] == 0
    assert 'images' in json.loads(Path('out/predictions.json').read_text())
    (own,) = Path('out').glob('*_predictions.json')
    assert json.loads(own.read_text())['image'] == 'predictions.png'


@pytest.mark.parametrize('name', ['results.bbox.json', 'predictions.json'])
def test_the_annotation_file_is_not_replaced(infer, name):
    Path('out').mkdir()
    cv2.imwrite('a.png', gray(200))
    classes = [dict(id=1, name=infer.detector.classes[0])]
    text = json.dumps(dict(images=[dict(id=1, file_name='a.png')], annotations=[], categories=classes))
    Path('out', name).write_text(text)
    code, _, _ = infer('a.png', '--coco', f'out/{name}', '--format', 'coco')
    assert code == f'predict.py: --out: out/{name} is one of the sources and would be replaced; take another folder'
    assert Path('out', name).read_text() == text


@pytest.mark.parametrize(
    'arguments',
    [
        ('--every', 0),
        ('--batch-size', 0),
        ('--most', 0),
        ('--threads', 0),
        ('--conf', 2),
        ('--overlap', 0.9),
        ('--overlap', -0.5),
    ],
)
def test_arguments(infer, arguments):
    code, _, error = infer('.', *arguments)
    assert code == 2 and f'{arguments[0]}: must be' in error


def test_sliced(infer):
    """Tiles and the whole: five of a picture of 20 x 20 px, in tiles of 16 px and two batches."""
    infer.detector.threshold = 0.0
    cv2.imwrite('a.png', gray(200, (20, 20)))
    assert infer('a.png', '--slice', 16, '--overlap', 0)[0] == 0
    assert infer.detector.batches == [4, 1]
    infer.detector.batches.clear()
    assert infer('a.png', '--slice', 16, '--overlap', 0, '--tiles-only')[0] == 0
    assert infer.detector.batches == [4]
    assert objects('out/a.json') == [0.7843, 0.3922]  # a box beside the inner side of its tile counts half
    assert infer('a.png', '--slice', 4)[0] == 'predict.py: side of the tiles must be at least 16 px, got 4'


@pytest.mark.parametrize(
    'path, options, message',
    [
        ('d.onnx', dict(optimize='float32'), "optimize='float32' is for a checkpoint; d.onnx is an exported file"),
        ('d.onnx', dict(device='cuda'), "device='cuda' is for a checkpoint; d.onnx is an exported file"),
        ('d.pth', dict(threads=2), 'threads=2 is for an exported file; d.pth is a checkpoint'),
    ],
)
def test_options_of_the_other_kind_of_file(path, options, message):
    with pytest.raises(ValueError, match=message):
        detect_files.open_detector(path, **options)
