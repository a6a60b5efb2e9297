"""demo/onnx_infer.py and ExportedDetector with a graph written by hand: pictures and files of every kind."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmdet_ddetr.apis.detect_files import open_detector
from mmdet_ddetr.export import ExportedDetector, ExportError
from mmdet_ddetr.export.description import KEY, Description

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
CUT = 'jpg', 'png', 'webp', 'tif', 'bmp', 'gif'  # kinds of pictures whose end is missing
DEMO = Path(__file__).parents[1] / 'demo/onnx_infer.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """``detector.onnx`` finds the whole image, with its mean over 255 as the score, beside files that are none."""
    folder = tmp_path_factory.mktemp('onnx')
    helper, types = onnx.helper, onnx.TensorProto
    nodes = [
        helper.make_node('Cast', ['sizes'], ['float'], to=types.FLOAT),
        helper.make_node('Gather', ['float', 'swap'], ['corner'], axis=1),  # [1, 2] as (w, h)
        helper.make_node('Mul', ['corner', 'nothing'], ['zeros']),
        helper.make_node('Concat', ['zeros', 'corner'], ['box'], axis=1),
        helper.make_node('Unsqueeze', ['box', 'one'], ['boxes']),
        helper.make_node('ReduceSum', ['images', 'axes'], ['sum'], keepdims=0),
        helper.make_node('ReduceProd', ['float', 'one'], ['area'], keepdims=0),
        helper.make_node('Div', ['sum', 'area'], ['mean']),
        helper.make_node('Mul', ['mean', 'share'], ['share_of_white']),
        helper.make_node('Unsqueeze', ['share_of_white', 'one'], ['scores']),
        helper.make_node('Mul', ['scores', 'nothing'], ['zero']),
        helper.make_node('Cast', ['zero'], ['labels'], to=types.INT64),
    ]
    constants = dict(
        swap=np.array([1, 0]),
        one=np.array([1]),
        axes=np.array([1, 2, 3]),
        nothing=np.float32(0),
        share=np.float32(1 / 3 / 255),
    )
    graph = helper.make_graph(
        nodes,
        'detector',
        [
            helper.make_tensor_value_info('images', types.FLOAT, [None, 3, None, None]),
            helper.make_tensor_value_info('sizes', types.INT64, [None, 2]),
        ],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in (('boxes', types.FLOAT), ('scores', types.FLOAT), ('labels', types.INT64))
        ],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=9)
    onnx.save(model, folder / 'foreign.onnx')
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, Description(('thing',), (128, 96), True, 32, 65, 0.3).to_json()
    onnx.save(model, folder / 'detector.onnx')
    for name, text in (
        ('pair', Description(('thing',), (128, 96), True, 32, 65, 0.3, batch=2).to_json()),
        ('list', '[1]'),
    ):
        entry.value = text
        onnx.save(model, folder / f'{name}.onnx')
    data = (folder / 'detector.onnx').read_bytes()
    (folder / 'cut.onnx').write_bytes(data[: len(data) // 2])
    (folder / 'empty.onnx').touch()
    os.mkfifo(folder / 'pipe.onnx')
    return folder


def test_length():
    """As docs/export.md says."""
    lines = len(DEMO.read_text().splitlines())
    assert lines <= 40
    assert f'shows all of it in {lines} lines' in (DEMO.parents[1] / 'docs/export.md').read_text()


def run(*arguments):
    done = subprocess.run([sys.executable, DEMO, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_files_that_are_no_detector(folder):
    for name, why in (
        ('cut', 'cannot be read'),
        ('empty', 'cannot be read'),
        ('foreign', 'is no detector that'),
        ('list', 'is no'),
    ):
        with pytest.raises(ExportError, match=rf'{name}.onnx {why}'):
            ExportedDetector(folder / f'{name}.onnx')
    code, _, error = run(folder / 'none.onnx', 'photo.jpg')
    assert code == 1 and "File doesn't exist" in error and error.count('\n') == 1
    for name in ('cut', 'foreign', 'list', 'pipe'):
        code, told, error = run(folder / f'{name}.onnx', 'photo.jpg')
        assert code == 1 and told == '' and error.count('\n') == 1, error
        assert error.startswith(f'{folder / name}.onnx is no ONNX file of tools/export.py: ')


def pictures(folder):
    """{name: (width, height) as it is seen, or None where it is refused}."""
    gray = Image.new('RGB', (300, 200), (180, 180, 180))
    turned = Image.Exif()
    turned[0x0112] = 6
    gray.save(folder / 'turned.jpg', exif=turned)
    gray.save(folder / 'animated.gif', save_all=True, append_images=[gray.rotate(90)])
    gray.convert('CMYK').save(folder / 'cmyk.jpg')
    gray.convert('L').save(folder / 'gray.png')
    cv2.imwrite(str(folder / 'deep.png'), np.full((200, 300, 3), 180 * 257, np.uint16))
    gray.resize((1, 1)).save(folder / 'one.png')
    gray.resize((20000, 300)).save(folder / 'wide.png')
    # a telephone's: with a thumbnail, progressive, and a film whose bytes look like markers after the JPEG's end
    gray.resize((30, 20)).save(folder / 'small.jpg')
    thumbnail = (folder / 'small.jpg').read_bytes()
    segment = b'\xff\xe1' + (len(thumbnail) + 2).to_bytes(2, 'big') + thumbnail
    gray.save(folder / 'motion.jpg', progressive=True)
    data = (folder / 'motion.jpg').read_bytes()
    motion = data[:2] + segment + data[2:]
    (folder / 'motion.jpg').write_bytes(motion + b'film \xff\xda \xff\xd8\xff\xda')
    (folder / 'cut-motion.jpg').write_bytes(motion[: -len(data) // 3])
    (folder / 'text.jpg').write_text('no picture')
    (folder / 'empty.jpg').touch()
    os.mkfifo(folder / 'pipe.jpg')
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    for kind in CUT:
        noise.save(folder / f'whole.{kind}')
        data = (folder / f'whole.{kind}').read_bytes()
        (folder / f'cut.{kind}').write_bytes(data[: len(data) * 3 // 4])
    seen = {name: (300, 200) for name in ('animated.gif', 'cmyk.jpg', 'gray.png', 'deep.png', 'motion.jpg')}
    seen |= {'turned.jpg': (200, 300), 'one.png': (1, 1), 'wide.png': (20000, 300)}
    refused = 'text.jpg', 'empty.jpg', 'none.jpg', 'pipe.jpg', 'cut-motion.jpg', *(f'cut.{kind}' for kind in CUT)
    return seen | {name: None for name in refused}


def test_files_of_two_images(folder):
    """One image takes both places."""
    Image.new('RGB', (300, 200), (180, 180, 180)).save(folder / 'gray.jpg')
    code, told, error = run(folder / 'pair.onnx', folder / 'gray.jpg')
    assert (code, error) == (0, '') and told == f'{folder}/gray.jpg: thing 0.71 [0.0, 0.0, 300.0, 200.0]\n'


def test_pictures_of_every_kind(folder):
    seen = pictures(folder)
    code, told, error = run(folder / 'detector.onnx', *(folder / name for name in seen))
    assert code == 1 and 'Traceback' not in error
    for name, size in seen.items():
        if size is None:
            assert f'{folder / name}: no image that OpenCV reads and this detector takes' in error
        else:
            assert f'{folder / name}: thing 0.7' in told and f'[0.0, 0.0, {size[0]:.1f}, {size[1]:.1f}]' in told
    assert len(told.splitlines()) == 8
    assert run(folder / 'detector.onnx', folder / 'one.png')[0] == 0


def test_arrays(folder):
    """Lists of images; one that stands alone would be taken for its rows."""
    detector = ExportedDetector(folder / 'detector.onnx')
    assert detector([]) == []
    for array in (np.full((200, 300), 180, np.uint8), np.full((200, 300, 4), 180, np.uint8)):
        (found,) = detector([array])
        np.testing.assert_allclose(found.boxes, [[0, 0, 300, 200]], atol=1e-3)
        assert found.scores == pytest.approx(180 / 255, abs=1e-4)
    for array, message in (
        (np.zeros((4, 4, 3)), r'images\[0\] is an array \[4, 4, 3\] of float64, expected uint8'),
        (np.zeros((1, 200, 3), np.uint8), r'images\[0\]: 200x1, expected at most 100 times'),
        ('photo.jpg', r'images\[0\] is of type str, expected an array'),
    ):
        with pytest.raises(ValueError, match=message):
            detector([array])
    with pytest.raises(ValueError, match=r'images: expected a list of images, got one array: give \[image\]'):
        detector(np.zeros((200, 300, 3), np.uint8))
    for threshold in (7, float('nan'), '0.3'):
        with pytest.raises(ValueError, match=f'threshold must be a number from 0 to 1, got {threshold!r}'):
            detector([], threshold)


def test_threads(folder):
    for threads in (0, -1, 100_000, 2.0):
        with pytest.raises(ValueError, match=f'threads must be an integer from 1 to 1024, or None, got {threads}'):
            ExportedDetector(folder / 'detector.onnx', threads)


def test_endings_in_capitals(folder):
    path = folder / 'D.ONNX'
    path.write_bytes((folder / 'detector.onnx').read_bytes())
    assert isinstance(open_detector(str(path)), ExportedDetector)
    assert open_detector(path).classes == ('thing',)
