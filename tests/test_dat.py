"""DAT against its official code, against loops written here, and against hand-computed sizes.

The fixture is of the official code at 7edbb9b with random weights: a small model with windows of 3 x 3, at two sizes;
and names and shapes of the weights of the published models.
"""

import argparse
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.runner import CheckpointLoader
from official import cosines, load
from torch import nn

from mmdet_ddetr import get_config
from mmdet_ddetr.backbones import DAT
from mmdet_ddetr.backbones.dat import ARCHS
from mmdet_ddetr.backbones.dat_attention import DeformableAttention, LocalAttention
from mmdet_ddetr.backbones.dat_weights import convert, settings_of
from mmdet_ddetr.checkpoints.errors import CheckpointError
from mmdet_ddetr.registry import MODELS
from mmdet_ddetr.testing import randomise

SMALL = dict(embed_dims=4, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), num_groups=(1, 1, 2, 4))
ALL = (0, 1, 2, 3)


@pytest.fixture(scope='module')
def fixture():
    return load('dat.pt')


def build(**kwargs):
    settings = dict(arch=SMALL, img_size=96, window_size=3, out_indices=ALL) | kwargs
    torch.manual_seed(0)
    return MODELS.build(dict(type='mmdet_ddetr.DAT', **settings))


def without_output_norms(model):
    """The official classification code has none."""
    model.norms = nn.ModuleDict({key: nn.Identity() for key in model.norms})
    return model


def official_weights(fixture, case):
    return {key: value.float() for key, value in (fixture['state_dict'] | fixture['cases'][case]['tables']).items()}


# Parity


@pytest.mark.parametrize('case', [0, 1], ids=['96 x 96', '96 x 192'])
def test_official_features_and_gradients(fixture, case):
    """Of all stages, and of every parameter: norms of the gradients, and products with cosines."""
    expected = fixture['cases'][case]
    model = without_output_norms(build(img_size=expected['img_size']))
    model.load_state_dict(convert(official_weights(fixture, case)), strict=True)
    outs = model(cosines((2, 3, *expected['img_size'])))
    for out, features in zip(outs, expected['features'], strict=True):
        torch.testing.assert_close(out[:1], features, rtol=1e-5, atol=1e-5)
    sum((out * cosines(out.shape, i)).sum() for i, out in enumerate(outs)).backward()

    # to name the gradients as the official code does: which number of its weights each number of ours is
    numbers = official_weights(fixture, case)
    first = 0
    for key, value in numbers.items():
        numbers[key] = torch.arange(first, first + value.numel(), dtype=torch.float64).view_as(value)
        first += value.numel()
    gradients = torch.zeros(first, dtype=torch.float64)
    positions = convert(numbers)
    for name, parameter in model.named_parameters():
        gradients[positions[name].long()] = parameter.grad.double()
    largest = max(norm for norm, _ in expected['gradients'].values())
    assert len(expected['gradients']) == len(list(model.parameters()))
    for key, (norm, product) in expected['gradients'].items():
        gradient = gradients[numbers[key].long()].flatten()
        assert abs(gradient.norm() - norm) <= 1e-4 * norm + 1e-6 * largest, key
        found = gradient @ torch.cos(torch.arange(len(gradient)).double())
        assert abs(found - product) <= 1e-4 * norm + 1e-6 * largest, key


def test_every_published_weight_has_its_place(fixture):
    for arch, shapes in fixture['shapes'].items():
        with torch.device('meta'):
            theirs = convert({key: torch.empty(shape) for key, shape in shapes.items()})
            ours = DAT(arch, out_indices=ALL).state_dict()
        ours = {key: value.shape for key, value in ours.items() if not key.startswith('norms.')}
        assert {key: value.shape for key, value in theirs.items()} == ours


# Parts, in loops


