"""Dropout and FFN of the transformer layers: the results of PyTorch's and mmcv's modules, and what training keeps."""

import copy
import pickle

import pytest
import torch
from kept import kept_by
from mmcv.cnn.bricks.drop import build_dropout
from mmcv.cnn.bricks.transformer import FFN as MMCVFFN
from torch import nn

from mmdet_ddetr.layers import FFN, DeformableDecoder, DeformableEncoder, DetrEncoder, Dropout
from mmdet_ddetr.layers.dropout import replace_dropout
from mmdet_ddetr.ops import _load

C, HIDDEN, S = 32, 96, 30
SHAPES = [(4, 6), (2, 3)]
SELF_ATTN = dict(embed_dims=C, num_heads=4, dropout=0.1, batch_first=True)
DEFORM_ATTN = dict(**SELF_ATTN, num_levels=2)

needs_extension = pytest.mark.skipif(not _load.EXTENSION_LOADED, reason='the extension is not built')


def encoder(p=0.1):
    ffn = dict(embed_dims=C, feedforward_channels=HIDDEN, ffn_drop=p, dropout_layer=dict(type='Dropout', drop_prob=p))
    return DeformableEncoder(1, dict(self_attn_cfg=DEFORM_ATTN | dict(dropout=p), ffn_cfg=ffn)).train()


def run(encoder):
    query = torch.randn(2, S, C, requires_grad=True)
    return encoder(query, torch.randn(2, S, C), None, SHAPES, torch.ones(2, 2, 2))


def graph_of(output):
    """Names of the nodes of the autograd graph."""
    seen, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return {node.name() for node in seen}


# --- Dropout ----------------------------------------------------------------------------------------------------------


def test_replace_dropout():
    class Other(nn.Dropout):
        def forward(self, input):
            return -input

    model = nn.Sequential(nn.Dropout(0.3), build_dropout(dict(type='Dropout', drop_prob=0.2)), Other(), nn.Linear(3, 3))
    children, keys = list(model), list(model.state_dict())
    replace_dropout(model.eval())
    assert [type(child) for child in model] == [Dropout, Dropout, Other, nn.Linear]
    assert all(child is before for child, before in zip(model, children, strict=True))
    assert [child.p for child in model[:2]] == [0.3, 0.2]
    assert list(model.state_dict()) == keys
    assert not any(child.training for child in model)
    copies = copy.deepcopy(model[0]), pickle.loads(pickle.dumps(model[0]))
    assert [(type(copied), copied.p) for copied in copies] == [(Dropout, 0.3)] * 2


@pytest.mark.parametrize('inplace', [False, True])
def test_dropout(inplace):
    dropout, input = Dropout(0.3, inplace), torch.ones(1000)
    assert dropout.eval()(input) is input
    output = dropout.train()(input)
    assert 200 < (output == 0).sum() < 400
    assert (output is input) == inplace


@pytest.mark.parametrize('stack', ['deformable encoder', 'deformable decoder', 'encoder'])
def test_no_other_dropout_in_the_layers(stack):
    ffn = dict(embed_dims=C, feedforward_channels=HIDDEN, ffn_drop=0.1)
    if stack == 'deformable decoder':
        layers = DeformableDecoder(2, dict(self_attn_cfg=SELF_ATTN, cross_attn_cfg=DEFORM_ATTN, ffn_cfg=ffn))
    elif stack == 'encoder':
        layers = DetrEncoder(2, dict(self_attn_cfg=SELF_ATTN, ffn_cfg=ffn))
    else:
        layers = DeformableEncoder(2, dict(self_attn_cfg=DEFORM_ATTN, ffn_cfg=ffn))
    found = {type(module) for module in layers.modules() if isinstance(module, nn.Dropout)}
    assert found == {Dropout}


# --- FFN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('train', [True, False], ids=['train', 'eval'])
@pytest.mark.parametrize(
    'kwargs',
    [{}, dict(num_fcs=3), dict(act_cfg=dict(type='GELU')), dict(add_identity=False), dict(act_cfg=dict(type='ReLU'))],
    ids=str,
)
def test_ffn_agrees_with_mmcv(kwargs, train):
    """With dropout, from the same seeds: ReLU and dropout change places without changing a bit."""
    kwargs = dict(embed_dims=C, feedforward_channels=HIDDEN, ffn_drop=0.2) | kwargs
    theirs, ours = MMCVFFN(**kwargs).train(train), FFN(**kwargs).train(train)
    replace_dropout(theirs)
    replace_dropout(ours)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, identity = torch.randn(2, 5, C), torch.randn(2, 5, C)
    for args in ((x,), (x, identity), (x.transpose(0, 1), identity.transpose(0, 1))):
        runs = []
        for ffn in (theirs, ours):
            torch.manual_seed(0)
            leaves = [arg.clone().requires_grad_() for arg in args]
            output = ffn(*leaves)
            runs.append([output, *torch.autograd.grad(output.square().sum(), [leaves[0], *ffn.parameters()])])
        for got, expected in zip(*runs, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@needs_extension
def test_hidden_layer_is_kept_once():
    """mmcv's order keeps it before dropout for ReLU, after dropout for the linear layer."""
    kwargs = dict(embed_dims=C, feedforward_channels=HIDDEN, ffn_drop=0.2)
    kept = []
    for ffn in (MMCVFFN(**kwargs), FFN(**kwargs)):
        replace_dropout(ffn)
        kept.append(kept_by(lambda ffn=ffn: ffn(torch.randn(2, S, C)))[1])
    assert kept[0] - kept[1] == 2 * S * HIDDEN * 4


# --- an encoder layer in training -------------------------------------------------------------------------------------


@pytest.mark.parametrize('p', [0.0, 0.1])
def test_autograd_copies_no_view(p):
    """What writes in place to a view leaves these nodes, each with copies of a whole tensor."""
    names = graph_of(run(encoder(p)))
    assert 'ReluBackward0' in names
    assert not [name for name in names if 'CopySlices' in name or 'AsStrided' in name]


@needs_extension
def test_dropout_keeps_seeds_alone():
    """Four of 8 bytes: attention, hidden layer, output, residual."""
    _, without = kept_by(lambda: run(encoder(0.0)))
    _, kept = kept_by(lambda: run(encoder(0.1)))
    assert kept - without == 4 * 8
