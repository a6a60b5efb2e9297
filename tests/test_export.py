"""Exported files give PyTorch's detections: of batches of any size, padded, in each format and of each detector."""

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from tiny_model import CLASSES, NAMES, tiny_model

from mmdet_ddetr.export import DetectionProgram, ExportedDetector, ExportError, export
from mmdet_ddetr.export.description import Description, describe
from mmdet_ddetr.layers import ImageSizes
from mmdet_ddetr.layers.own_maps import own_masks
from mmdet_ddetr.layers.padding import padding_masks
from mmdet_ddetr.testing import make_batch

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
MORE = [pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in ('two-stage', 'anchor')]


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


@pytest.mark.parametrize('variant', ['two-stage', 'anchor', *MORE])
def test_program_gives_the_predictions(variant):
    """Of a padded batch, whatever the padding holds: what ``predict`` gives of the same images and their samples."""
    model = tiny_model(variant).eval()
    program = DetectionProgram(model)
    images, sizes = pixels()
    found = program(images, sizes)
    _, samples = make_batch(SIZES, [0] * 3, CLASSES)
    normalised = (images - program.mean) / program.std
    for image, sample, (h, w) in zip(normalised, samples, SIZES):
        sample.set_metainfo(dict(img_shape=(h, w), batch_input_shape=(96, 160)))
        image[:, h:] = image[:, :, w:] = 0
    with torch.no_grad():
        expected = model.predict(normalised, samples, rescale=False)
    for index, sample in enumerate(expected):
        instances = sample.pred_instances
        boxes, scores, labels = (x[index][None] for x in found)
        assert_same((boxes, scores, labels), [x[None] for x in (instances.bboxes, instances.scores, instances.labels)])


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


def export_tiny(variant, path, format, attention=None, **kwargs):
    model = tiny_model(variant).eval()
    export(model, CFG, path, format, classes=NAMES_OF_CLASSES, attention=attention, **kwargs)
    return DetectionProgram(model)


@pytest.mark.parametrize(
    'variant, attention',
    [
        ('detr', 'gridsample'),
        pytest.param('two-stage', 'gather', marks=pytest.mark.slow),
        *(pytest.param(name, 'gridsample', marks=pytest.mark.slow) for name in NAMES if name != 'detr'),
    ],
)
def test_onnx_of_any_batch_and_size(variant, attention, tmp_path):
    """One file for one to three images of three sizes, padded; no GridSample where none was asked for."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'detector.onnx'
    program = export_tiny(variant, path, 'onnx', attention)
    graph = onnx.load(path).graph
    kinds = {node.op_type for node in graph.node}
    assert ('GridSample' in kinds) == (
        attention == 'gridsample'
        and variant not in ('detr', 'conditional', 'dab', 'anchor', 'smca', 'smca-multi-scale')
    )
    assert {node.domain for node in graph.node} <= {'', 'ai.onnx'}
    assert [dim.dim_param for dim in graph.input[0].type.tensor_type.shape.dim] == ['batch', '', 'height', 'width']
    detector = ExportedDetector(path)
    assert detector.classes == NAMES_OF_CLASSES
    for sizes, whole in ((SIZES, (96, 160)), ([(100, 96)], (128, 96)), ([(64, 200), (96, 224)], (96, 224))):
        images, sizes = pixels(sizes, whole)
        assert_same(detector.run(images.numpy(), sizes.numpy()), program(images, sizes))


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['detr', 'two-stage'])
@pytest.mark.parametrize(
    'format, attention', [('openvino', None), ('pt2', None), ('pt2', 'op'), ('pt2', 'gather'), ('aoti', None)]
)
def test_other_formats(variant, format, attention, tmp_path):
    if format == 'openvino':
        pytest.importorskip('openvino')
    path = tmp_path / ('detector.xml' if format == 'openvino' else 'detector.pt2')
    program = export_tiny(variant, path, format, attention)
    detector = ExportedDetector(path)
    assert detector.classes == NAMES_OF_CLASSES
    for sizes, whole in ((SIZES, (96, 160)), ([(100, 96)], (128, 96))):
        images, sizes = pixels(sizes, whole)
        assert_same(detector.run(images.numpy(), sizes.numpy()), program(images, sizes))


def test_plugin_node(tmp_path):
    """Shapes and first cells of the levels as TensorRT's plugin takes them."""
    onnx = pytest.importorskip('onnx')
    path = tmp_path / 'detector.onnx'
    export_tiny('base', path, 'onnx', 'plugin', size=(96, 128), batch=1)
    nodes = [node for node in onnx.load(path).graph.node if 'Plugin' in node.op_type]
    assert [node.op_type for node in nodes] == ['MultiscaleDeformableAttnPlugin_TRT'] * 4  # two layers each
    assert all(len(node.input) == 5 for node in nodes)


def test_runtime_resizes_and_scales_back(tmp_path):
    """A photograph larger than the scale: boxes in its own pixels, and a batch padded to the divisor."""
    pytest.importorskip('onnxruntime')
    path = tmp_path / 'detector.onnx'
    program = export_tiny('detr', path, 'onnx', size=(96, 160), batch=1)
    detector = ExportedDetector(path)
    image = np.random.default_rng(0).integers(0, 256, (120, 320, 3), dtype=np.uint8)
    (found,) = detector([image])
    resized = detector.resize(image)
    assert resized.shape == (60, 160, 3)
    images = torch.zeros(1, 3, 96, 160)
    images[0, :, :60] = torch.from_numpy(resized[..., ::-1].transpose(2, 0, 1).copy())
    boxes, scores, labels = program(images, torch.tensor([[60, 160]]))
    assert_same([x[None] for x in (found.boxes, found.scores, found.labels)], (boxes * 2, scores, labels), pixels=0.02)
    assert all(score >= 0.5 for score in detector([image], threshold=0.5)[0].scores)
    with pytest.raises(ExportError, match='takes 1 images at a time, got 2'):
        detector([image, image])


def test_description():
    found = describe(CFG, ('a',), 0.4)
    assert found == Description(('a',), (160, 96), True, 32, 0.4)
    assert Description.from_json(found.to_json(), 'x') == found
    cfg = ConfigDict(CFG.copy())
    cfg.test_dataloader = dict(dataset=dict(pipeline=[*PIPELINE, dict(type='mmdet.CenterCrop')]))
    with pytest.raises(ExportError, match='cannot describe CenterCrop'):
        describe(cfg, ('a',), 0.4)


def test_mistakes(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file'):
        ExportedDetector(tmp_path / 'none.onnx')
    for name in ('a.onnx', 'a.pt2', 'a.xml'):
        pytest.importorskip({'a.onnx': 'onnxruntime', 'a.xml': 'openvino'}.get(name, 'torch'))
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
    with pytest.raises(ExportError, match='model must be a detector of mmdet_ddetr, got Linear'):
        DetectionProgram(torch.nn.Linear(1, 1))
