"""What is recorded of deformable convolutions and of DAT is what was computed; figures and page show it in place."""

import dataclasses
import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.backbones.dat_attention import DeformableAttention
from mmdet_ddetr.explain import Detection, Explanation, Recording, convolution, dat, explanation_of, record
from mmdet_ddetr.explain import backbone_figures as figures
from mmdet_ddetr.explain.convolution import SampledConv, chain, follow, last_of_stages
from mmdet_ddetr.explain.frame import Frame
from mmdet_ddetr.explain.overview import overview
from mmdet_ddetr.explain.page import page_data, write_page
from mmdet_ddetr.explain.panels import to_array
from mmdet_ddetr.layers import DCN, DCNv2
from mmdet_ddetr.testing import make_batch, randomise, shrink

ROOT = Path(__file__).parents[1]
NAME = 'faster-rcnn_r50-mdconv-group4-c3-c5_fpn_8xb2-1x_coco'
SHAPES = [(96, 128), (64, 100)]  # the second image is padded


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def build(config):
    """A small model with random weights, whose points leave their cells."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = MODELS.build(shrink(config.model))
    model.init_weights()
    rng = torch.Generator().manual_seed(1)
    for module in model.modules():
        if hasattr(module, 'conv_offset'):
            nn.init.normal_(module.conv_offset.bias, std=0.7, generator=rng)
    torch.manual_seed(0)  # whatever making the model drew
    return randomise(model, std=0.05).eval()


@pytest.fixture(scope='module')
def models():
    """Two layers' kinds of offset groups in a two-stage detector, DAT in a one-stage one, DCN under a DETR."""
    detr = get_config('deformable-detr_r50_16xb2-50e_coco')
    detr.model.backbone.update(dcn=dict(type='mmdet_ddetr.DCN'), stage_with_dcn=(False, False, False, True))
    return dict(
        groups=build(get_config(NAME)),
        dat=build(get_config('retinanet_dat-t_fpn_8xb2-1x_coco')),
        detr=build(detr),
    )


def predict(model):
    inputs, samples = make_batch(SHAPES, [1, 1], 3)
    with torch.no_grad():
        return model(inputs, samples, mode='predict')


@pytest.fixture(scope='module')
def explanations(models):
    """Of the second image, shown at twice its size, with two detections of known boxes."""
    made = {}
    for name, model in models.items():
        with record(model) as recording:
            samples = predict(model)
        image = np.full((128, 200, 3), 200, np.uint8)
        explanation = explanation_of(model, recording, 1, samples[1], image, 2.0)
        found = explanation_of(model, recording, 1, samples[1], image, 0.0).detections
        boxes = np.array([[10, 10, 90, 60], [110, 40, 190, 120]], np.float32)
        queries = [d.query for d in found[:2]] or [None, None]
        explanation.detections[:] = [
            Detection(0, f'kind {i}', 0.5, b, q) for i, (b, q) in enumerate(zip(boxes, queries))
        ]
        made[name] = explanation
    return made


# --- deformable convolution: what is recorded ------------------------------------------------------------------------


def test_taps_by_hand():
    """Stride 2, padding 1, dilation 2 on a map of 5 x 8 cells: the cell (1, 2) starts at row 1, column 3."""
    offset = torch.zeros(1, 2 * 2 * 6, 2, 4)  # two groups of 2 x 3 taps
    offset[0, 12 + 2 * 5, 1, 2] = 0.5  # y of the last tap of the second group
    offset[0, 12 + 2 * 5 + 1, 1, 2] = -2
    conv = SampledConv('backbone', offset, None, (5, 8), (2, 3), (2, 2), (1, 1), (2, 2))
    points, factors = conv.taps(0, torch.tensor([[1, 2]]))
    assert points.shape == (1, 2, 6, 2) and (factors == 1).all()
    cells = points[0] * torch.tensor([8, 5]) - 0.5
    expected = torch.tensor([[3, 1], [5, 1], [7, 1], [3, 3], [5, 3], [7, 3]]).float()
    torch.testing.assert_close(cells[0], expected)
    torch.testing.assert_close(cells[1, :5], expected[:5])
    torch.testing.assert_close(cells[1, 5], torch.tensor([5.0, 3.5]))


