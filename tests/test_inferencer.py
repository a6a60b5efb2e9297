"""What DDetrInferencer takes, what it refuses, what it writes, and in which order."""

import copy
import io
import json
import logging
from itertools import count, islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from PIL import Image

from mmdet_ddetr import get_config
from mmdet_ddetr.apis import DDetrInferencer
from mmdet_ddetr.apis import inferencer as module
from mmdet_ddetr.apis.inputs import pictures
from mmdet_ddetr.apis.pictures import LARGEST_SIDES
from mmdet_ddetr.apis.video import Clip, Frame
from mmdet_ddetr.apis.video_file import VideoFile
from mmdet_ddetr.testing import shrink

pytestmark = pytest.mark.filterwarnings('ignore')  # random weights


@pytest.fixture(scope='module')
def inferencer():
    config = get_config('deformable-detr-refine-twostage_lite0_shapes')
    shrink(config.model)
    torch.manual_seed(0)
    return DDetrInferencer(config, device='cpu', show_progress=False)


@pytest.fixture
def image():
    """[48, 64, 3], BGR, that no flip or exchange of channels leaves as it is."""
    return cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (64, 48))


def scores(inferencer, inputs, **kwargs):
    return [result['scores'] for result in inferencer(inputs, **kwargs)['predictions']]


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_arrays_and_pil_images_of_one_picture(inferencer, image, tmp_path):
    """Whatever holds the pixels, the detections are those of the file."""
    file = tmp_path / 'image.png'
    cv2.imwrite(str(file), image)
    rgb = Image.fromarray(image[..., ::-1])
    (expected,) = scores(inferencer, file)
    alpha = np.full_like(image[..., :1], 7)
    same = [
        str(file),
        image,
        np.dstack([image, alpha]),
        np.asfortranarray(image),
        image[:, ::-1][:, ::-1],  # strides below zero
        rgb,
        Image.fromarray(np.dstack([image[..., ::-1], alpha])),
        rgb.convert('RGBX'),
        Image.open(file),
    ]
    for found in scores(inferencer, same, batch_size=2):
        assert found == pytest.approx(expected, abs=1e-6)


def test_gray_is_three_equal_channels(inferencer, image):
    gray = image[..., 0]
    expected, *rest = scores(
        inferencer,
        [
            np.dstack([gray] * 3),
            gray,
            gray[..., None],
            Image.fromarray(gray),
            Image.fromarray(gray.astype(np.uint16) * 256 + 99),  # I;16
        ],
    )
    assert all(found == expected for found in rest)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'PA', 'RGBA', 'RGBa', 'La', 'CMYK', 'YCbCr', 'HSV', 'LAB'])
def test_pil_modes(inferencer, image, mode):
    """Pillow's own conversion; a palette's indices or a printer's inks are no colours."""
    picture = Image.fromarray(image[..., ::-1])
    if mode in ('RGBa', 'La', 'LA', 'PA'):
        picture = picture.convert({'RGBa': 'RGBA', 'PA': 'P'}.get(mode, 'LA'))
    picture = picture.convert(mode) if picture.mode != mode else picture
    plain = picture.convert({'RGBa': 'RGBA', 'La': 'LA'}.get(mode, mode)).convert('RGB')
    assert scores(inferencer, picture) == scores(inferencer, np.asarray(plain)[..., ::-1])


def test_pil_image_is_turned_as_its_exif_says(inferencer, image, tmp_path):
    turned = Image.fromarray(image[..., ::-1])
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn clockwise puts it upright
    turned.save(tmp_path / 'turned.png', exif=exif)
    expected = scores(inferencer, cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE))
    assert scores(inferencer, Image.open(tmp_path / 'turned.png')) == expected
    assert scores(inferencer, tmp_path / 'turned.png') == expected