def loop_local(attn, x):  # [H, W, C], fp64
    """Every cell attends to those of its window that lay in the same window's end of the map before the shift."""
    H, W, C = x.shape
    size, shift, M = attn.window_size, attn.shift_size, attn.attend.num_heads
    rows, columns = -(-H // size) * size, -(-W // size) * size
    padded = torch.zeros(rows, columns, C, dtype=x.dtype)
    padded[:H, :W] = x
    q, k, v = (attn.qkv(padded)).chunk(3, -1)
    out = torch.zeros_like(x)

    def window(i, n):
        """Of cell i along an axis: which window of the shifted map, its place in it, whether it went round."""
        moved = (i - shift) % n
        return moved // size, moved % size, i < shift

    for i in range(H):
        for j in range(W):
            (wi, pi, ri), (wj, pj, rj) = window(i, rows), window(j, columns)
            logits, values = [], []
            for y in range(rows):
                for z in range(columns):
                    (wy, py, ry), (wz, pz, rz) = window(y, rows), window(z, columns)
                    if (wi, wj) != (wy, wz) or (ri, rj) != (ry, rz):
                        continue
                    bias = attn.position_bias_table[(pi - py + size - 1) * (2 * size - 1) + pj - pz + size - 1]
                    product = (q[i, j] * k[y, z]).view(M, -1).sum(-1) / (C // M) ** 0.5
                    logits.append(product + bias)
                    values.append(v[y, z].view(M, -1))
            weights = torch.stack(logits).softmax(0)  # [cells, M]
            out[i, j] = (weights[..., None] * torch.stack(values)).sum(0).flatten()
    return attn.output_proj(out)


@pytest.mark.parametrize('shift', [0, 2])
@pytest.mark.parametrize('size', [(6, 3), (4, 5), (2, 7)])
def test_local_attention(size, shift):
    torch.manual_seed(0)
    attn = randomise(LocalAttention(4, 2, window_size=3, shift_size=shift).double(), std=0.5)
    x = torch.randn(1, *size, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(attn(x)[0], loop_local(attn, x[0]))


def bilinear(image, y, x):
    """Of [C, H, W] at row y and column x; zero outside."""
    total = 0
    for i in range(image.shape[1]):
        for j in range(image.shape[2]):
            total = total + image[:, i, j] * max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j))
    return total


def loop_deformable(attn, x):  # [H, W, C], fp64
    """In the official code's units, from -1 for the first cell's centre to 1 for the last's; groups one by one."""
    H, W, C = x.shape
    G, M = attn.num_groups, attn.attend.num_heads
    table = attn.position_bias_table
    q = attn.query_proj(x)
    offsets, sampled = [], torch.zeros(H * W, C, dtype=x.dtype)
    reference = [((2 * i + 1) / H - 1, (2 * j + 1) / W - 1) for i in range(H) for j in range(W)]
    points = []
    for g in range(G):
        channels = slice(g * C // G, (g + 1) * C // G)
        offsets = attn.offset_conv(q[..., channels].permute(2, 0, 1)[None])[0].permute(1, 2, 0)
        offsets = torch.tanh(attn.offset_proj(F.gelu(attn.offset_norm(offsets)))).view(H * W, 2)
        points.append([])
        for n, (y, z) in enumerate(reference):
            dx, dy = offsets[n].tolist()
            y, z = y + dy * attn.offset_range / H, z + dx * attn.offset_range / W
            points[g].append((y, z))
            image = x[..., channels].permute(2, 0, 1)
            sampled[n, channels] = bilinear(image, (y + 1) / 2 * (H - 1), (z + 1) / 2 * (W - 1))
    k, v = attn.key_proj(sampled).view(H * W, M, -1), attn.value_proj(sampled).view(H * W, M, -1)
    out = torch.zeros(H * W, M, C // M, dtype=x.dtype)
    for n, (y, z) in enumerate(reference):
        for m in range(M):
            logits = []
            for s, (py, pz) in enumerate(points[m * G // M]):
                row, column = (((a - b) / 2 + 1) / 2 * (t - 1) for a, b, t in zip((y, z), (py, pz), table.shape[1:]))
                query = q.view(H * W, M, -1)[n, m]
                logits.append(query @ k[s, m] / (C // M) ** 0.5 + bilinear(table[m : m + 1], row, column)[0])
            out[n, m] = torch.stack(logits).softmax(0) @ v[:, m]
    return attn.output_proj(out.view(H, W, C))


@pytest.mark.parametrize('size', [(3, 2), (1, 4), (2, 5)], ids=['that of the table', 'one row', 'wider'])
def test_deformable_attention(size):
    torch.manual_seed(0)
    attn = randomise(DeformableAttention(8, 4, 2, kernel_size=3, map_size=(3, 2)).double(), std=0.5)
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(attn(x)[1], loop_deformable(attn, x[1]))


def test_sampling_points_by_hand():
    """Two cells, centres at 1/4 and 3/4; without offsets they stay there, and large offsets move them by one cell."""
    attn = DeformableAttention(2, 1, 1, kernel_size=1, map_size=(1, 2))
    with torch.no_grad():
        attn.offset_norm.weight.zero_()
        attn.offset_norm.bias.copy_(torch.tensor([10.0, 0.0]))
        attn.offset_proj.weight.zero_()
        query = torch.zeros(1, 1, 2, 2)
        assert attn.sampling_points(query).tolist() == [[[[0.25, 0.5], [0.75, 0.5]]]]
        attn.offset_proj.weight[0, 0] = 10.0  # to the right
        assert attn.sampling_points(query).tolist() == [[[[0.75, 0.5], [1.25, 0.5]]]]


def test_gradients():
    torch.manual_seed(0)
    attn = randomise(DeformableAttention(4, 2, 2, kernel_size=3, map_size=(2, 2)).double(), std=0.3)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in attn.named_parameters()]

    def run(x, *parameters):
        return torch.func.functional_call(attn, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(run, (x, *attn.parameters()))


# The backbone


@pytest.mark.parametrize('height, width', [(96, 96), (1, 1), (33, 65), (127, 250)])
def test_any_size(height, width):
    model = build().eval()
    with torch.no_grad():
        outs = model(torch.randn(1, 3, height, width))
    for i, (out, stride) in enumerate(zip(outs, (4, 8, 16, 32), strict=True)):
        assert out.shape == (1, 4 * 2**i, -(-height // stride), -(-width // stride))
        assert torch.isfinite(out).all()


def test_images_of_a_batch_do_not_mix():
    model = build().eval()
    images = torch.randn(3, 3, 50, 70)
    with torch.no_grad():
        for out, alone in zip(model(images), model(images[1:2])):
            torch.testing.assert_close(out[1:2], alone, rtol=1e-5, atol=1e-5)


def test_builds_no_stage_beyond_the_last_output():
    model = build(out_indices=(0, 1))
    assert model.out_channels == (4, 8)
    assert len(model.stages) == 2


@pytest.mark.parametrize(('arch', 'head'), [('tiny', 28319138), ('small', 49700402), ('base', 87881632)])
def test_parameter_count(arch, head):
    """The official code's, less the classification head and its norm, plus the norms of three outputs."""
    with torch.device('meta'):
        model = DAT(arch)
    C2, C3, C4 = model.out_channels
    classifier = C4 * 1000 + 1000 + 2 * C4
    assert sum(p.numel() for p in model.parameters()) == head - classifier + 2 * (C2 + C3 + C4)


def test_drop_path():
    """Its rate rises from block to block; it drops whole branches, of single images, in training alone."""
    model = build(drop_path_rate=0.7)
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    block = model.stages[3][1]
    x = torch.randn(64, 3, 3, 32)
    with torch.no_grad():
        whole = block.eval()(x)
        dropped = (block.train()(x) == x).flatten(1).all(1)
    assert not (whole == x).flatten(1).all(1).any()
    assert 20 <= dropped.sum() <= 44  # both branches: 0.49 of 64 images


def test_every_parameter_has_a_gradient_with_and_without_recomputation():
    plain, recomputed = build(), build(with_cp=True)
    images = torch.randn(2, 3, 70, 50)
    for model in (plain, recomputed):
        sum(out.square().mean() for out in model.train()(images)).backward()
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters()):
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.parametrize(
    'frozen, names', [(-1, ()), (0, ('merges.0',)), (2, ('merges.0', 'merges.1', 'stages.0', 'stages.1'))]
)
def test_frozen_stages(frozen, names):
    model = build(frozen_stages=frozen, drop_path_rate=0.2).train()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(names or ('none',)), name
    assert model.stages[0].training == (frozen < 1)


@pytest.mark.slow
def test_compiles_without_a_break():
    torch._dynamo.reset()
    model = build().eval()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager', dynamic=False)
    image = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        for out, expected in zip(compiled(image), model(image)):
            torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_empty_batch():
    assert [out.shape for out in build(out_indices=(2, 3))(torch.rand(0, 3, 65, 33))] == [(0, 16, 5, 3), (0, 32, 3, 2)]


def test_one_graph_for_any_number_of_images():
    attn, maps = build().eval().stages[2][1].attn, torch.randn(3, 4, 6, 16)
    program = torch.export.export(attn, (maps[:2],), dynamic_shapes=({0: torch.export.Dim('B')},))
    torch.testing.assert_close(program.module()(maps), attn(maps))


def test_autocast_keeps_the_points_in_fp32():
    model = build().eval()
    attn, image = model.stages[2][1].attn, torch.randn(1, 3, 64, 64)
    seen = []
    original = attn.sampling_points
    attn.sampling_points = lambda query: seen.append(original(query)) or seen[-1]
    with torch.no_grad():
        expected = model(image)
        with torch.autocast('cpu', torch.bfloat16):
            outs = model(image)
    assert [points.dtype for points in seen] == [torch.float32] * 2
    for out, features in zip(outs, expected):
        assert (out - features).norm() < 0.05 * features.norm()


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(arch='large'), "arch: got 'large', expected one of tiny, small, base"),
        (dict(out_indices=(3, 4)), r'out_indices: got \(3, 4\), expected ascending indices from 0 to 3'),
        (dict(out_indices=()), r'out_indices: got \(\)'),
        (dict(out_indices=3), 'out_indices: got 3, expected ascending indices from 0 to 3'),
        (dict(window_size=0), 'window_size must be a whole number of at least 1, got 0'),
        (dict(img_size=16), 'img_size must be one or two whole numbers of at least 32, got 16'),
        (dict(img_size=(224,)), r'img_size must be one or two whole numbers of at least 32, got \(224,\)'),
        (dict(drop_path_rate=1.0), 'drop_path_rate: got 1.0, expected at least 0 and less than 1'),
        (dict(arch=dict(embed_dims=12)), 'arch: got embed_dims, expected embed_dims, depths, num_heads, num_groups'),
        (dict(arch=SMALL | dict(depths=(2, 2, 2))), r'arch: got \(2, 2, 2\) as depths, expected one for each of 4'),
        (dict(arch=SMALL | dict(num_heads=(5,) * 4)), 'arch: got 5 heads and 1 groups in stage 1, expected heads that'),
        (dict(arch=SMALL | dict(num_groups=(1, 1, 1, 5))), 'arch: got .* heads and 5 groups in stage 4, expected'),
        (dict(out_indices=(0, 1), frozen_stages=3), 'frozen_stages: got 3, expected -1 to 2'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


# The authors' files


@pytest.fixture
def official_file(fixture, tmp_path, monkeypatch):
    """As the official training code writes it: with its config, of a class that is not installed here."""
    module = types.ModuleType('yacs.config')
    module.CfgNode = type('CfgNode', (dict,), dict(__module__='yacs.config'))
    config = module.CfgNode(MODEL=module.CfgNode(NAME='dat'))
    config.frozen = True
    path = tmp_path / 'dat.pth'
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
        patch.setitem(sys.modules, 'yacs.config', module)
        torch.save(dict(model=official_weights(fixture, 0), epoch=299, config=config, args=argparse.Namespace()), path)
    return path


def pretrained(path):
    return dict(type='Pretrained', checkpoint=f'dat://{path}')


def test_official_file(official_file, fixture):
    model = build(init_cfg=pretrained(official_file))
    model.init_weights()
    for name, value in convert(official_weights(fixture, 0)).items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.norms['3'].weight.eq(1).all()
    short = build(init_cfg=pretrained(official_file), out_indices=(0, 2))
    short.init_weights()
    assert torch.equal(short.stages[2][1].attn.offset_conv.weight, model.stages[2][1].attn.offset_conv.weight)


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        (
            dict(arch=SMALL | dict(embed_dims=8)),
            r"with arch={'embed_dims': 4, 'depths': \(2, 2, 2, 2\)}, this one has arch={'embed_dims': 8, ",
        ),
        (dict(img_size=192), 'with img_size=96, this one has img_size=192; set those of the file, or take'),
        (dict(window_size=4), 'with window_size=3, this one has window_size=4;'),
        (dict(arch='tiny'), r"'depths': \(2, 2, 2, 2\)}, this one has arch='tiny';"),
        (dict(arch='tiny', out_indices=(0, 1)), "this one has arch='tiny';"),
    ],
    ids=['channels', 'images', 'windows', 'arch', 'stages'],
)
def test_file_of_another_size(official_file, changed, message):
    """The message names the arguments that the file is for, and those that the backbone has."""
    with pytest.raises(CheckpointError, match=message):
        build(init_cfg=[pretrained(official_file)], **changed).init_weights()


def test_sizes_of_the_published_files():
    """Of their weights' shapes alone."""
    for arch, img_size, window_size in [('tiny', 224, 7), ('small', 224, 7), ('base', 224, 7), ('base', 384, 12)]:
        settings = dict(arch=arch, img_size=img_size, window_size=window_size)
        with torch.device('meta'):
            model = DAT(**settings, out_indices=ALL)
        assert settings_of(model.state_dict(), ARCHS) == settings


def test_file_of_another_model(fixture, tmp_path):
    path, weights = tmp_path / 'dat.pth', official_weights(fixture, 0)
    torch.save(dict(model=weights | {'stages.0.local_perception_units.0.weight': torch.ones(1)}), path)
    with pytest.raises(
        CheckpointError, match=r'dat.pth is of DAT\+\+, another network; expected one .* of DAT, from http'
    ):
        build(init_cfg=pretrained(path)).init_weights()
    torch.save(dict(model={'conv1.weight': torch.ones(1)}), path)
    with pytest.raises(CheckpointError, match='dat.pth has no patch_proj.0.weight, expected .* DAT'):
        build(init_cfg=pretrained(path)).init_weights()
    torch.save(dict(model=weights | {'stages.0.unknown.weight': torch.ones(1)}), path)
    with pytest.raises(CheckpointError, match='it has stages.0.unknown.weight, which the backbone lacks$'):
        build(init_cfg=pretrained(path)).init_weights()
    del weights['stages.2.mlps.1.chunk.linear1.bias']
    torch.save(dict(model=weights), path)
    with pytest.raises(CheckpointError, match='it has no stages.2.1.ffn.0.bias$'):
        build(init_cfg=pretrained(path)).init_weights()


def test_named_weights(official_file, tmp_path, monkeypatch):
    """Looked for where torch keeps what it downloads; the message says from where to get the file."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    with pytest.raises(
        CheckpointError, match='download dat_tiny_in1k_224.pth from https://.* to .*checkpoints/dat_tiny'
    ):
        build(init_cfg=pretrained('tiny')).init_weights()
    (tmp_path / 'checkpoints').mkdir()
    official_file.rename(tmp_path / 'checkpoints/dat_tiny_in1k_224.pth')
    build(init_cfg=pretrained('tiny')).init_weights()
    assert 'merges.0.proj.weight' in CheckpointLoader.load_checkpoint('dat://tiny', map_location='cpu')


# The configs


@pytest.mark.parametrize(
    ('name', 'backbone', 'tables'),
    [
        ('deformable-detr_dat-t_16xb2-50e_coco', (2e-5, 1e-4), (2e-5, 1e-4)),  # Deformable DETR decays all weights
        ('mask-rcnn_dat-t_fpn_8xb2-1x_coco', (1e-4, 0.05), (1e-4, 0.0)),
    ],
)
def test_learning_rate_and_decay(name, backbone, tables):
    config = get_config(name)
    model = nn.ModuleDict(dict(backbone=build()))
    groups = build_optim_wrapper(model, config.optim_wrapper).param_groups
    found = {id(group['params'][0]): (group['lr'], group['weight_decay']) for group in groups}
    block = model.backbone.stages[2][1]
    assert found[id(block.attn.query_proj.weight)] == pytest.approx(backbone)
    assert found[id(block.attn.position_bias_table)] == found[id(block.norm1.weight)] == pytest.approx(tables)