def test_following_by_hand():
    """Two layers of two taps, side by side: right by one cell in the upper layer, down by one in the lower."""

    def conv(dy, dx, factors):
        offset = torch.tensor([dy, dx, dy, dx]).view(1, 4, 1, 1).expand(1, 4, 4, 4).float()
        mask = torch.tensor(factors).view(1, 2, 1, 1).expand(1, 2, 4, 4)
        return SampledConv('backbone', offset, mask, (4, 4), (1, 2), (1, 1), (0, 0), (1, 1))

    convs = [conv(1, 0, [0.5, 0.25]), conv(0, 1, [1.0, 0.5])]
    points, weights = follow(convs, 0, 0, (2, 0))
    torch.testing.assert_close(points * 4 - 0.5, torch.tensor([[1.0, 3], [2, 3], [2, 3], [3, 3]]))
    assert weights.tolist() == [0.5, 0.25, 0.25, 0.125]
    points, weights = follow(convs, 0, 0, (2, 2))  # the second tap of the upper layer is beyond the right edge
    torch.testing.assert_close(points[:2] * 4 - 0.5, torch.tensor([[3.0, 3], [4, 3]]))
    assert points[2:].isnan().all() and weights[2:].tolist() == [0, 0]


@pytest.mark.parametrize('kind', [DCN, DCNv2, DeformConv2dPack, ModulatedDeformConv2dPack])
def test_points_are_where_the_gradient_is(kind):
    """A cell's gradient reaches the four cells around each of its points, and no other."""
    torch.manual_seed(0)
    layer = kind(2, 2, 3, stride=2, padding=1, dilation=1, bias=False)
    nn.init.normal_(layer.conv_offset.bias, std=1.5)
    calls = []
    (hook,) = convolution.watch(nn.ModuleDict(dict(backbone=layer)), calls)
    x = torch.rand(1, 2, 9, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, :, 3, 2].sum(), x)  # conv_offset's weight is zero: no other way
    hook.remove()
    (call,) = calls
    assert (
        call.output_size == (5, 6) and call.num_groups == 1 and (call.mask is None) == (kind in (DCN, DeformConv2dPack))
    )
    expected = torch.zeros(9, 12, dtype=torch.bool)
    for px, py in call.taps(0, torch.tensor([[3, 2]]))[0][0, 0]:
        left, top = (px * 12 - 0.5).floor().long().item(), (py * 9 - 0.5).floor().long().item()
        for row in (top, top + 1):
            for column in (left, left + 1):
                if 0 <= row < 9 and 0 <= column < 12:
                    expected[row, column] = True
    assert 10 < expected.sum() < 40
    assert ((gradient[0].abs().sum(0) > 0) == expected).all()


def test_layers_of_a_detector(explanations):
    convs = explanations['groups'].recording.convolutions
    assert len(convs) == 4 + 6 + 3 and all(conv.num_groups == 4 for conv in convs)
    assert [convs[i].name for i in last_of_stages(convs)] == [f'backbone.layer{n}.conv2' for n in ('4.2', '3.5', '2.3')]
    assert [conv.name[-14:] for conv in chain(convs, 11, 3)] == ['layer3.5.conv2', 'layer4.0.conv2', 'layer4.1.conv2']
    assert len(chain(convs, 1, 3)) == 2
    in_head = [dataclasses.replace(conv, name=f'bbox_head.{i}') for i, conv in enumerate(convs)]
    assert chain(in_head, 5, 3) == [in_head[5]]


