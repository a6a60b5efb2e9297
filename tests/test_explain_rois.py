"""The bins that are shown are those that deformable RoI pooling read."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from chromium import EXECUTABLE, Chromium
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.explain import explanation_of, record
from mmdet_ddetr.explain.frame import Frame
from mmdet_ddetr.explain.overview import overview
from mmdet_ddetr.explain.page import page_data, write_page
from mmdet_ddetr.explain.panels import to_array
from mmdet_ddetr.explain.roi_figures import bins_figure, bins_of
from mmdet_ddetr.explain.roi_pool import PooledRoIs, watch
from mmdet_ddetr.layers import DeformPSRoIPoolPack, DeformRoIPoolPack, ModulatedDeformRoIPoolPack
from mmdet_ddetr.testing import make_batch, shrink

NAMES = dict(mdpool='faster-rcnn_r50_fpn-mdpool_8xb2-1x_coco', rfcn='r-fcn_r101-dconv-c5-dpspool_8xb1-8e_coco')


@pytest.fixture(scope='module', params=NAMES)
def explanation(request):
    """Of the second image, which is padded and shown at twice its size; its bins have moved."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    config = shrink(get_config(NAMES[request.param]).model)
    config.test_cfg.rcnn.update(score_thr=0.0, max_per_img=20)
    model = MODELS.build(config)
    model.init_weights()
    for name, parameter in model.named_parameters():
        if re.search(r'(offset_fc.4|mask_fc.2|pool.conv_offset).bias', name):
            nn.init.normal_(parameter)
        elif re.search(r'bbox_head.(fc_|cls_pool.conv.|reg_pool.conv.)', name):
            nn.init.normal_(parameter, std=0.1)
    inputs, samples = make_batch([(96, 128), (64, 100)], [1, 1], 3)
    with torch.no_grad(), record(model) as recording:
        samples = model.eval()(inputs, samples, mode='predict')
    return explanation_of(model, recording, 1, samples[1], np.full((128, 200, 3), 200, np.uint8), 0.0)


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_bins_by_hand():
    """2 x 2 bins of a region of 40 x 20: the last moves by a quarter of the width and half of the height."""
    shifts = torch.zeros(1, 2, 2, 2, 2)
    shifts[0, 1, :, 1, 1] = torch.tensor([0.25, -0.5])
    pool = PooledRoIs('', torch.zeros(1, 5), torch.tensor([[10.0, 20, 50, 40]]), shifts, None)
    still = [[10.0, 20, 30, 30], [30, 20, 50, 30], [10, 30, 30, 40], [30, 30, 50, 40]]
    assert pool.bins(0, 0).tolist() == still
    assert pool.bins(0, 1).tolist() == [*still[:3], [40, 20, 60, 30]]


@pytest.mark.parametrize('kind', ['plain', 'modulated', 'position-sensitive'])
def test_bins_are_where_the_gradient_is(kind):
    """A bin's gradient covers the cells under it, up to the last of 4 samples or more, and reaches one cell farther."""
    torch.manual_seed(0)
    if kind == 'position-sensitive':
        layer = DeformPSRoIPoolPack(1, 2, 2, group_size=2, spatial_scale=1 / 4)
        offset = layer.conv_offset
    else:
        layer = (DeformRoIPoolPack if kind == 'plain' else ModulatedDeformRoIPoolPack)(2, 1, 8, 1 / 4, 8)
        offset = layer.offset_fc[-1]
    nn.init.normal_(offset.bias, std=2.0)  # its weight is zero: no other way for a gradient
    pools = []
    watch(nn.ModuleDict(dict(roi_head=layer)), pools, [])
    x = torch.rand(2, 1, 30, 30, requires_grad=True)
    output = layer(x, torch.tensor([[1, 40.0, 36, 79, 83]]))  # [1, C, 2, 2]
    (pool,) = pools
    assert (pool.mask is None) == (kind != 'modulated')
    for label in range(output.shape[1]):
        for bin, (x1, y1, x2, y2) in enumerate(pool.bins(0, label) / 4):  # in cells
            (gradient,) = torch.autograd.grad(output[0, label].flatten()[bin], x, retain_graph=True)
            assert not gradient[0].any()
            rows, columns = (gradient[1, 0].abs() > 1e-7).nonzero().T
            for low, high, cells in ((x1, x2, columns), (y1, y2, rows)):
                assert abs(cells.min() + 0.5 - low) <= 1
                assert high - (high - low) / 4 - 1 <= cells.max() + 0.5 <= high + 1


