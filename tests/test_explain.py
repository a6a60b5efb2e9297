"""What is recorded is what was computed and changes nothing; figures and page show it where it belongs."""

import base64
import copy
import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmdet_ddetr import accelerate, get_config
from mmdet_ddetr.explain import Explanation, Recording, SampledAttention, explain, explanation_of, record
from mmdet_ddetr.explain.figures import (
    decoder_figure,
    encoder_figure,
    figure6,
    gaussian_figure,
    grid_figure,
    level_of,
)
from mmdet_ddetr.explain.frame import Frame
from mmdet_ddetr.explain.page import image_uri, page_data, write_page
from mmdet_ddetr.explain.panels import to_array
from mmdet_ddetr.ops import reference
from mmdet_ddetr.testing import make_batch, randomise, shrink, without_download

SHAPES = [(64, 96), (57, 64)]  # the second image is padded
ROOT = Path(__file__).parents[1]
CLASSES = ['circle', 'square', 'triangle', 'star', 'ring']
NAME = 'deformable-detr-refine-twostage_lite0_shapes'


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


def build(name, embed_dims=32):
    cfg = shrink(get_config(name).model)
    for stack in (cfg.encoder, cfg.decoder):
        for key, part in stack.layer_cfg.items():
            if key.endswith('_cfg'):
                part.embed_dims = embed_dims
    cfg.neck.out_channels = embed_dims
    cfg.positional_encoding.num_feats = embed_dims // 2
    cfg.bbox_head.update(num_classes=3, embed_dims=embed_dims)
    cfg.test_cfg.max_per_img = 60
    model = MODELS.build(cfg)
    model.init_weights()  # mmdet leaves some parameters to it
    return randomise(model, std=0.05).eval()