@pytest.mark.parametrize('name', ['groups', 'dat', 'detr'])
def test_results_are_unchanged(models, name):
    """Bit for bit; a second pass replaces the first, and no hook stays."""
    model = models[name]
    hooks = [[*m._forward_hooks, *m._forward_pre_hooks] for m in model.modules()]
    before = predict(model)
    with record(model) as recording:
        predict(model)
        after = predict(model)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a.pred_instances.bboxes, b.pred_instances.bboxes)
    counts = dict(groups=(13, 0), dat=(0, 2), detr=(3, 0))
    assert (len(recording.convolutions), len(recording.deformed)) == counts[name]
    assert bool(recording.decoder) == (name == 'detr')
    assert hooks == [[*m._forward_hooks, *m._forward_pre_hooks] for m in model.modules()]


# --- DAT -------------------------------------------------------------------------------------------------------------


def test_recorded_attention_of_dat_gives_the_modules_output():
    """The values at the recorded points, summed by the recorded weights; a group has one head here."""
    torch.manual_seed(0)
    module = DeformableAttention(8, num_heads=2, num_groups=2, kernel_size=3, map_size=(4, 5))
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    calls = []
    dat.watch(nn.ModuleDict(dict(backbone=module)), calls)
    x = torch.randn(2, 4, 5, 8)
    with torch.no_grad():
        output = module(x)
        (call,) = calls
        groups = x[1].unflatten(-1, (2, -1)).permute(2, 3, 0, 1)  # [G, C/G, H, W]
        grid = (2 * call.points(1) - 1)[:, None]  # [G, 1, S, 2]
        sampled = nn.functional.grid_sample(groups, grid, align_corners=False)[:, :, 0]  # [G, C/G, S]
        values = module.value_proj(sampled.flatten(0, 1).T).unflatten(-1, (2, -1))  # [S, M, D]
        for query in (0, 7, 19):
            weights = call.weights(1, query)
            assert weights.std() > 0.02
            torch.testing.assert_close(weights.sum(-1), torch.ones(2))
            attended = module.output_proj(torch.einsum('ms, smd -> md', weights, values).flatten())
            torch.testing.assert_close(attended, output[1].flatten(0, 1)[query], rtol=1e-4, atol=1e-5)
    assert 0.5 < call.shifts(1).max() < 2**0.5 + 1e-4


# --- figures ---------------------------------------------------------------------------------------------------------


def test_convolution_figures(explanations):
    explanation = explanations['groups']
    look = figures.convolution_look(explanation, 12, 150, 80)
    assert look.points.shape == (1, 4, 1, 729, 2)
    # 3 x 4 cells of 32 px; the image is 64 x 100 of 96 x 128, shown twice as large
    np.testing.assert_allclose(look.references, [[2.5 * 64, 1.5 * 64]])
    figure = figures.convolution_figure(explanation, explanation.detections)
    assert len(figure.axes) == 3 * 2 + 1, 'and the colour bar'
    points = figure.axes[1].collections[0].get_offsets()
    kept = ~np.isnan(look.points.reshape(-1, 2)).any(-1)
    assert kept.reshape(4, 729).any(1).all(), 'each of the four groups has points in the image'
    assert len(points) == kept.sum() > 729
    np.testing.assert_allclose(np.sort(points, 0), np.sort(look.points.reshape(-1, 2)[kept], 0))
    assert to_array(figure).std() > 0
    figure = figures.convolution_depth_figure(explanation, 150, 80, depth=2)
    assert [ax.get_title() for ax in figure.axes[:2]] == ['1 layer deep', '2 layers deep']
    assert [len(ax.collections[0].get_offsets()) for ax in figure.axes[:1]] == [4 * 9]
    with pytest.raises(ValueError, match='pixel must lie in the image'):
        figures.convolution_look(explanation, 12, 200, 3)