def test_regions_of_detections(explanation):
    """The box that the head makes of the region is the detection's."""
    regions = explanation.recording.regions[-1]
    assert len(explanation.recording.regions) == 1 and len(explanation.detections) == 20
    for detection in explanation.detections:
        found = bins_of(explanation, detection)
        assert [bins.name.split('.')[-1] for bins in found] in (['0'], ['cls_pool', 'reg_pool'])
        roi = explanation.frame.boxes_of_input(torch.from_numpy(found[0].roi))
        (row,) = torch.nonzero(((regions.rois[:, 1:] - roi).abs() < 1e-3).all(-1) & (regions.rois[:, 0] == 1)).T
        label = detection.label if regions.boxes.shape[1] > 1 else 0
        box = explanation.frame.boxes_to_image(regions.boxes[row, label]).clamp(min=0)
        box = torch.minimum(box, torch.tensor([200, 128, 200, 128]))
        assert (box - torch.from_numpy(detection.box)).abs().amax(-1).min() < 1e-2
        for bins in found:
            assert bins.boxes.shape == (49, 4)
            width, height = bins.roi[2:] - bins.roi[:2]
            if len(found) == 1:  # positions of R-FCN are rounded
                np.testing.assert_allclose(bins.boxes[:, 2] - bins.boxes[:, 0], width / 7, rtol=1e-3, atol=1e-3)
                assert bins.weights.shape == (49,) and 0 < bins.weights.min() < bins.weights.max() < 1


def test_boxes_to_image_and_back():
    frame = Frame((100, 40), (160, 64), (0.25, 0.2), 'horizontal')
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 20, 100, 40]])
    there = frame.boxes_to_image(boxes)
    torch.testing.assert_close(there, torch.tensor([[360.0, 0, 400, 50], [0, 100, 200, 200]]))
    torch.testing.assert_close(frame.boxes_of_input(there), boxes)


# --- figure and page -------------------------------------------------------------------------------------------------


def test_figure(explanation):
    detections = explanation.detections[:2]
    figure = bins_figure(explanation, detections)
    found = bins_of(explanation, detections[1])
    modulated = found[0].weights is not None
    assert len(figure.axes) == 2 * len(found) + modulated
    for row, bins in enumerate(found):
        patches = figure.axes[2 * row + 1].patches[-49:]
        drawn = [(*p.get_xy(), p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in patches]
        np.testing.assert_allclose(drawn, bins.boxes, rtol=1e-5)
    assert to_array(figure).std() > 0
    if not explanation.recording.convolutions:  # of a training
        assert len(overview(explanation, detections).axes) == len(figure.axes)


def test_page(explanation, tmp_path):
    if EXECUTABLE is None:
        pytest.skip('no Chromium on the PATH (apt-get install chromium)')
    explanation = dataclasses.replace(explanation, detections=explanation.detections[:3])
    browser = Chromium(tmp_path / 'chromium')
    try:
        browser.open(write_page(explanation, tmp_path / 'page.html', 'title').as_uri())
        browser.evaluate("document.querySelector('[value=rois]').click()")
        browser.evaluate("document.querySelectorAll('#detections button')[1].click()")
        browser.evaluate("byId('layer').value = 1, byId('layer').dispatchEvent(new Event('input'))")
        attributes = "['x', 'y', 'width', 'height'].map((key) => +rect.getAttribute(key))"
        rectangles = f"[...document.querySelectorAll('rect.bin')].map((rect) => {attributes})"
        drawn = np.array(browser.evaluate(rectangles))
        methods = [event.get('method') for event in browser.events]
        assert 'Runtime.exceptionThrown' not in methods and 'Log.entryAdded' not in methods, browser.events
    finally:
        browser.close()
    expected = bins_of(explanation, explanation.detections[1])[0].boxes
    drawn[:, 2:] += drawn[:, :2]
    np.testing.assert_allclose(drawn, expected.clip([-100, -64] * 2, [300, 192] * 2), atol=0.02)


def test_page_data(explanation):
    data = json.loads(json.dumps(page_data(explanation)))['rois']['layers']
    found = bins_of(explanation, explanation.detections[4])
    assert len(data) == len(found)
    for layer, bins in zip(data, found):
        assert (layer['weights'] is None) == (bins.weights is None)
        if bins.weights is not None:
            factors = np.frombuffer(base64.b64decode(layer['weights']), 'u1').reshape(-1, 49)[4]
            np.testing.assert_allclose((factors / 255) ** 2, bins.weights, atol=1 / 255)
