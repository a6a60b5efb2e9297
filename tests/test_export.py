"""Exported files give PyTorch's detections: of batches of any size, padded, in each format and of each detector."""

import copy
import os
import pickle
import re
import resource
import runpy
import sys
import warnings
import zipfile
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from export_case import ALL, TITLES, detector
from mmdet.apis import inference_detector
from mmdet.models.detectors import DINO
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from tiny_model import CLASSES, tiny_model

from mmdet_ddetr import get_config
from mmdet_ddetr.export import DetectionProgram, ExportedDetector, ExportError, export, formats
from mmdet_ddetr.export.description import Description, describe
from mmdet_ddetr.export.runtime import masks_of
from mmdet_ddetr.layers import ImageSizes
from mmdet_ddetr.layers.own_maps import own_masks
from mmdet_ddetr.layers.padding import padding_masks
from mmdet_ddetr.ops import deform_conv2d
from mmdet_ddetr.testing import make_batch, shrink

with suppress(ImportError):
    import onnx
    import onnxruntime

SIZES = [(96, 130), (70, 160), (96, 64)]  # of images, h and w; none fills the batch, 96 x 160
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 96), keep_ratio=True),
    dict(type='PackDetInputs'),
]
CFG = ConfigDict(
    model=dict(data_preprocessor=dict(pad_size_divisor=32)),
    test_dataloader=dict(dataset=dict(pipeline=PIPELINE)),
)
NAMES_OF_CLASSES = tuple(f'class {i}' for i in range(CLASSES))
ONNX = ['detr', *(pytest.param(name, marks=pytest.mark.slow) for name in ALL if name != 'detr')]
WITHOUT_SAMPLING = {
    *(
        'detr',
        'conditional',
        'dab',
        'anchor',
        'smca',
        'smca-multi-scale',
        'masks',
        'DN-DAB',
        'DAB, fixed',
        'anchor grid',
        'SMCA, conv',
    )
}
RANKS = {'sam': 7, 'SAM, DC5': 7, 'DAT': 6}  # samples of RoIAlign, windows
COCO = Path(__file__).parents[2] / 'shared' / 'data' / 'coco-mini' / 'val2017'
FAST = {'two-stage', 'anchor', 'mmdet, DINO'}


def pixels(sizes=SIZES, whole=(96, 160)):
    torch.manual_seed(1)
    images = torch.rand(len(sizes), 3, *whole).mul(255).round()  # what lies outside is no zero either
    return images, torch.tensor(sizes)


def assert_same(got, expected, pixels=0.01, tolerance=1e-4):
    """Scores in order to 1e-4; every detection has its like, of the same label and a box to 0.01 px.

    Near-ties may come in another order, and the last of them may be another one.
    """
    boxes, scores, labels = (torch.as_tensor(np.asarray(x)) for x in got[:3])
    assert boxes.shape == expected[0].shape
    torch.testing.assert_close(scores, expected[1], rtol=0, atol=tolerance)
    near = (scores[:, :, None] - expected[1][:, None]).abs() <= 2 * tolerance  # [B, N, N]
    near &= labels[:, :, None] == expected[2][:, None]
    near &= (boxes[:, :, None] - expected[0][:, None]).abs().amax(-1) <= pixels
    sure = expected[1] > expected[1][:, -1:] + 2 * tolerance
    assert sure.double().mean() > 0.5
    assert near.any(1)[sure].all()