def test_figures_of_dat(explanations):
    explanation = explanations['dat']
    assert len(figures.deformed_points_figure(explanation).axes) == 2 + 1
    figure = figures.attention_figure(explanation, explanation.detections)
    assert len(figure.axes) == 2 * 2 + 1 and to_array(figure).std() > 0
    assert len(figures.attention_layers_figure(explanation, 20, 30).axes) == 2 + 1
    look = figures.attention_look(explanation, 0, 20, 30)
    call = explanation.recording.deformed[0]  # of 6 x 8 cells of 16 px
    np.testing.assert_allclose(look.weights[0, :, 0], call.weights(1, 0))
    np.testing.assert_allclose(look.points[0, :, 0], call.points(1) * torch.tensor([256, 192]), rtol=1e-5)


@pytest.mark.parametrize(('name', 'panels'), [('groups', 3 * 2), ('dat', 2 * 2), ('detr', 2 * 2)])
def test_overview(explanations, name, panels):
    """What a training draws: of a DETR its queries, though it has deformable convolutions."""
    explanation = explanations[name]
    assert len(overview(explanation, explanation.detections).axes) == panels + 1


# --- the page --------------------------------------------------------------------------------------------------------


def opened(browser, explanation, path):
    browser.events.clear()
    browser.mouse('Moved', 1, 1)
    browser.open(write_page(explanation, path / 'page.html', 'title').as_uri())


def shown(browser):
    """[N, 2], (x, y) of the circles, in px of the image."""
    circles = "[...document.querySelectorAll('circle')].map((c) => [+c.getAttribute('cx'), +c.getAttribute('cy')])"
    return np.array(browser.evaluate(circles)).reshape(-1, 2)


def hover(browser, x, y):
    frame = browser.evaluate('(({x, y, width, height}) => [x, y, width, height])(stage.getBoundingClientRect())')
    browser.mouse('Moved', frame[0] + x / 200 * frame[2], frame[1] + y / 128 * frame[3])


def status(browser):
    return browser.evaluate("document.getElementById('status').textContent")


def choose(browser, control, value):
    browser.evaluate(
        f"document.getElementById('{control}').value = {value}, "
        f"document.getElementById('{control}').dispatchEvent(new Event('input'))"
    )


def assert_no_error(browser):
    methods = [event.get('method') for event in browser.events]
    assert 'Runtime.exceptionThrown' not in methods and 'Log.entryAdded' not in methods, browser.events


def assert_same_points(drawn, expected, atol):
    expected = expected[~np.isnan(expected).any(-1)]
    assert len(drawn) == len(expected) > 0
    for axis in (0, 1):
        np.testing.assert_allclose(np.sort(drawn[:, axis]), np.sort(expected[:, axis]), atol=atol)


@pytest.mark.parametrize('flip', [None, 'horizontal', 'vertical'])
def test_page_follows_convolutions(browser, explanations, tmp_path, flip):
    """As Python does, at any cell, layer and depth; here as if dilations were 2 and 3."""
    explanation = explanations['groups']
    frame, recording = dataclasses.replace(explanation.frame, flip=flip), explanation.recording
    convs = [dataclasses.replace(conv, dilation=(2, 3), padding=(2, 3)) for conv in recording.convolutions]
    recording = dataclasses.replace(recording, convolutions=convs)
    explanation = dataclasses.replace(explanation, frame=frame, recording=recording)
    opened(browser, explanation, tmp_path)
    assert not browser.evaluate("document.querySelectorAll('#modes label').length - 1")
    for layer, depth, x, y in ((12, 3, 150, 80), (12, 1, 30, 10), (6, 2, 199, 127)):
        choose(browser, 'layer', layer + 1)
        choose(browser, 'depth', depth)
        hover(browser, x, y)
        expected = figures.convolution_look(explanation, layer, x, y, depth).points.reshape(-1, 2)
        assert_same_points(shown(browser), expected, atol=0.05)
        assert explanation.recording.convolutions[layer].name in status(browser)
    browser.evaluate("document.querySelector('[name=head]').click()")
    assert len(shown(browser)) <= 3 * 81
    assert_no_error(browser)