def test_iterators_are_read_as_needed(inferencer, image, monkeypatch):
    """An endless one, ended by an error of its own: what is read ahead is bounded."""
    monkeypatch.setattr(module, 'READ_AHEAD', 8)
    read = []

    def stream():
        for i in count():
            if i == 20:
                raise ValueError('the camera is off')
            read.append(i)
            yield image

    batches = inferencer.preprocess(stream(), batch_size=4)
    next(batches)
    assert len(read) == 8
    with pytest.raises(ValueError, match='the camera is off'):
        inferencer(stream(), batch_size=10)

    batches = inferencer.preprocess(stream(), batch_size=1)
    read.clear()
    next(batches)
    assert len(read) == 1


@pytest.mark.parametrize('make', [list, tuple, iter, lambda items: (item for item in items)])
def test_collections(inferencer, image, make):
    assert len(scores(inferencer, make([image] * 3), batch_size=2)) == 3
    assert scores(inferencer, make([])) == []


@pytest.mark.parametrize(
    ('inputs', 'message'),
    [
        (lambda x: x / 255, r'inputs is an array \[48, 64, 3\] of float64, expected uint8.*255 \* array'),
        (lambda x: [x, x.astype(np.float32)], r'inputs\[1\] is an array \[48, 64, 3\] of float32'),
        (lambda x: x.astype(np.uint16), r'of uint16, expected uint8.*array >> 8'),
        (lambda x: x.astype(int), r'of int64, expected uint8.*astype'),
        (lambda x: x > 9, r'of bool, expected uint8; give 255'),
        (lambda x: x.astype(object), r'of object, expected uint8; give an array of numbers'),
        (lambda x: x[None], r'inputs is an array \[1, 48, 64, 3\] .*list\(array\)'),
        (lambda x: x.transpose(2, 0, 1), r'\[3, 48, 64\] .*array.transpose\(1, 2, 0\)'),
        (lambda x: x[0, 0], r'inputs is an array \[3\] of uint8, expected \[H, W\]'),
        (lambda x: x[:0], r'inputs is an array \[0, 64, 3\] of uint8, which has no pixel'),
        (lambda x: None, r'inputs is of type NoneType, expected a path'),
        (lambda x: {'img': x}, r'inputs is of type dict, expected a path'),
        (lambda x: [[x]], r'inputs\[0\] is of type list, expected a path'),
        (lambda x: torch.from_numpy(x), r'inputs is of type Tensor, .*tensor.cpu\(\).numpy\(\)'),
        (lambda x: b'', r'inputs is of type bytes, .*Image.open'),
        (lambda x: Image.new('F', (8, 8)), r"inputs is a PIL image of mode 'F'"),
        (lambda x: np.zeros((2, 2000, 3), np.uint8), r'inputs: 2000x2, expected at most 100 times'),
        (lambda x: [x, Image.new('L', (1, 101))], r'inputs\[1\]: 1x101, expected at most 100 times'),
        (lambda x: ['', x], r"inputs\[0\] is '', expected a path"),
        (lambda x: 'no/such.mp4', r'^no/such.mp4: no such file'),
        (lambda x: 'no/such.jpg', r'^no/such.jpg: no such file'),
        (lambda x: [x, __file__], r'^/.*test_inferencer.py: not an image'),
    ],
)
def test_refusals(inferencer, image, inputs, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        inferencer(inputs(image), batch_size=2)


def test_a_good_run_is_quiet(image, tmp_path):
    """mmengine warns of a registry that mmdet does not have, in every run."""
    config = get_config('deformable-detr_lite0_shapes')
    shrink(config.model)
    console = io.StringIO()
    handler = logging.StreamHandler(console)
    handler.setLevel(logging.INFO)
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        DDetrInferencer(config, device='cpu', show_progress=False)(image, out_dir=tmp_path)
        assert console.getvalue() == ''
        logger.warning('Failed to search registry with scope "mmdet"')  # only while it is built
        assert 'Failed' in console.getvalue()
    finally:
        logger.removeHandler(handler)


def test_batch_size_is_checked(inferencer, image):
    with pytest.raises(ValueError, match='batch_size must be an integer of at least 1, got 0'):
        inferencer(image, batch_size=0)


def test_files_are_refused_by_what_they_are(inferencer, image, tmp_path, capfd, monkeypatch):
    cv2.imwrite(str(tmp_path / 'long.png'), np.zeros((1, 101, 3), np.uint8))
    (tmp_path / 'video.mp4').touch()
    monkeypatch.setattr(inferencer, 'show_progress', True)
    with pytest.raises(ValueError, match=r'^/.*long.png: 101x1, expected at most 100 times'):
        inferencer(tmp_path / 'long.png')
    with pytest.raises(ValueError, match=r'^/.*video.mp4: the file is empty'):
        inferencer(tmp_path / 'video.mp4')
    assert 'Inference' not in capfd.readouterr().out  # no progress bar before the message
    inferencer(image)
    assert 'Inference' in capfd.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(pred_score_thr='0.3'), "pred_score_thr must be a number from 0 to 1, got '0.3'"),
        (dict(pred_score_thr=2), 'pred_score_thr must be a number from 0 to 1, got 2'),
        (dict(out_dir=__file__), r'out_dir is .*, but .*test_inferencer.py. is a file, expected a folder'),
        (dict(out_dir=f'{__file__}/a'), r'out_dir is .*, but .*test_inferencer.py. is a file, expected a folder'),
        (dict(out_dir='/proc/zz'), "out_dir is '/proc/zz', but nothing can be written to '/proc/zz': "),
        (dict(out_dir=None), 'out_dir is None, expected the path of a folder'),
        (dict(every=0), 'every must be an integer of at least 1, got 0'),
        (dict(returns='json'), "returns must be one of dict, datasample, supervision, pandas, got 'json'"),
        (dict(unreadable='ignore'), "unreadable must be one of raise, skip, got 'ignore'"),
        (dict(outdir='x'), "there is no argument 'outdir'; did you mean out_dir?"),
        (
            dict(nothing_near=1),
            "there is no argument 'nothing_near', expected one of inputs, batch_size, out_dir",
        ),
        (dict(coco=3), 'coco is of type int, expected the path of an annotation file'),
        (dict(coco='truth.json'), 'coco needs out_dir'),
        (dict(show=True), 'show=True needs a display.*out_dir='),
    ],
)
def test_arguments_are_checked_before_an_image_is_read(inferencer, arguments, message, monkeypatch):
    monkeypatch.setattr('matplotlib.pyplot.get_backend', lambda: 'agg')
    with pytest.raises((ValueError, TypeError), match=message):
        inferencer('no/such.jpg', **arguments)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(), r'neither model nor weights .*DDetrInferencer\(weights='),
        (dict(weight='a.pth'), "there is no argument 'weight'; did you mean weights?"),
        (dict(weights='a.pth', devise='cpu'), "there is no argument 'devise'; did you mean device?"),
        (dict(weights='a.pth', x=1), "no argument 'x', expected one of model, weights, optimize, device, scope, pal"),
        (dict(weights=3), 'weights is of type int'),
        (dict(weights=''), "weights is ''"),
        (dict(model=3), 'model is of type int'),
        (dict(model='deformable-detr_lite0_shapes', device='gpu'), "device is 'gpu', expected .*'cpu'"),
        (dict(model='deformable-detr_lite0_shapes', device='cuda:99'), "device is 'cuda:99', but torch finds"),
    ],
)
def test_arguments_of_the_model(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        DDetrInferencer(**arguments)


def test_differences_from_the_config_in_the_checkpoint(inferencer, tmp_path):
    """Those that make other detections of the same weights; another learning rate does not."""
    config, stored = (get_config('deformable-detr-refine-twostage_lite0_shapes') for _ in range(2))
    shrink(config.model)
    stored.optim_wrapper.optimizer.lr = 3.0
    same = stored.pretty_text
    stored.test_dataloader.dataset.pipeline[1].scale = (96, 64)
    stored.model.test_cfg = dict(max_per_img=7)
    limit = config.model.test_cfg.get('max_per_img', 'not set')
    told = [f'model.test_cfg.max_per_img {limit}, not 7', 'test scale [192, 192], not [96, 64]']
    for text, expected in ((same, []), (stored.pretty_text, told), ('import os', []), ('model = 3', [])):
        torch.save(dict(state_dict=inferencer.model.state_dict(), meta=dict(cfg=text)), tmp_path / 'a.pth')
        opened = DDetrInferencer(copy.deepcopy(config), tmp_path / 'a.pth', device='cpu', show_progress=False)
        assert opened.differences() == expected
    assert inferencer.differences() == []


# --- outputs ---------------------------------------------------------------------------------------------------------


def written(folder):
    return {kind: sorted(path.name for path in Path(folder, kind).iterdir()) for kind in ('vis', 'preds')}


def test_arrays_are_numbered(inferencer, image, tmp_path):
    inferencer([image, Image.fromarray(image)], out_dir=tmp_path)
    inferencer(image[..., 0], out_dir=str(tmp_path))
    names = ['00000000', '00000001', '00000002']
    assert written(tmp_path) == dict(vis=[f'{n}.jpg' for n in names], preds=[f'{n}.json' for n in names])


def test_a_picture_longer_than_its_format(inferencer, image, tmp_path, monkeypatch):
    """OpenCV would write an empty file."""
    monkeypatch.setitem(LARGEST_SIDES, '.jpg', 32)
    inferencer(image, out_dir=tmp_path)
    assert cv2.imread(str(tmp_path / 'vis/00000000.jpg')).shape == (24, 32, 3)


@pytest.mark.parametrize('at_once', [True, False])
def test_files_of_one_name_are_kept_apart(inferencer, image, tmp_path, at_once):
    """In other folders, with other suffixes, in upper case; in one call or in several."""
    names = ['cam0/1.jpg', 'cam1/1.jpg', 'cam1/1.png', 'cam2/1.JPG', 'cam2/2.tga']
    files = []
    for i, name in enumerate(names):
        files.append(tmp_path / name)
        files[-1].parent.mkdir(exist_ok=True)
        Image.fromarray(image[: 20 + i]).save(files[-1])
    out = tmp_path / 'out'
    results = []
    for inputs in [files] if at_once else files:
        results += inferencer(inputs, out_dir=out, batch_size=2, no_save_vis=not at_once)['predictions']
    assert len(list((out / 'preds').iterdir())) == len(files)
    for stem, result in zip(['1', 'cam1_1', None, 'cam2_1', '2'], results):
        if stem is not None:
            assert json.loads((out / f'preds/{stem}.json').read_text()) == result
    if at_once:
        assert len(written(out)['vis']) == len(files)
        assert cv2.imread(str(out / 'vis/cam2_1.JPG')).shape[0] == 23
        assert cv2.imread(str(out / 'vis/2.jpg')).shape[0] == 24
    inferencer(files, out_dir=out, no_save_vis=True)  # the same files again: their own results are replaced
    assert len(list((out / 'preds').iterdir())) == len(files)


def test_no_input_is_replaced(inferencer, image, tmp_path):
    """Neither of a folder nor, as far as they were given by then, of an iterator."""
    out = tmp_path / 'vis'
    out.mkdir()
    for name in ('a.jpg', 'b.jpg'):
        cv2.imwrite(str(out / name), image)
    before = (out / 'a.jpg').read_bytes()
    with pytest.raises(ValueError, match=r"^out_dir is '.*', but .*a.jpg is one of the sources and would be replaced"):
        inferencer(out, out_dir=tmp_path)
    with pytest.raises(FileExistsError, match='a.jpg is one of the sources and would be replaced'):
        inferencer(iter([out / 'a.jpg']), out_dir=tmp_path)
    assert (out / 'a.jpg').read_bytes() == before and not list(tmp_path.glob('preds/*'))
    inferencer(out, out_dir=tmp_path, no_save_vis=True)
    assert written(tmp_path)['preds'] == ['a.json', 'b.json']


def test_what_came_before_a_bad_image_is_written(inferencer, image, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xff')
    with pytest.raises(ValueError, match=r'^/.*broken.jpg: '):
        inferencer([image, image, tmp_path / 'broken.jpg', image], batch_size=4, out_dir=tmp_path / 'out')
    assert len(written(tmp_path / 'out')['preds']) == 2


def test_datasamples_are_written_as_well(inferencer, image, tmp_path):
    results = inferencer(image, out_dir=tmp_path, return_datasamples=True, return_vis=True)
    (sample,), (picture,) = results['predictions'], results['visualization']
    (file,) = (tmp_path / 'preds').iterdir()
    assert json.loads(file.read_text())['scores'] == sample.pred_instances.scores.tolist()
    assert picture.shape == image.shape


def test_a_video_becomes_a_video_and_a_line_a_frame(inferencer, image, tmp_path):
    file = VideoFile(tmp_path / 'street.mp4', 12.5, (64, 48))
    for shade in (0, 40, 80, 120, 160):
        file.write(np.clip(image.astype(int) + shade, 0, 255).astype(np.uint8))
    file.close()
    frames = [picture.read() for picture in pictures(tmp_path / 'street.mp4')]
    expected = scores(inferencer, frames, batch_size=2)

    file = VideoFile(tmp_path / 'another.mp4', 25, (64, 40))  # smaller: goes first where both are in one window
    for _ in range(2):
        file.write(image[:40])
    file.close()

    inputs = [tmp_path / 'street.mp4', tmp_path / 'another.mp4', image, image[:40]]
    found = list(inferencer.stream(inputs, batch_size=2, out_dir=tmp_path / 'out', return_vis=True))
    assert [item.frame for item in found] == [0, 1, 2, 3, 4, 0, 1, None, None]
    assert {item.path for item in found[:5]} == {str(tmp_path / 'street.mp4')} and found[-1].path is None
    for item, alone in zip(found[:5], expected, strict=True):
        assert item.prediction['scores'] == pytest.approx(alone, abs=1e-5)
        assert item.visualization.shape == (48, 64, 3)
    lines = [json.loads(line) for line in (tmp_path / 'out/preds/street.jsonl').read_text().splitlines()]
    assert [(line['frame'], line['time']) for line in lines] == [(0, 0), (1, 0.08), (2, 0.16), (3, 0.24), (4, 0.32)]
    assert [line['bboxes'] for line in lines] == [item.prediction['bboxes'] for item in found[:5]]
    assert len((tmp_path / 'out/preds/another.jsonl').read_text().splitlines()) == 2
    drawn = cv2.VideoCapture(str(tmp_path / 'out/vis/street.mp4'))
    assert (drawn.get(cv2.CAP_PROP_FPS), drawn.get(cv2.CAP_PROP_FRAME_COUNT)) == (12.5, 5)
    assert len(written(tmp_path / 'out')['vis']) == 4


def test_a_camera_has_no_end(inferencer, image, monkeypatch):
    for camera in (0, 'rtsp://camera/1'):
        with pytest.raises(ValueError, match='has no end, .* use .stream'):
            inferencer([image, camera])
    clip = Clip(0, 25.0, None)
    endless = ((clip, Frame(i, i / 25, image)) for i in count())
    monkeypatch.setattr('mmdet_ddetr.apis.video.frames', lambda source, every: endless)
    found = list(islice(inferencer.stream(0, batch_size=2), 3))
    assert [(item.path, item.frame) for item in found] == [('camera 0', 0), ('camera 0', 1), ('camera 0', 2)]
    assert next(endless)[1].number == 4  # no frame was read that is not looked at yet


def test_what_cannot_be_read_is_skipped_on_request(inferencer, image, tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xff')
    inputs = [image, tmp_path / 'broken.jpg', tmp_path / 'none.mp4', f'{tmp_path}/no*', image]
    results = inferencer(inputs, batch_size=4, unreadable='skip', return_vis=True)
    assert [p is None for p in results['predictions']] == [False, True, True, True, False]
    assert [p is None for p in results['visualization']] == [False, True, True, True, False]
    assert results['predictions'][0]['scores'] == pytest.approx(results['predictions'][4]['scores'], abs=1e-6)
    with pytest.raises(TypeError, match=r'inputs\[1\] is of type NoneType'):
        inferencer([image, None], unreadable='skip')


@pytest.mark.parametrize('returns', ['supervision', 'pandas'])
def test_other_programs_forms(inferencer, image, tmp_path, returns):
    pytest.importorskip(returns)
    (expected,) = inferencer(image)['predictions']
    (found,) = inferencer(image, returns=returns, out_dir=tmp_path)['predictions']
    boxes = found.xyxy if returns == 'supervision' else found[['x1', 'y1', 'x2', 'y2']].to_numpy()
    names = found.data['class_name'] if returns == 'supervision' else found['name']
    np.testing.assert_allclose(boxes, expected['bboxes'], atol=1e-4)
    assert list(names) == [inferencer.classes[label] for label in expected['labels']]
    assert len(written(tmp_path)['preds']) == 1


def test_coco_results(inferencer, image, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    truth = dict(images=[dict(id=4, file_name='a.png')])
    truth['categories'] = [dict(id=10 + i, name=name) for i, name in enumerate(inferencer.classes)]
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    (found,) = inferencer(tmp_path / 'a.png', out_dir=tmp_path / 'out', coco=tmp_path / 'truth.json')['predictions']
    results = json.loads((tmp_path / 'out/results.bbox.json').read_text())
    assert [r['category_id'] - 10 for r in results] == found['labels'] and {r['image_id'] for r in results} == {4}
    x1, y1, x2, y2 = found['bboxes'][0]
    assert results[0]['bbox'] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)


def test_detect_gives_what_the_call_gives(inferencer, image):
    (expected,) = inferencer(image)['predictions']
    found, _ = inferencer.detect([image, image], threshold=expected['scores'][5])
    assert inferencer.detect([]) == []
    assert found.scores == pytest.approx(expected['scores'][:6], abs=1e-6)
    np.testing.assert_allclose(found.boxes, expected['bboxes'][:6], atol=1e-3)


# --- order and batches -----------------------------------------------------------------------------------------------


def test_like_shapes_go_together_and_results_keep_the_order(inferencer, image, monkeypatch):
    """Two shapes in turn: no batch is padded, and no image gets another's detections."""
    images = [image, image[:, :40]] * 4
    batches = [batch for _, batch in inferencer.preprocess(images, batch_size=4)]
    assert [len({tuple(x.shape) for x in batch['inputs']}) for batch in batches] == [1, 1]
    for found, alone in zip(scores(inferencer, images, batch_size=4), images, strict=True):
        assert found == pytest.approx(scores(inferencer, alone)[0], abs=1e-5)
    monkeypatch.setattr(module, 'READ_AHEAD_BYTES', 1)  # bounds what is read ahead, not the batch
    assert [len(jobs) for jobs, _ in inferencer.preprocess(images, batch_size=3)] == [3, 3, 2]


def test_without_resize_boxes_are_in_the_images_own_pixels(image):
    """The test pipeline then tells no scale_factor."""
    config = get_config('deformable-detr-refine-twostage_lite0_shapes')
    shrink(config.model)
    pipeline = config.test_dataloader.dataset.pipeline
    config.test_dataloader.dataset.pipeline = [step for step in pipeline if step.type != 'Resize']
    inferencer = DDetrInferencer(config, device='cpu', show_progress=False)
    (result,) = inferencer(image)['predictions']
    boxes = np.array(result['bboxes'])
    assert (boxes[:, 2].max(), boxes[:, 3].max()) <= (64, 48)
    assert boxes[:, 2].max() > 32 and boxes[:, 3].max() > 24