@pytest.mark.parametrize(
    'variant', [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_program_gives_the_predictions(variant):
    """Of a padded batch, whatever the padding holds: what ``predict`` gives of the same images and their samples."""
    model = detector(variant)
    program = DetectionProgram(model)
    images, sizes = pixels()
    boxes, scores, labels, *masks = program(images, sizes)
    _, samples = make_batch(SIZES, [0] * 3, CLASSES)
    normalised = (images - program.mean) / program.std
    for image, sample, (h, w) in zip(normalised, samples, SIZES):
        sample.set_metainfo(dict(img_shape=(h, w), batch_input_shape=(96, 160)))
        image[:, h:] = image[:, :, w:] = 0
    with torch.no_grad():
        expected = model.predict(normalised, samples, rescale=False)
    for index, sample in enumerate(expected):
        found, (h, w) = sample.pred_instances, SIZES[index]
        of_image = [x[index][None] for x in (boxes, scores, labels)]
        assert_same(of_image, [x[None] for x in (found.bboxes, found.scores, found.labels)])
        if masks:
            ours = masks_of(masks[0][index].numpy(), (96, 160), (h, w), (h, w))
            assert (torch.from_numpy(ours) == found.masks).double().mean() > 0.999


@pytest.mark.parametrize('size', [(80, 100), (33, 65), (96, 97)])
def test_masks_of_tensors_are_those_of_samples(size):
    """By both rules, for images of every height and width."""
    whole = (96, 128)
    shapes = [(-(-whole[0] // stride), -(-whole[1] // stride)) for stride in (4, 8, 16, 32, 64)]
    _, samples = make_batch([whole, size], [0, 0], CLASSES)
    for sample, shape in zip(samples, (whole, size)):
        sample.set_metainfo(dict(img_shape=shape, batch_input_shape=whole))
    sizes = ImageSizes(torch.tensor([whole, size]).float(), whole)
    for rule in (padding_masks, own_masks):
        for ours, theirs in zip(rule(shapes, sizes, 'cpu'), rule(shapes, samples, 'cpu')):
            assert torch.equal(ours, theirs)


def export_tiny(variant, path, format, attention=None, divisor=32, **kwargs):
    model, cfg = detector(variant), copy.deepcopy(CFG)
    cfg.model.data_preprocessor.pad_size_divisor = divisor
    with warnings.catch_warnings(record=True) as told:  # PyTorch's of itself
        warnings.simplefilter('always')
        export(model, cfg, path, format, classes=NAMES_OF_CLASSES, attention=attention, **kwargs)
    assert not told
    return DetectionProgram(model)


@pytest.fixture(scope='module')
def detr(tmp_path_factory):
    """The file of a DETR, and its program."""
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp('detr') / 'detector.onnx'
    return path, export_tiny('detr', path, 'onnx')


@pytest.mark.parametrize('variant', ONNX)
def test_onnx_of_any_batch_and_size(variant, tmp_path, request):
    """One file for one to three images of three sizes, padded, in standard operators."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'detector.onnx'
    if variant == 'detr':
        path, program = request.getfixturevalue('detr')
    else:
        program = export_tiny(variant, path, 'onnx')
    model = onnx.load(path)
    graph, kinds = model.graph, {node.op_type for node in model.graph.node}
    assert largest_rank(model) == RANKS.get(variant, 5)
    assert ('GridSample' in kinds) == (variant not in WITHOUT_SAMPLING) and ('DeformConv' in kinds) == (
        variant == 'DCNv2'
    )
    assert {node.domain for node in graph.node} <= {'', 'ai.onnx'}
    assert [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim] == ['batch', '', 'height', 'width']
    opened = ExportedDetector(path)
    assert opened.classes == NAMES_OF_CLASSES
    assert_same_in_any_batch(opened, program)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['two-stage', 'masks', 'BiFPN', 'SMCA, conv'])
def test_onnx_of_sizes_that_are_no_multiples(variant, tmp_path):
    """As of the published configs, whose divisor is 1: maps of odd sides, rounded up."""
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'detector.onnx'
    program = export_tiny(variant, path, 'onnx', divisor=1)
    opened = ExportedDetector(path)
    for sizes, whole in (([(97, 131), (70, 160), (90, 64)], (97, 161)), ([(65, 203)], (65, 203))):
        images, sizes = pixels(sizes, whole)
        assert_same(opened.run(images.numpy(), sizes.numpy()), program(images, sizes))


@pytest.mark.slow
def test_windows_for_a_size(tmp_path):
    """Windows of 7 cells are beyond ``torch.export`` in maps of any size, but not in multiples of 32 px or one size."""
    pytest.importorskip('onnxscript')
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'detector.onnx'
    with pytest.raises(ExportError, match=r'DeformableDETR with DAT cannot be exported for any .* pad_size_divisor=32'):
        export_tiny('DAT', path, 'onnx', divisor=1)
    assert not path.exists()
    program = export_tiny('DAT', path, 'onnx', divisor=1, size=(97, 161))
    images, sizes = pixels(SIZES[:1], (97, 161))
    images, sizes = images.repeat(2, 1, 1, 1), sizes.repeat(2, 1)
    assert_same(ExportedDetector(path).run(images.numpy(), sizes.numpy()), program(images, sizes))


def test_rounding_up_of_sizes(tmp_path):
    """-(-H // 7) in the file as in Python, where ONNX's own division rounds to zero."""
    for package in ('onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    from mmdet_ddetr.export.onnx_ops import translations

    class Windows(torch.nn.Module):
        def forward(self, x):
            return x[:1] * -(-x.shape[0] // 7)

    path, height = tmp_path / 'windows.onnx', torch.export.Dim('height', min=2, max=99)
    exported = torch.export.export(Windows(), (torch.ones(9),), dynamic_shapes=dict(x={0: height}))
    table = translations('gridsample')
    torch.onnx.export(
        *(exported, (), path), opset_version=20, optimize=False, verbose=False, custom_translation_table=table
    )
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    for cells, windows in {2: 1, 7: 1, 8: 2, 13: 2, 14: 2, 15: 3}.items():
        (found,) = session.run(None, dict(x=np.ones(cells, np.float32)))
        assert found == windows


def largest_rank(model):
    """Of all tensors in the file: some runtimes take at most five dimensions."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    ranks = [len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.output)]
    assert len(ranks) > 0.9 * len(graph.node)
    return max(ranks)


def assert_same_in_any_batch(opened, program):
    for sizes, whole in ((SIZES, (96, 160)), ([(100, 96)], (128, 96)), ([(64, 200), (96, 224)], (96, 224))):
        images, sizes = pixels(sizes, whole)
        got, expected = opened.run(images.numpy(), sizes.numpy()), program(images, sizes)
        assert_same(got, expected)
        if program.has_masks:  # where the order is the same, too
            torch.testing.assert_close(torch.as_tensor(got[3]), expected[3], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['two-stage', 'DCNv2'])
def test_gather(variant, tmp_path):
    """No GridSample, which some runtimes miscompute."""
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'detector.onnx'
    program = export_tiny(variant, path, 'onnx', 'gather')
    model = onnx.load(path)
    assert 'GridSample' not in {node.op_type for node in model.graph.node} and largest_rank(model) == 5
    assert_same_in_any_batch(ExportedDetector(path), program)


@pytest.mark.parametrize('form', ['DeformConv', 'gridsample', 'gather'])
def test_deformable_convolution(form, tmp_path):
    """Each form of it, with groups of both kinds, unequal strides, paddings and dilations, offsets beyond the map."""
    for package in ('onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    from mmdet_ddetr.export.onnx_ops import translations

    class Conv(torch.nn.Module):
        def forward(self, x, offset, weight, mask):
            return deform_conv2d(x, offset, weight, None, (2, 1), (1, 2), (1, 3), mask)

    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 9, 12), torch.randn(6, 4, 3, 2)
    offset, mask = 4 * torch.randn(2, 4 * 6 * 2, 5, 13), torch.rand(2, 4 * 6, 5, 13)
    inputs = dict(x=x, offset=offset, weight=weight, mask=mask)
    table = translations('gather' if form == 'gather' else 'gridsample', form == 'DeformConv')
    path = tmp_path / 'conv.onnx'
    exported = torch.export.export(Conv(), tuple(inputs.values()))
    torch.onnx.export(
        *(exported, (), path), opset_version=20, optimize=False, verbose=False, custom_translation_table=table
    )
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    (found,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(found), Conv()(**inputs), rtol=1e-4, atol=1e-4)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert (
        kinds & {'DeformConv', 'GridSample'} == dict(DeformConv={form}, gridsample={'GridSample'}, gather=set())[form]
    )


FORMATS_OF = {
    'openvino': ('detr', 'two-stage', 'DCNv2', 'masks', 'mmdet, DINO'),
    'pt2': ('detr', 'two-stage', 'DCNv2'),
    'aoti': ('detr',),
}
OTHERS = [(variant, format, None) for format, variants in FORMATS_OF.items() for variant in variants]
OTHERS += [('two-stage', 'pt2', 'op'), ('two-stage', 'pt2', 'gather'), ('two-stage', 'openvino', 'gather')]


def test_documented_detectors():
    """The table of docs/export.md is what is tested here, no more and no less."""
    page = (Path(__file__).parents[1] / 'docs/export.md').read_text()
    head, _, *rows = re.search(r'(?m)^\| \| onnx .*?\n\n', page, re.DOTALL)[0].splitlines()[:-1]
    formats = [cell.strip() for cell in head.split('|')[2:-1]]
    documented = {format: set() for format in formats}
    for row in rows:
        title, *cells = (cell.strip() for cell in row.split('|')[1:-1])
        assert set(cells) <= {'yes', ''}
        for format, cell in zip(formats, cells, strict=True):
            if cell:
                documented[format].add(TITLES[title])
    assert documented == {'onnx': set(ALL)} | {format: set(names) for format, names in FORMATS_OF.items()}


@pytest.mark.slow
@pytest.mark.parametrize('variant, format, attention', OTHERS)
def test_other_formats(variant, format, attention, tmp_path):
    if format == 'openvino':
        pytest.importorskip('openvino')
        pytest.importorskip('onnxscript')
    path = tmp_path / ('detector.xml' if format == 'openvino' else 'detector.pt2')
    program = export_tiny(variant, path, format, attention)
    opened = ExportedDetector(path)
    assert opened.classes == NAMES_OF_CLASSES
    assert_same_in_any_batch(opened, program)


@pytest.mark.slow
@pytest.mark.skipif(not COCO.is_dir(), reason='no images')
@pytest.mark.parametrize('format', ['onnx', 'openvino'])
def test_images_of_coco(format, tmp_path):
    """Twenty photographs one by one by the test pipeline, and three at a time, padded, by a two-stage detector.

    Its proposals' scores are spread out: where two of them are equal to 1e-7, the file may choose the other one.
    """
    for package in ('onnx', 'onnxscript', 'onnxruntime' if format == 'onnx' else 'openvino'):
        pytest.importorskip(package)
    init_default_scope('mmdet')
    cfg = get_config('deformable-detr-refine-twostage-dn_lite0_shapes')  # with matrix_nms
    shrink(cfg.model)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    with torch.no_grad():
        for branch in model.bbox_head.cls_branches:
            branch.weight.normal_(std=0.3)
        for branch in model.bbox_head.reg_branches:
            branch[-1].weight.normal_(std=0.03)
    model.cfg = cfg
    path = tmp_path / dict(onnx='detector.onnx', openvino='detector.xml')[format]
    classes = [str(i) for i in range(cfg.model.bbox_head.num_classes)]
    export(model, cfg, path, format, classes=classes)
    opened, program = ExportedDetector(path), DetectionProgram(model)
    images = [cv2.imread(str(file)) for file in sorted(COCO.glob('*.jpg'))[:20]]
    assert len(images) == 20 and len({image.shape for image in images}) > 8
    scores = []
    for image in images:
        expected = inference_detector(model, image).pred_instances
        (found,) = opened([image])
        factor = max(image.shape[:2]) / 192  # of the pixels that the boxes are compared in
        scores.append(expected.scores)
        assert_same(
            [x[None] for x in (found.boxes, found.scores, found.labels)],
            [x[None] for x in (expected.bboxes, expected.scores, expected.labels)],
            pixels=0.01 * factor,
        )
    assert torch.stack(scores).std() > 0.05
    for first in range(0, 18, 3):
        batch, sizes = opened.batch([opened.resize(image) for image in images[first : first + 3]])
        assert_same(opened.run(batch, sizes), program(torch.from_numpy(batch), torch.from_numpy(sizes)))


@pytest.mark.slow
def test_plugin_node(tmp_path):
    """Shapes and first cells of the levels as TensorRT's plugin takes them."""
    pytest.importorskip('onnx')
    path = tmp_path / 'detector.onnx'
    export_tiny('base', path, 'onnx', 'plugin', size=(96, 128), batch=1)
    nodes = [node for node in onnx.load(path).graph.node if 'Plugin' in node.op_type]
    assert [node.op_type for node in nodes] == ['MultiscaleDeformableAttnPlugin_TRT'] * 4  # two layers each
    assert all(len(node.input) == 5 for node in nodes)


def test_runtime_resizes_and_scales_back(detr):
    """A photograph larger than the scale: boxes in its own pixels, and a batch padded to the divisor."""
    path, program = detr
    opened = ExportedDetector(path)
    image = np.random.default_rng(0).integers(0, 256, (120, 320, 3), dtype=np.uint8)
    (found,) = opened([image])
    resized = opened.resize(image)
    assert resized.shape == (60, 160, 3)
    images = torch.zeros(1, 3, 96, 160)
    images[0, :, :60] = torch.from_numpy(resized[..., ::-1].transpose(2, 0, 1).copy())
    boxes, scores, labels = program(images, torch.tensor([[60, 160]]))
    assert_same([x[None] for x in (found.boxes, found.scores, found.labels)], (boxes * 2, scores, labels), pixels=0.02)
    assert all(score >= 0.5 for score in opened([image], threshold=0.5)[0].scores)
    opened.description = replace(opened.description, batch=1)
    with pytest.raises(ExportError, match='takes 1 images at a time, got 2'):
        opened([image, image])


@pytest.mark.slow
def test_fixed_size_and_batch(tmp_path):
    """Shapes are numbers then, and a size that cannot be is refused before anything is traced."""
    pytest.importorskip('onnx')
    path = tmp_path / 'detector.onnx'
    for size in ((96, 150), (32, 160)):
        with pytest.raises(ExportError, match='size must be at least 65 px and a multiple of 32'):
            export_tiny('detr', path, 'onnx', size=size)
    program = export_tiny('detr', path, 'onnx', size=(96, 160), batch=1)
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 96, 160]
    images, sizes = pixels([(96, 130)])
    assert_same(ExportedDetector(path).run(images.numpy(), sizes.numpy()), program(images, sizes))


def test_description():
    found = describe(CFG, ('a',), 0.4, 65)
    assert found == Description(('a',), (160, 96), True, 32, 65, 0.4)
    assert Description.from_json(found.to_json(), 'x') == found
    cfg = ConfigDict(CFG.copy())
    cfg.test_dataloader = dict(dataset=dict(pipeline=[*PIPELINE, dict(type='mmdet.CenterCrop')]))
    with pytest.raises(ExportError, match='cannot describe CenterCrop'):
        describe(cfg, ('a',), 0.4, 65)


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file'):
        ExportedDetector(tmp_path / 'none.onnx')
    for name in ('a.onnx', 'a.pt2', 'a.xml'):
        if find_spec({'a.onnx': 'onnxruntime', 'a.xml': 'openvino'}.get(name, 'torch')) is None:
            continue
        (tmp_path / name).write_bytes(b'no model at all')
        with pytest.raises(ExportError, match='cannot be read by'):
            ExportedDetector(tmp_path / name)
    with pytest.raises(ExportError, match=r'expected a file of \.onnx'):
        (tmp_path / 'a.bin').touch()
        ExportedDetector(tmp_path / 'a.bin')
    model = tiny_model('detr')
    with pytest.raises(ExportError, match='format must be one of onnx'):
        export(model, CFG, tmp_path / 'x', 'tflite', classes=('a',))
    with pytest.raises(ExportError, match="attention must be one of gridsample, gather, op in pt2, got 'plugin'"):
        export(model, CFG, tmp_path / 'x', 'pt2', classes=('a',), attention='plugin')
    with pytest.raises(ExportError, match='threshold must be a number from 0 to 1, got 7'):
        export(model, CFG, tmp_path / 'x', classes=('a',), threshold=7)
    with pytest.raises(ExportError, match='batch must be at least 1, or None for any number of images, got 0'):
        export(model, CFG, tmp_path / 'x', classes=('a',), batch=0)


class Touch:
    """A pickle of it makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('kind', ['checkpoint', 'TorchScript', 'zip', 'empty', 'pickle'])
def test_archives_that_are_no_program(kind, tmp_path, capfd, caplog):
    """One sentence, no traceback of PyTorch's, and no pickle is read."""
    path, ran = tmp_path / 'a.pt2', tmp_path / 'ran'
    if kind == 'checkpoint':
        torch.save(dict(state_dict=dict(weight=torch.ones(2)), meta=Touch(ran)), path)
    elif kind == 'TorchScript':
        torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), str(path))
    else:
        with zipfile.ZipFile(path, 'w') as archive:
            if kind != 'empty':
                archive.writestr('version', '8.1')
            if kind == 'pickle':
                archive.writestr('serialized_exported_program.json', '{}')
                for name in ('state_dict', 'constants', 'example_inputs'):
                    archive.writestr(f'serialized_{name}.pt', pickle.dumps(Touch(ran)))
    with pytest.raises(ExportError, match=r'a\.pt2 is no file of torch\.export or AOTInductor, but another archive'):
        ExportedDetector(path)
    assert capfd.readouterr() == ('', '') and not caplog.records and not ran.exists()


def test_damaged_programs(tmp_path, capfd, caplog):
    """PyTorch's would ask to check the warnings above."""
    path = tmp_path / 'a.pt2'
    torch.export.save(torch.export.export(torch.nn.Linear(64, 64), (torch.ones(1, 64),)), path)
    with pytest.raises(ExportError, match='is no detector that tools/export.py wrote'):
        ExportedDetector(path)
    data = path.read_bytes()
    weights = data.index(b'data/weights/weight_0') + 2000
    path.write_bytes(data[:weights] + bytes(100) + data[weights + 100 :])
    with pytest.raises(ExportError, match=r'cannot be read by PyTorch: a/data/weights/weight_\d in it is damaged'):
        ExportedDetector(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/archive_format', 'pt2')
        archive.writestr('a/models/model.json', '{')
    with pytest.raises(ExportError, match=r'cannot be read by PyTorch [^ ]+: it is damaged, or of a later version'):
        ExportedDetector(path)
    assert capfd.readouterr() == ('', '') and all(record.levelname == 'DEBUG' for record in caplog.records)


def test_damaged_files_of_openvino(tmp_path):
    """What is wrong, instead of where in OpenVINO's source."""
    openvino = pytest.importorskip('openvino')
    path, ops = tmp_path / 'a.xml', openvino.opset13
    x = ops.parameter([1, 64], np.float32)
    model = openvino.Model([ops.add(x, ops.constant(np.ones((1, 64), np.float32)))], [x])
    openvino.save_model(model, path)
    with pytest.raises(ExportError, match='is no detector that tools/export.py wrote'):
        ExportedDetector(path)
    path.with_suffix('.bin').write_bytes(b'cut')
    with pytest.raises(ExportError, match=r'a\.xml cannot be read by OpenVINO: Incorrect weights in bin file!$'):
        ExportedDetector(path)
    path.with_suffix('.bin').unlink()
    with pytest.raises(ExportError, match=r'by OpenVINO: .*a\.bin, which belongs to it, is missing$'):
        ExportedDetector(path)


def test_the_tool_says_what_takes_long(tmp_path, monkeypatch, capsys):
    """Before it begins."""
    path, told = tmp_path / 'a.onnx', []

    def exported(model, cfg, out, *args, **options):
        told.append(capsys.readouterr().out)
        out.touch()

    loaded = SimpleNamespace(model=SimpleNamespace(dataset_meta=dict(classes=('a',))), cfg=None)
    loaded.differences = lambda: ['test scale [192, 192], not [128, 128]']
    monkeypatch.setattr('mmdet_ddetr.apis.DDetrInferencer', lambda *args, **options: loaded)
    monkeypatch.setattr('mmdet_ddetr.export.export', exported)
    tool = Path(__file__).parents[1] / 'tools/export.py'
    monkeypatch.syspath_prepend(str(tool.parent))
    monkeypatch.setattr(sys, 'argv', ['export.py', 'deformable-detr_lite0_shapes', 'best.pth', str(path)])
    runpy.run_path(str(tool), run_name='__main__')
    assert told == [
        "the config counts where the checkpoint's own differs: test scale [192, 192], not [128, 128]\n"
        f'exporting best.pth to {path}: it takes from half a minute to some minutes\n'
    ]
    assert capsys.readouterr().out == f'wrote {path}: 1 classes, 0 MB\n'


@pytest.mark.slow
@pytest.mark.parametrize('format', ['onnx', 'pt2'])
def test_a_previous_file_outlives_a_full_disk(format, tmp_path):
    if format == 'onnx':
        pytest.importorskip('onnxscript')
    path = tmp_path / f'a.{format}'
    path.write_text('before')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match=rf'^{re.escape(str(path))} cannot be written: '):
            export_tiny('detr', path, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == 'before' and os.listdir(tmp_path) == [path.name]


def test_files_that_belong_together(tmp_path, monkeypatch):
    """The one that names the others is the last to take its place; where one is not whole, none does."""
    path = tmp_path / 'a.xml'
    replaced, replace = [], os.replace
    monkeypatch.setattr(os, 'replace', lambda old, new: replaced.append(Path(new).name) or replace(old, new))
    for text in ('old', 'new'):
        with formats.whole(path) as part:
            for name in ('a.bin', 'a.xml', 'b.bin'):
                part.with_name(name).write_text(text)
    assert replaced[3:] == ['a.bin', 'b.bin', 'a.xml'] or replaced[3:] == ['b.bin', 'a.bin', 'a.xml']
    with pytest.raises(OSError, match=r'a.xml cannot be written: the disk is full'), formats.whole(path) as part:
        part.with_suffix('.bin').write_text('half')
        raise RuntimeError('the disk is full\nand more')
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == dict.fromkeys(
        ('a.xml', 'a.bin', 'b.bin'), 'new'
    )


NO_FORM = {
    'faster-rcnn_r50_fpn-mdpool_8xb2-1x_coco': "FasterRCNN cannot be exported: it is no DETR .* mmdet's DeformableDETR",
    'retinanet_dat-t_fpn_8xb2-1x_coco': 'RetinaNet cannot be exported: it is no DETR',
    'smca-detr-multi-scale-conv_r50_8xb1-50e_coco': 'SMCADETR cannot be exported as it is: own_maps=True .* take own_m',
}


@pytest.mark.parametrize('name', NO_FORM)
def test_what_has_no_exported_form(name, tmp_path):
    """One sentence says which model, and why."""
    init_default_scope('mmdet')
    model = MODELS.build(shrink(get_config(name).model))
    with pytest.raises(ExportError, match=NO_FORM[name]):
        export(model, CFG, tmp_path / 'x.onnx', classes=NAMES_OF_CLASSES)
    assert not list(tmp_path.iterdir())


def test_class_derived_from_one_of_mmdet():
    """Its steps may be others, as DDQ's and Grounding DINO's are."""

    class Own(DINO):
        def __init__(self):
            torch.nn.Module.__init__(self)

    with pytest.raises(ExportError, match='Own cannot be exported'):
        DetectionProgram(Own())