def test_page_of_dat(browser, explanations, tmp_path):
    explanation = explanations['dat']
    opened(browser, explanation, tmp_path)
    hover(browser, 150, 80)
    look = figures.attention_look(explanation, 1, 150, 80)
    assert look.points[0].size / 2 < 64 * 8  # all points are among the heaviest
    assert_same_points(shown(browser), look.points.reshape(-1, 2).clip([-100, -64], [300, 192]), atol=0.02)
    assert f'the largest weight, {look.weights.max():.2f}, ' in status(browser)
    assert_no_error(browser)


def test_page_of_a_detr_with_both(browser, explanations, tmp_path):
    """Its own modes first; a detection chosen in one is where the other looks."""
    explanation = explanations['detr']
    opened(browser, explanation, tmp_path)
    assert browser.evaluate("[...document.querySelectorAll('[name=mode]')].map((i) => i.value)") == [
        'decoder',
        'encoder',
        'convolution',
    ]
    browser.evaluate("document.querySelectorAll('#detections button')[1].click()")
    browser.evaluate("document.querySelector('[value=convolution]').click()")
    look = figures.convolution_look(explanation, 2, 150, 80)
    assert_same_points(shown(browser), look.points.reshape(-1, 2), atol=0.05)
    assert status(browser).endswith(' outside the image.')  # DCNv1: no factors to speak of
    browser.evaluate("document.querySelector('[value=decoder]').click()")
    assert status(browser).startswith('kind 1 0.50, decoder layer 3: ')
    assert_no_error(browser)


def test_page_leaves_out_what_has_no_room(explanations):
    data = page_data(explanations['groups'], room_mb=0, depth=3)['convolution']
    assert [layer['before'] for layer in data['layers']] == [-1, 0, 1]
    assert data['left_out'] == 10
    data = page_data(explanations['dat'], room_mb=0)['deformed']
    assert [layer['rows'] * layer['columns'] for layer in data['layers']] == [1, 1]


# --- the tool --------------------------------------------------------------------------------------------------------


def test_tool(models, tmp_path, monkeypatch, capsys):
    """On a detector without queries, whose test pipeline comes from a base config: its figures, and no others."""
    spec = importlib.util.spec_from_file_location('tools_explain', ROOT / 'tools/explain.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('photo.png', np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))
    config = get_config(NAME)
    shrink(config.model)
    config.test_pipeline[1].scale = (128, 96)
    config.model.test_cfg.rcnn.score_thr = 0.0
    config.test_dataloader.dataset.pipeline = config.test_pipeline
    config.dump('config.py')
    torch.save(
        dict(state_dict=models['groups'].state_dict(), meta=dict(dataset_meta=dict(classes=['c'] * 80))), 'a.pth'
    )
    options = ['photo.png', '--device=cpu', '--score-thr=0', '--detections=1', '--depth=2']
    tool.main(['config.py', 'a.pth', *options, '--pixel', '50', '60'])
    names = sorted(path.name for path in (tmp_path / 'outputs/explain').iterdir())
    assert names == ['photo-convolution-50-60.png', 'photo-convolution.png', 'photo.html']
    assert all(name in capsys.readouterr().out for name in names[:1])
    with pytest.raises(SystemExit, match='--depth must be at least 1, got 0'):
        tool.main(['config.py', 'a.pth', *options[:1], '--device=cpu', '--depth=0'])


def test_detectors_with_nothing_to_show_are_refused():
    with torch.device('meta'):
        model = MODELS.build(shrink(get_config('faster-rcnn_r50_fpn_8xb2-1x_coco').model))
    message = (
        'must have a transformer encoder with layers, as DETR has, or deformable convolutions or .*; FasterRCNN has'
    )
    with pytest.raises(TypeError, match=message), record(model):
        pass


def test_an_explanation_without_queries():
    recording = Recording([], [])
    explanation = Explanation(np.zeros((8, 8, 3), np.uint8), [], recording, 0, Frame((8, 8), (8, 8)))
    assert not explanation.has_queries
    assert set(page_data(explanation)) & {'decoder', 'encoder', 'convolution', 'deformed'} == set()