@pytest.fixture(scope='module')
def models():
    """Random models by name: references of two and of four coordinates, dense attention on one map and on three."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return dict(
        points=build('deformable-detr_r50_16xb2-50e_coco'),
        boxes=build('deformable-detr-refine-twostage_r50_16xb2-50e_coco'),
        dense=build('detr_r50_16xb4-500e_coco'),
        gaussians=build('smca-detr_r50_8xb2-50e_coco'),
        levels=build('smca-detr-multi-scale_r50_8xb1-50e_coco'),
        no_encoder=build('smca-detr-multi-scale-conv_r50_8xb1-50e_coco'),  # none with attention
        axes=build('anchor-detr_r50_8xb1-50e_coco'),
    )


def hooks_of(model):
    return [[*module._forward_hooks, *module._forward_pre_hooks] for module in model.modules()]


def predict(model):
    inputs, samples = make_batch(SHAPES, [1, 1], 3)
    with torch.no_grad():
        return model(inputs, samples, mode='predict')


# --- recording -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['points', 'boxes'])
def test_recorded_points_give_the_modules_output(models, name):
    """``ops.reference`` on the recorded locations and weights, between the module's two projections."""
    model, seen = models[name], []
    attentions = [layer.self_attn for layer in model.encoder.layers] + [
        layer.cross_attn for layer in model.decoder.layers
    ]
    handles = [
        attention.register_forward_hook(lambda *args: seen.append(args), with_kwargs=True) for attention in attentions
    ]
    with record(model) as recording:
        predict(model)
    for handle in handles:
        handle.remove()

    recorded = recording.encoder + recording.decoder
    assert len(recorded) == len(seen) == 5
    for attention, (module, (query,), kwargs, output) in zip(recorded, seen):
        value = module.value_proj(kwargs.get('value', query))
        value = value.masked_fill(kwargs['key_padding_mask'][..., None], 0.0)
        attended = reference.ms_deform_attn(
            value.unflatten(-1, (module.num_heads, -1)),
            recording.spatial_shapes,
            attention.locations,
            attention.weights,
        )
        # fp32 sums over 128 samples in another order
        torch.testing.assert_close(module.output_proj(attended) + query, output, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(attention.reference_points, kwargs['reference_points'])
        assert attention.reference_points.shape[-1] == (4 if name == 'boxes' and module in attentions[2:] else 2)


@pytest.mark.parametrize(
    ('path', 'embed_dims'),
    [
        ('deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py', 32),
        ('dino/dino-4scale_r50_8xb2-12e_coco.py', 256),  # its sine embedding has no other width
    ],
    ids=['deformable-detr', 'dino'],
)
def test_mmdets_own_detectors(path, embed_dims):
    """They are recorded, too: with mmcv's attention, and with this package's operator in its place."""
    model = build(str(Path(mmdet.__file__).parent / '.mim/configs' / path), embed_dims)
    with record(model) as by_mmcv:
        predict(model)
    assert accelerate(model) == 5
    with record(model) as by_ours:
        samples = predict(model)
    for part in ('encoder', 'decoder'):
        for a, b in zip(getattr(by_mmcv, part), getattr(by_ours, part), strict=True):
            torch.testing.assert_close(a.locations, b.locations, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(a.weights, b.weights, rtol=1e-5, atol=1e-5)
            assert a.weights.std() > 0
    assert_detections_know_their_queries(model, by_ours, samples)


def test_recorded_maps_are_those_of_multihead_attention(models):
    model, seen = models['dense'], []
    attentions = [layer.self_attn for layer in model.encoder.layers]
    attentions += [layer.cross_attn for layer in model.decoder.layers]
    handles = [a.register_forward_pre_hook(lambda *args: seen.append(args), with_kwargs=True) for a in attentions]
    with record(model) as recording:
        predict(model)
    for handle in handles:
        handle.remove()
    assert recording.spatial_shapes == [(2, 3)]
    for attention, (module, (query,), kwargs) in zip(recording.encoder + recording.decoder, seen, strict=True):
        key = kwargs.get('key', query)
        key_pos = kwargs.get('key_pos', kwargs['query_pos'])
        inputs = [x.transpose(0, 1) for x in (query + kwargs['query_pos'], key + key_pos, key)]
        padding = kwargs['key_padding_mask']
        expected = module.attn(*inputs, key_padding_mask=padding, average_attn_weights=False)[1]  # [B, M, Q, S]
        for image in range(2):
            for query in (0, expected.shape[2] - 1):
                torch.testing.assert_close(attention.weights(image, query), expected[image, :, query])


@pytest.mark.parametrize('name', ['gaussians', 'levels', 'no_encoder'])
def test_recorded_maps_give_the_modules_output(models, name):
    """Also where each level has a softmax: the values, summed by the recorded weights, are what the module adds."""
    model, seen = models[name], []
    modules = [layer.cross_attn for layer in model.decoder.layers]
    if name == 'levels':
        modules += [layer.self_attn for layer in model.encoder.layers]
    handles = [m.register_forward_hook(lambda *args: seen.append(args), with_kwargs=True) for m in modules]
    with record(model) as recording:
        predict(model)
    for handle in handles:
        handle.remove()
    recorded = [*recording.encoder, *recording.decoder] if name == 'levels' else recording.decoder
    assert len(recorded) == len(seen) == len(modules)
    for attention, (module, (query,), kwargs, output) in zip(recorded, seen):
        projection = module.attn.in_proj_weight.chunk(3)[2], module.attn.in_proj_bias.chunk(3)[2]
        values = torch.nn.functional.linear(kwargs.get('value', query), *projection)
        for image in range(2):
            for number in (0, query.shape[1] - 1):
                weights = attention.weights(image, number)  # [M, S]
                torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
                found = (weights[:, None] @ values[image].unflatten(-1, (len(weights), -1)).transpose(0, 1)).flatten()
                expected = output[image, number] - query[image, number]
                torch.testing.assert_close(module.attn.out_proj(found), expected, rtol=1e-5, atol=1e-5)


def test_recorded_axes(models):
    """The weights, summed up with the values, are what the module adds; their sums are the softmaxes of the axes."""
    model, seen = models['axes'], []
    modules = [layer.self_attn for layer in model.encoder.layers] + [layer.cross_attn for layer in model.decoder.layers]
    handles = [module.attention.register_forward_hook(lambda *args: seen.append(args[1:])) for module in modules]
    with record(model) as recording:
        samples = predict(model)
    for handle in handles:
        handle.remove()
    for attention, (inputs, output) in zip([*recording.encoder, *recording.decoder], seen, strict=True):
        query_x, _, key_x, _, value, padding_x, _ = inputs
        M, image, query = 8, 1, 3
        weights = attention.weights(image, query)
        values = value[image].flatten(0, 1).unflatten(-1, (M, -1))  # [S, M, D]
        found = torch.einsum('ms,smd->md', weights, values).flatten()
        torch.testing.assert_close(found, output[image, query], rtol=1e-5, atol=1e-6)
        q, k = (x[image].unflatten(-1, (M, -1)).transpose(0, 1) for x in (query_x, key_x))
        logits = (q[:, query, None] * k).sum(-1) / q.shape[-1] ** 0.5  # [M, W]
        softmax = logits.masked_fill(padding_x[image], float('-inf')).softmax(-1)
        torch.testing.assert_close(weights.unflatten(-1, recording.spatial_shapes[0]).sum(1), softmax)
    explanation = explanation_of(model, recording, 1, samples[1], np.zeros((114, 128, 3), np.uint8), 0.0)
    assert explanation.has_axes and not explanation.has_gaussians
    detection = explanation.detections[0]
    columns, rows = (
        next(patch for patch in decoder_figure(explanation, detection, close_up=False).axes[1].patches if side(patch))
        for side in (
            lambda patch: getattr(patch, 'orientation', '') == 'vertical',
            lambda patch: getattr(patch, 'orientation', '') == 'horizontal',
        )
    )
    heat = explanation.heat('decoder', 1, detection.query).mean(0)
    (drawn, edges, _), (drawn_y, _, _) = columns.get_data(), rows.get_data()
    assert edges[0] == explanation.extent[0] and edges[-1] == explanation.extent[2]
    np.testing.assert_allclose(drawn, 114 - 0.15 * 114 * heat.sum(0) / heat.sum(0).max())
    np.testing.assert_allclose(drawn_y, 0.15 * 114 * heat.sum(1) / heat.sum(1).max())


@pytest.mark.parametrize('name', ['points', 'boxes', 'dense', 'levels', 'no_encoder', 'axes'])
def test_results_are_unchanged(models, name):
    """Bit for bit, while recording and afterwards; no hook stays, not even after an error."""
    model = models[name]
    hooks = hooks_of(model)

    def same(results):
        for a, b in zip(before, results, strict=True):
            for key in ('bboxes', 'scores', 'labels'):
                assert torch.equal(a.pred_instances[key], b.pred_instances[key])

    before = predict(model)
    with record(model):
        same(predict(model))
    same(predict(model))
    with pytest.raises(ZeroDivisionError), record(model):
        raise ZeroDivisionError
    assert hooks_of(model) == hooks


def test_other_models_are_refused():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match='must have a transformer encoder with layers.*Linear'), record(model):
        pass
    model = build('deformable-detr_r50-own-level_16xb2-50e_coco')
    message = 'self_attn in the encoder of DeformableDETR must be MSDeformAttn, .*, got OwnLevel'
    with pytest.raises(TypeError, match=message), record(model):
        pass


# --- from the network's coordinates to the image's -------------------------------------------------------------------


def explanation_by_hand(flip=None):
    """One query at the same place of an image of 400 x 200, resized to 100 x 40 and padded to 160 x 64."""
    frame = Frame.of(
        dict(
            img_shape=(40, 100),
            batch_input_shape=(64, 160),
            scale_factor=(0.25, 0.2),
            flip=flip is not None,
            flip_direction=flip,
        )
    )
    ratios = torch.tensor([[[0.625, 0.625], [0.6, 0.75]]])  # of a 20 x 8 map, rounded on a 5 x 4 map
    references = torch.tensor([0.5, 0.25, 0.2, 0.4]) * ratios.repeat(1, 1, 2)
    locations = torch.zeros(1, 1, 1, 2, 1, 2)
    locations[0, 0, 0, 0, 0] = torch.tensor([0.3125, 0.5])  # (5/16, 1/2) of the padded map: 1/2 and 4/5 of the image
    locations[0, 0, 0, 1, 0] = torch.tensor([0.9, -0.15])  # 3/2 and -1/5 of the image: outside
    attention = SampledAttention(locations, torch.full((1, 1, 1, 2, 1), 0.5), references[:, None])
    recording = Recording([attention], [attention], [(8, 20), (4, 5)], ratios)
    return Explanation(np.zeros((200, 400, 3), np.uint8), [], recording, 0, frame)


@pytest.mark.parametrize(
    ('flip', 'points', 'point', 'box'),
    [
        (None, [[200, 160], [600, -40]], [200, 50], [160, 10, 240, 90]),
        ('horizontal', [[200, 160], [-200, -40]], [200, 50], [160, 10, 240, 90]),
        ('vertical', [[200, 40], [600, 240]], [200, 150], [160, 110, 240, 190]),
        ('diagonal', [[200, 40], [-200, 240]], [200, 150], [160, 110, 240, 190]),
    ],
)
def test_pixels_by_hand(flip, points, point, box):
    look = explanation_by_hand(flip).look('decoder', 0, 0)
    np.testing.assert_allclose(look.points[0, 0, :, 0], points, rtol=1e-5)
    np.testing.assert_allclose(look.references[0], point, rtol=1e-5)
    np.testing.assert_allclose(look.boxes[0], box, rtol=1e-5)


def test_encoder_query_by_hand():
    """12.5 x 5 cells of the first level and 3 x 3 of the second are image."""
    explanation = explanation_by_hand()
    explanation.recording.valid_ratios[0, 0, 0] = 0.6
    assert explanation.valid_cells(0) == (5, 12)
    assert explanation.valid_cells(1) == (3, 3)
    assert explanation.encoder_query(0, 0) == 0
    assert explanation.encoder_query(399, 199) == 4 * 20 + 11
    assert explanation.encoder_query(399 / 12, 41) == 20
    assert explanation.encoder_query(150, 100, level=1) == 8 * 20 + 1 * 5 + 1
    flipped = explanation_by_hand('horizontal')
    assert flipped.encoder_query(150, 100, level=1) == 8 * 20 + 1 * 5 + 1
    assert flipped.encoder_query(10, 199, level=1) == 8 * 20 + 2 * 5 + 2
    with pytest.raises(ValueError, match=r'0 <= x < 400 and 0 <= y < 200, got \(400, 3\)'):
        explanation.encoder_query(400, 3)
    with pytest.raises(ValueError, match=r'level must be in 0\.\.1, got 2'):
        explanation.encoder_query(0, 0, 2)
    with pytest.raises(ValueError, match=r'layer must be in -1\.\.0 for the encoder, got 1'):
        explanation.look('encoder', 1, 0)


@pytest.mark.parametrize('index', [0, 1])
def test_encoder_references_are_the_pixels_own_centres(models, index):
    """On every level of a padded batch whose images are shown at twice their size."""
    with record(models['boxes']) as recording:
        samples = predict(models['boxes'])
    h, w = (2 * size for size in SHAPES[index])
    explanation = explanation_of(models['boxes'], recording, index, samples[index], np.zeros((h, w, 3), np.uint8), 0.0)
    for level in range(4):
        rows, columns = explanation.valid_cells(level)
        for row, column in ((0, 0), (rows - 1, columns - 1)):
            x, y = (column + 0.5) / columns * w, (row + 0.5) / rows * h
            query = explanation.encoder_query(x, y, level)
            np.testing.assert_allclose(explanation.look('encoder', 0, query).references[0], [x, y], rtol=1e-5)


def assert_detections_know_their_queries(model, recording, samples):
    """The box and the score of a detection are those of its query; a query may be detected as several classes."""
    logits, boxes = recording.head_outputs[0][-1], recording.head_outputs[1][-1]
    for index, (h, w) in enumerate(SHAPES):
        image = np.zeros((2 * h, 2 * w, 3), np.uint8)
        explanation = explanation_of(model, recording, index, samples[index], image, 0.0)
        assert len(explanation.detections) == (60 if explanation.is_sampled else 20)
        for detection in explanation.detections:
            cx, cy, bw, bh = (boxes[index, detection.query] * torch.tensor([2 * w, 2 * h] * 2)).tolist()
            expected = np.array([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2]).clip(0, [2 * w, 2 * h] * 2)
            np.testing.assert_allclose(detection.box, expected, atol=1e-3)
            if explanation.is_sampled:
                score = logits[index, detection.query, detection.label].sigmoid().item()
                assert detection.score == pytest.approx(score)


@pytest.mark.parametrize('name', ['points', 'boxes', 'dense'])
def test_detections_know_their_queries(models, name):
    with record(models[name]) as recording:
        samples = predict(models[name])
    assert_detections_know_their_queries(models[name], recording, samples)


@pytest.mark.parametrize('name', ['gaussians', 'levels', 'no_encoder'])
def test_gaussians(models, name):
    """The decoder's are highest near a point; their picture is the sum over the levels on the finest map."""
    model = models[name]
    with record(model) as recording:
        samples = predict(model)
    explanation = explanation_of(model, recording, 0, samples[0], np.zeros((128, 192, 3), np.uint8), 0.0)
    assert explanation.has_gaussians
    levels = explanation.heats('decoder', -1, 5, gaussians=True)
    assert [heat.shape[1:] for heat in levels] == recording.spatial_shapes
    whole = explanation.heat('decoder', -1, 5, gaussians=True)
    assert whole.shape == levels[0].shape and 0 < whole.max() <= 1
    if name == 'gaussians':
        attention = model.decoder.layers[-1].cross_attn
        np.testing.assert_allclose(whole, recording.decoder[-1].bias[0, :, 5].exp().view(attention.num_heads, 2, 3))
    weights = explanation.heat('decoder', -1, 5)
    np.testing.assert_allclose(weights.sum((1, 2)), 1, rtol=1e-5)
    assert weights.shape == whole.shape
    figure = gaussian_figure(explanation, explanation.detections[0])
    assert len(figure.axes) == 3 + 1 and to_array(figure).std() > 0


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def explanations(models):
    """Of one image, 114 x 128, with three detections of known and disjoint boxes."""
    made = {}
    for name, model in models.items():
        with record(model) as recording:
            samples = predict(model)
        image = np.full((114, 128, 3), 200, np.uint8)
        explanation = explanation_of(model, recording, 1, samples[1], image, 0.0)
        boxes = np.array([[8, 8, 40, 40], [60, 10, 120, 50], [20, 60, 90, 110]], np.float32)
        kept = {detection.query: detection for detection in explanation.detections}
        chosen = [
            dataclasses.replace(detection, box=box, name=f'<kind {i}>')
            for i, (detection, box) in enumerate(zip(kept.values(), boxes))
        ]
        made[name] = dataclasses.replace(explanation, detections=chosen)
    return made


@pytest.mark.parametrize(
    'name', ['points', *(pytest.param(name, marks=pytest.mark.slow) for name in ('dense', 'boxes', 'levels', 'axes'))]
)
def test_figures(explanations, name):
    """Panels, their titles, and every point of the query at its place."""
    explanation = explanations[name]
    detection = explanation.detections[1]
    figures = dict(
        paper=figure6(explanation),
        decoder=decoder_figure(explanation, detection),
        encoder=encoder_figure(explanation, 50, 20, 0),
        grid=grid_figure(explanation, 'decoder', -1, detection.query, detection),
        pixel=grid_figure(explanation, 'encoder', -1, explanation.encoder_query(50, 20), pixel=(50, 20)),
    )
    heads, levels = 8, dict(dense=1, levels=3, axes=1).get(name, 4)
    panels = dict(paper=2 * 3, decoder=3, encoder=2, grid=heads * levels, pixel=heads * levels)
    for kind, figure in figures.items():
        assert len(figure.axes) == panels[kind] + 1, 'and the colour bar'
        if kind != 'grid':  # 32 panels take seconds; test_tool draws smaller ones
            assert to_array(figure).std() > 0
    assert [ax.get_title() for ax in figures['decoder'].axes[:3]] == [f'decoder layer {i}' for i in (1, 2, 3)]
    if not explanation.is_sampled:
        return
    look = explanation.look('decoder', 1, detection.query)
    (points,) = figures['decoder'].axes[1].collections
    order = np.argsort(look.weights, axis=None)
    np.testing.assert_allclose(points.get_offsets(), look.points.reshape(-1, 2)[order])
    np.testing.assert_allclose(points.get_array(), look.weights.ravel()[order])
    (points,) = figures['grid'].axes[8 + 2].collections  # level 2, head 3
    drawn = points.get_offsets().compressed().reshape(-1, 2)
    last = explanation.look('decoder', -1, detection.query)
    np.testing.assert_allclose(np.sort(drawn, 0), np.sort(last.points[0, 2, 1], 0))


def test_an_encoder_without_attention_is_left_out(explanations):
    """SMCA's archive has convolutions there. The decoder sees four maps, the first two of one stride."""
    explanation = explanations['no_encoder']
    assert explanation.num_layers == dict(encoder=0, decoder=3)
    assert explanation.recording.spatial_shapes == [(4, 6), (4, 6), (2, 3), (1, 2)]
    figure = figure6(explanation)
    assert len(figure.axes) == 3 + 1 and to_array(figure).std() > 0
    assert figure.axes[0].get_ylabel() == '(a) decoder\nlayer 3'
    query = explanation.detections[0].query
    assert len(grid_figure(explanation, 'decoder', -1, query).axes) == 8 * 4 + 1
    with pytest.raises(ValueError, match='the encoder has no layer with attention'):
        explanation.heat('encoder', -1, 0)
    data = page_data(explanation)
    assert 'encoder' not in data and len(data['decoder']['layers']) == 3


def test_objects_leave_out_duplicates(explanations):
    explanation = explanations['points']
    first, second, third = explanation.detections
    double = dataclasses.replace(second, box=first.box + 1)
    assert dataclasses.replace(explanation, detections=[first, double, third]).objects(4) == [first, third]
    assert explanation.objects(2) == [first, second]


def test_level_of(explanations):
    """Four cells of the two finest levels are 64 and 128 of 128 px."""
    explanation = explanations['points']
    assert [explanation.valid_cells(level)[1] for level in range(4)] == [8, 4, 2, 2]
    for side, level in ((20, 0), (64, 0), (120, 1)):
        box = np.array([0, 0, 128, side], np.float32)
        assert level_of(explanation, dataclasses.replace(explanation.detections[0], box=box)) == level


# --- the page --------------------------------------------------------------------------------------------------------


def numbers(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_page_data_keep_the_numbers(explanations):
    explanation = explanations['boxes']
    data = json.loads(json.dumps(page_data(explanation)))
    queries = [detection.query for detection in explanation.detections]
    for layer, stored in enumerate(data['decoder']['layers']):
        look = explanation.look('decoder', layer, queries)
        points = (numbers(stored['points'], '<u2') / 65535 * 2 - 0.5).reshape(-1, 2) * data['size']
        inside = ((look.points > -57) & (look.points < 171)).all(-1).ravel()
        np.testing.assert_allclose(points[inside], look.points.reshape(-1, 2)[inside], atol=128 / 65535)
        weights = (numbers(stored['weights'], 'u1') / 255) ** 2
        np.testing.assert_allclose(weights, look.weights.ravel(), atol=1 / 255)
    grids = data['encoder']['grids']
    assert [(grid['rows'], grid['columns'], grid['step']) for grid in grids] == [
        (8, 8, 1),
        (4, 4, 1),
        (2, 2, 1),
        (1, 2, 1),
    ]


def test_page_data_within_their_room(explanations):
    """Fewer pixels of the finest level first, spread over the image, and never none."""
    explanation = explanations['points']
    full = sum(len(layer['points'] + layer['weights']) for layer in page_data(explanation)['encoder']['layers'])
    data = page_data(explanation, room_mb=full / 2e6)
    size = sum(len(layer['points'] + layer['weights']) for layer in data['encoder']['layers'])
    assert full / 8 < size <= full / 2
    grids = data['encoder']['grids']
    assert [grid['step'] for grid in grids] == [2, 1, 1, 1]
    assert grids[0]['first'] == [0, 0] and grids[0]['rows'] == 4
    smallest = page_data(explanation, room_mb=0)['encoder']['grids']
    assert all(grid['rows'] == grid['columns'] == 1 for grid in smallest)


@pytest.mark.parametrize('size', [(3, 200_000), (200_000, 3), (40, 60)])
def test_pictures_of_a_page(size):
    """Whatever their sides: there is a picture in it, of at most 1,600 px."""
    image = np.zeros((*size, 3), np.uint8)
    image[..., 0] = 200  # red
    kind, data = image_uri(image).split(',')
    found = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert kind == 'data:image/jpeg;base64' and abs(found[0, 0].astype(int) - [0, 0, 200]).max() < 4
    assert found.shape[:2] == tuple(min(max(side * 1600 // max(*size, 1600), 1), side) for side in size)


def test_page_is_self_contained(explanations, tmp_path):
    """Nothing to fetch, and nothing that text from outside could break."""
    text = write_page(explanations['points'], tmp_path / 'page.html', 'a <b> & {{data}}', '</script>').read_text()
    assert '<title>a &lt;b&gt; &amp; {{data}}</title>' in text
    assert text.count('</script>') == 2
    assert not re.search(r'(src|href)="(?!data:)|@import|url\(|fetch\(', text)
    with pytest.raises(ValueError, match='no detection'):
        write_page(dataclasses.replace(explanations['points'], detections=[]), tmp_path / 'none.html', '')


@pytest.fixture
def page(browser, explanations, tmp_path, request):
    """The page of a model in the browser; afterwards, no error and no request but for the page itself."""
    path = write_page(explanations[getattr(request, 'param', 'boxes')], tmp_path / 'page.html', 'title', 'subtitle')
    browser.events.clear()
    browser.mouse('Moved', 1, 1)
    browser.open(path.as_uri())
    yield browser
    methods = [event.get('method') for event in browser.events]
    assert 'Runtime.exceptionThrown' not in methods and 'Log.entryAdded' not in methods, browser.events
    sent = [e['params']['request']['url'] for e in browser.events if e.get('method') == 'Network.requestWillBeSent']
    assert [url for url in sent if not url.startswith('data:')] == [path.as_uri()]


def shown(browser):
    """(x, y) of the circles, in px of the image."""
    circles = "[...document.querySelectorAll('circle')].map((c) => [+c.getAttribute('cx'), +c.getAttribute('cy')])"
    return np.array(browser.evaluate(circles)).reshape(-1, 2)


def status(browser):
    return browser.evaluate("document.getElementById('status').textContent")


def at_image(browser, x, y):
    """Where a pixel of the image is in the window."""
    frame = browser.evaluate('(({x, y, width, height}) => [x, y, width, height])(stage.getBoundingClientRect())')
    return frame[0] + x / 128 * frame[2], frame[1] + y / 114 * frame[3]


def middle(browser, selector):
    script = f'(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({selector}.getBoundingClientRect())'
    return browser.evaluate(script)


def assert_shows(browser, explanation, part, layer, query):
    points = np.concatenate(explanation.look(part, layer, query).points[0]).reshape(-1, 2)
    inside = lambda p: np.array(sorted(p[((p > -50) & (p < 160)).all(1)].tolist()))  # noqa: E731
    drawn, expected = inside(shown(browser)), inside(points)
    assert len(drawn) == len(expected) > 0
    distance = np.abs(drawn[:, None] - expected[None]).max(-1)
    assert distance.min(0).max() < 0.02 and distance.min(1).max() < 0.02


def test_hovering_shows_points(page, explanations):
    explanation = explanations['boxes']
    first, second, _ = (detection.query for detection in explanation.detections)
    assert len(shown(page)) == 8 * 4 * 4
    assert_shows(page, explanation, 'decoder', -1, first)
    page.mouse('Moved', *at_image(page, 90, 30))
    assert status(page).startswith('<kind 1> ') and 'decoder layer 3: 128 points' in status(page)
    assert_shows(page, explanation, 'decoder', -1, second)
    page.mouse('Moved', *at_image(page, 126, 60))  # on none
    assert_shows(page, explanation, 'decoder', -1, first)
    page.click(*at_image(page, 90, 30))
    page.mouse('Moved', 1, 1)  # a click stays
    assert_shows(page, explanation, 'decoder', -1, second)


def test_keyboard_list_and_slider(page, explanations):
    explanation = explanations['boxes']
    last = explanation.detections[2].query
    for _ in range(3):  # stage, tabs, list
        page.press('Tab')
    assert page.evaluate('document.activeElement.textContent').startswith('<kind 0>')
    page.press('ArrowDown')
    page.press('ArrowRight')
    assert page.evaluate('document.activeElement.textContent').startswith('<kind 2>')
    assert_shows(page, explanation, 'decoder', -1, last)
    assert page.evaluate("document.querySelectorAll('[aria-pressed=true]').length") == 1
    page.press('Tab')
    page.press('Tab')
    assert page.evaluate('document.activeElement.id') == 'layer'
    page.press('ArrowLeft')
    assert 'decoder layer 2' in status(page)
    assert_shows(page, explanation, 'decoder', 1, last)


def test_toggles_and_close_up(page, explanations):
    page.click(*middle(page, "document.querySelector('[name=head]')"))
    assert len(shown(page)) == 7 * 4 * 4
    page.click(*middle(page, "document.querySelector('[name=level]')"))
    assert len(shown(page)) == 7 * 3 * 4
    page.click(*middle(page, "document.getElementById('next')"))
    assert len(shown(page)) == 1 * 3 * 4
    box = "document.querySelector('.chosen:not(.under)').getBoundingClientRect().width / stage.clientWidth"
    assert page.evaluate(box) == pytest.approx(32 / 128, abs=0.02)
    page.click(*middle(page, "document.getElementById('close')"))
    assert page.evaluate(box) == pytest.approx(32 / 114 * 114 / 128 / (2.4 * 32 / 114), abs=0.02)


def test_encoder_pixels(page, explanations):
    explanation = explanations['boxes']
    page.click(*middle(page, "document.querySelector('[value=encoder]')"))
    for x, y in ((5, 5), (77, 100)):
        page.mouse('Moved', *at_image(page, x, y))
        assert_shows(page, explanation, 'encoder', -1, explanation.encoder_query(x, y, 0))
    assert 'Pixel (column 5, row 8) of level 1, encoder layer 2' in status(page)
    page.click(*at_image(page, 5, 5))
    page.mouse('Moved', 1, 1)
    page.press('ArrowRight')
    assert_shows(page, explanation, 'encoder', -1, explanation.encoder_query(5 + 16, 5, 0))
    page.click(*middle(page, "document.querySelectorAll('[name=pixel-level]')[1]"))
    assert_shows(page, explanation, 'encoder', -1, explanation.encoder_query(5 + 16, 5, 1))


def test_small_screen(page):
    """Nothing is wider than a phone, and the image stays in view above the last control."""
    page.send('Emulation.setDeviceMetricsOverride', width=390, height=800, deviceScaleFactor=1, mobile=True)
    try:
        page.evaluate('fit(), window.scrollTo(0, 1e5)')
        assert page.evaluate('document.documentElement.scrollWidth') == 390
        top, bottom = page.evaluate('(({top, bottom}) => [top, bottom])(stage.getBoundingClientRect())')
        assert 0 <= top < bottom < page.evaluate("document.getElementById('scale').getBoundingClientRect().top") < 800
    finally:
        page.send('Emulation.clearDeviceMetricsOverride')


@pytest.mark.parametrize('page', ['no_encoder'], indirect=True)
def test_page_without_an_encoder(page):
    assert 'decoder layer 3' in status(page)
    assert page.evaluate("document.getElementById('modes').hidden")
    page.mouse('Moved', *at_image(page, 90, 30))
    assert status(page).startswith('<kind 1> ')


@pytest.mark.parametrize('page', ['dense'], indirect=True)
def test_maps_of_a_detr(page, explanations):
    def colour():
        return page.evaluate("document.getElementById('heat').getAttribute('href')")

    first = colour()
    assert first.startswith('data:image/png') and not len(shown(page))
    page.mouse('Moved', *at_image(page, 90, 30))
    assert status(page).startswith('<kind 1> ') and 'column' in status(page)
    assert colour() != first
    page.click(*middle(page, "document.querySelector('[value=encoder]')"))
    assert 'encoder layer 2' in status(page)


# --- SAM-DETR: salient points, layers of one level -----------------------------------------------------------------


@pytest.fixture(scope='module')
def aligned_models():
    """SAM-DETRs: on one level with points, and on three with Gaussians and an encoder that samples."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    names = dict(one='sam-detr_r50_4xb4-50e_coco', three='sam-detr-smca-multi-scale_r50_8xb2-12e_coco')
    return {name: build(config) for name, config in names.items()}


def explanation_of_first(model):
    with record(model) as recording:
        samples = predict(model)
    return explanation_of(model, recording, 0, samples[0], np.zeros((128, 192, 3), np.uint8), 0.0)


@pytest.mark.parametrize('name', ['one', 'three'])
def test_aligned_attention_is_what_was_computed(aligned_models, name):
    """Weights by record, times the values, give the module's output."""
    model, seen = aligned_models[name], []
    modules = [layer.cross_attn for layer in model.decoder.layers]
    handles = [module.register_forward_hook(lambda *call: seen.append(call), with_kwargs=True) for module in modules]
    with record(model) as recording:
        predict(model)
    for handle in handles:
        handle.remove()
    for attention, (module, (query,), kwargs, output) in zip(recording.decoder, seen, strict=True):
        values = module.v_proj(kwargs['value'][1]).unflatten(-1, (module.num_heads, -1))  # [S, M, E]
        attended = torch.einsum('ms, sme -> me', attention.weights(1, 7), values).flatten()
        torch.testing.assert_close(query[1, 7] + module.out_proj(attended), output[1, 7], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['one', 'three'])
def test_salient_points(aligned_models, name):
    """They lie in the box that the layer starts from, the first in a learned one."""
    model = aligned_models[name]
    explanation = explanation_of_first(model)
    for layer in range(3):
        points, (x1, y1, x2, y2) = explanation.salient_points(layer, 7)
        assert points.shape == (8, 2)
        assert ((points >= [x1, y1]) & (points <= [x2, y2])).all()
        if layer == 0:
            cx, cy, w, h = (model.query_embedding.weight[7].sigmoid() * torch.tensor([192, 128, 192, 128])).tolist()
            np.testing.assert_allclose([x1, y1, x2, y2], [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], rtol=1e-4)
    assert explanation.has_gaussians == (name == 'three')


def test_layers_that_read_one_level(aligned_models):
    """The coarsest first: nothing is seen of the others, and the picture's weights sum to 1 on the finest map, too."""
    explanation = explanation_of_first(aligned_models['three'])
    for layer, level in enumerate((2, 1, 0)):
        heats = explanation.heats('decoder', layer, 7)
        assert [bool(heat.any()) for heat in heats] == [own == level for own in range(3)]
        np.testing.assert_allclose(heats[level].sum((1, 2)), 1, rtol=1e-5)
    whole = explanation.heat('decoder', 0, 7)
    np.testing.assert_allclose(whole.sum((1, 2)), 1, rtol=0.2)  # maps of 8 x 12 and of 2 x 3 cells


def test_sampled_weights_of_cells():
    """Half of a point on a cell's centre, a quarter of it on the edge to another, the rest outside."""
    locations = torch.tensor([[0.5 / 3, 0.25], [2 / 3, 0.75], [1.0, 0.25], [-0.9, 0.5]])[None, None, None, None]
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1])[None, None, None, None]
    attention = SampledAttention(locations, weights, torch.zeros(1, 1, 1, 2))
    cells = attention.weights_of_cells(0, 0, [(2, 3)])
    torch.testing.assert_close(cells, torch.tensor([[0.4, 0.0, 0.1, 0.0, 0.15, 0.15]]))


@pytest.mark.parametrize('name', ['one', pytest.param('three', marks=pytest.mark.slow)])
def test_figures_and_page_of_aligned_attention(aligned_models, name, tmp_path):
    explanation = explanation_of_first(aligned_models[name])
    detection = explanation.detections[0]
    for figure in (
        figure6(explanation, [detection]),
        decoder_figure(explanation, detection),
        encoder_figure(explanation, 20, 30),
        grid_figure(explanation, 'decoder', -1, detection.query, detection),
    ):
        assert to_array(figure).std() > 1
    blue = np.array([0x1F, 0x5F, 0xBF])
    assert (np.abs(to_array(decoder_figure(explanation, detection)).astype(int) - blue).max(-1) < 8).any()
    write_page(explanation, tmp_path / 'page.html', 'title')
    data = page_data(explanation)
    assert data['kind'] == 'maps' and data['heads'] == 8


# --- the tool and the hook -------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def checkpoint(workspace):
    """A config and random weights of the quick start's model, in the workspace."""
    init_default_scope('mmdet')
    cfg = get_config(NAME)
    without_download(cfg.model)
    torch.manual_seed(0)
    model = randomise(MODELS.build(copy.deepcopy(cfg.model)), std=0.02)
    cfg.dump(workspace / 'config.py')
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), workspace / 'random.pth')
    return workspace / 'random.pth'


@pytest.fixture
def run_here(checkpoint, workspace, monkeypatch):
    """Run the tool in this process, in the workspace, on one of its images."""
    monkeypatch.chdir(workspace)
    spec = importlib.util.spec_from_file_location('tools_explain', ROOT / 'tools/explain.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    image = sorted(Path('data/shapes/images/val').iterdir())[0]
    return lambda config, weights, *options, image=image: tool.main(
        [config, weights, str(image), '--device=cpu', '--score-thr=0', *options]
    )


def test_tool(run_here, workspace, capsys):
    options = ['--out=explained', '--detections=1', '--grid', '--pixel', '20', '30', '--layer=2']
    run_here('config.py', 'random.pth', *options)
    printed = capsys.readouterr().out
    written = sorted(path.relative_to(workspace) for path in (workspace / 'explained').iterdir())
    assert all(str(path) in printed for path in written)
    names = re.sub(r'explained/\w+?_\d+', '', ' '.join(map(str, written)))
    kind = '(circle|square|triangle|star|ring)'
    assert re.fullmatch(
        rf'-decoder-1-{kind}.png -encoder-20-30.png -figure6.png -grid-1-{kind}.png -grid-20-30.png .html', names
    )
    for path in (workspace / 'explained').glob('*.png'):
        assert min(cv2.imread(str(path)).shape[:2]) > 150


@pytest.mark.parametrize(
    ('files', 'options', 'message'),
    [
        ('config.py random.pth', ['--score-thr=2'], 'no detection in .*jpg with a score of .* 2 or more; the best is '),
        ('config.py nowhere.pth', [], "weights: no checkpoint 'nowhere.pth'"),
        ('config.py random.pth', ['--pixel', '96', '3'], r'pixel must lie in the image.* got \(96, 3\)'),
        ('config.py random.pth', ['--level=5'], r'--level must be in 1\.\.4, got 5'),
        ('config.py random.pth', ['--layer=0'], r'--layer must be in 1\.\.2, got 0'),
        ('no-config random.pth', [], "'no-config'"),
    ],
)
def test_tool_says_what_is_wrong(run_here, files, options, message):
    """In one line, without a traceback."""
    with pytest.raises(SystemExit, match=message):
        run_here(*files.split(), *options)


@pytest.mark.parametrize(('name', 'message'), [('config.py', 'not an image'), ('nothing.jpg', 'no such file')])
def test_tool_names_a_bad_image(run_here, name, message):
    with pytest.raises(SystemExit, match=f'{name}: .*{message}'):
        run_here('config.py', 'random.pth', image=name)


@pytest.mark.slow
def test_hook(checkpoint, workspace, monkeypatch):
    """In a training with evaluations: figures of the same first images, across batches, and no hook left behind."""
    monkeypatch.chdir(workspace)
    cfg = get_config(str(workspace / 'config.py'))
    hook = dict(type='mmdet_ddetr.SamplingPointsHook', n_images=3, n_objects=1, score_thr=0.0)
    loader = dict(num_workers=0, persistent_workers=False)
    cfg.merge_from_dict(
        dict(
            work_dir=str(workspace / 'hooked'),
            load_from=str(checkpoint),
            custom_hooks=[hook],
            train_cfg=dict(max_epochs=2, val_interval=1),
            train_dataloader=loader,
            val_dataloader=dict(batch_size=2, **loader),
            visualizer=dict(name='test_hook_of_explain'),
            experiment_name='test_hook_of_explain',
        )
    )
    cfg.default_hooks = dict(checkpoint=None)  # nothing but the figures
    runner = Runner.from_cfg(cfg)
    hooks = hooks_of(runner.model)
    runner.train()
    assert runner.iter == 2
    pictures = sorted(path.name for path in (workspace / 'hooked').rglob('vis_image/*.png'))
    assert pictures == [f'sampling_points_{image}_{iteration}.png' for image in range(3) for iteration in (1, 2)]
    assert hooks_of(runner.model) == hooks


def test_explain_reads_the_image_once(checkpoint, workspace):
    """From a path and from its pixels: the same; the image is RGB."""
    from mmdet_ddetr.apis import DDetrInferencer

    model = DDetrInferencer(str(workspace / 'config.py'), checkpoint, device='cpu', show_progress=False).model
    path = sorted((workspace / 'data/shapes/images/val').iterdir())[0]
    bgr = cv2.imread(str(path))
    by_path, by_pixels = explain(model, str(path), 0.0), explain(model, bgr, 0.0)
    assert (by_path.image == bgr[..., ::-1]).all()
    assert by_path.detections[0].name in CLASSES
    assert [d.score for d in by_path.detections] == [d.score for d in by_pixels.detections]
