"""Times of all ops on the GPU beside their peers, into a JSON file that grows case by case.

    python benchmarks/gpu/ops.py --out ops.json

Times are of the device, by CUDA events: the encoder's with a flushed L2 cache, since in a training other layers have
run between two calls; the decoder's with a warm one, since its value has just been written. The bytes are those that
must move once; the copy bandwidth of the device is beside them. Without a GPU, one small case shows that it runs.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import deform_conv as convolution
import deform_roi_pool as pooling
import ms_deform_attn as attention
from _measure import machine
from timing import copy_bandwidth, device, device_is_broken, device_times, host_times, on_gpu, start_again, summary

import mmdet_ddetr  # noqa: F401  mmcv's path needs it where mmcv is not compiled
from mmdet_ddetr import ops
from mmdet_ddetr.ops import reference

DETERMINISTIC = 'ms_deform_attn, deterministic'
inputs = lru_cache(1)(attention.inputs)  # once for all peers: an encoder's take the CPU a second
SINGLE_PRECISION = [torch.float32, torch.bfloat16, torch.float16]


def cases() -> list[attention.Case]:
    """The most telling first: time may run out."""
    if not on_gpu():
        return [attention.Case('decoder', 1, 'float32', 'cpu')]
    order = [('encoder', 1), ('decoder', 4), ('encoder', 2), ('decoder', 1), ('encoder', 4), ('decoder', 2)]
    dtypes = ['float32', 'bfloat16', 'float16']
    clustered = [attention.Case(part, B, dtype, 'cuda') for part, B in order for dtype in dtypes]
    uniform = [attention.Case(part, 1, dtype, 'cuda', 'uniform') for part, _ in order[:2] for dtype in dtypes[:2]]
    return [*clustered[:6], *uniform, *clustered[6:]]


def attention_passes(peer: str, case: attention.Case) -> tuple[Callable, Callable]:
    """Forward without a graph, and backward alone, of one peer."""
    tensors = {name: tensor.detach() for name, tensor in inputs(case).items()}
    rest = [tensors[name] for name in ('reference', 'offsets', 'logits')]
    fused = peer in (attention.FUSED, attention.UNFUSED)
    if not fused:
        rest = attention.points(*rest)
    leaves = [tensors['value'], *rest]
    trained = [leaves[0], *leaves[2:]] if fused else leaves  # an encoder's reference points are constants
    call = attention.function(attention.OURS if peer == DETERMINISTIC else peer)
    forward = torch.no_grad()(lambda: call(*leaves))
    for leaf in trained:
        leaf.requires_grad_()
    output = call(*leaves)

    def backward():
        return torch.autograd.grad(output, trained, tensors['grad_output'], retain_graph=True)

    return forward, backward


def bytes_moved(case: attention.Case) -> dict[str, int]:
    """What must be read and written once: rows of value that are hit, output, locations and weights in fp32."""
    size = torch.empty((), dtype=getattr(torch, case.dtype)).element_size()
    heads = case.B * (attention.S if case.part == 'encoder' else 300) * attention.M
    samples = heads * attention.L * attention.K
    rows = case.B * attention.S * attention.M  # of D channels
    hit, row = min(rows, 4 * samples), size * attention.D
    points = 4 * 3 * samples
    return dict(
        forward=hit * row + heads * row + points,
        backward=hit * row + rows * row + heads * row + 2 * points,  # the gradient of value is written as a whole
    )


def measure_attention(peer: str, case: attention.Case, bandwidth: float) -> dict:
    """By pass: times, achieved bytes a second and their share of the copy's, host time; or the error."""
    torch.use_deterministic_algorithms(peer == DETERMINISTIC, warn_only=True)
    result = {}
    try:
        for what, step in zip(('forward', 'backward'), attention_passes(peer, case)):
            figures = summary(device_times(step, 50 if on_gpu() else 3, cold=case.part == 'encoder'))
            rate = bytes_moved(case)[what] / (figures['us'] * 1e-6)
            result[what] = dict(figures, gb_per_s=rate / 1e9, of_copy=rate / bandwidth)
            if case.part == 'decoder':
                result[what]['host_us'] = summary(host_times(step, 100 if on_gpu() else 3))['us']
    except Exception as error:  # noqa: BLE001  a peer's limits, and its faults, are its own
        return dict(error=f'{type(error).__name__}: {error}'[:300], broke_device=device_is_broken())
    finally:
        torch.use_deterministic_algorithms(False)
    return result


def measure_losses() -> dict[str, dict]:
    """Focal loss of a two-stage encoder and matching cost of six layers, beside plain PyTorch."""
    N, C, Q, L, B, T = (44446, 80, 300, 6, 2, 14) if on_gpu() else (300, 80, 20, 2, 2, 4)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    result = {}
    for dtype in SINGLE_PRECISION:
        logits = (random(N, C) * 8 - 8).to(device(), dtype).requires_grad_()
        labels = torch.randint(C + 1, (N,), generator=generator).to(device())

        def loss(function, logits=logits, labels=labels):
            return torch.autograd.grad(function(logits, labels).sum(), logits)

        name = f'sigmoid_focal_loss [{N}, {C}], {str(dtype)[6:]}, forward + backward'
        result[name] = {
            'sigmoid_focal_loss': summary(device_times(lambda: loss(ops.sigmoid_focal_loss))),  # noqa: B023
            'plain PyTorch': summary(
                device_times(lambda: loss(lambda x, y: reference.sigmoid_focal_loss(x, y, 0.25, 2.0)))  # noqa: B023
            ),
        }
    scores, boxes = random(L, B, Q, C) * 4 - 4, random(L, B, Q, 4) * 0.5 + 0.1
    image, labels = torch.arange(T) % B, torch.randint(C, (T,), generator=generator)
    arguments = [x.to(device()) for x in (scores, boxes, image.sort().values, labels, random(T, 4) * 0.5 + 0.1)]
    step = torch.no_grad()(lambda: torch.ops.mmdet_ddetr.matching_cost(*arguments, 2.0, 5.0, 2.0, 0.25, 2.0, True))
    result[f'matching_cost [{L}, {T}, {Q}]'] = {
        'matching_cost': dict(summary(device_times(step)), host_us=summary(host_times(step, 100))['us'])
    }
    return result


def forward_and_backward(function: Callable, inputs: list[torch.Tensor], grad_output: torch.Tensor) -> dict:
    """Times of both passes of one peer, or its error."""
    try:
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        output = function(*leaves)

        def backward():
            return torch.autograd.grad(output, leaves, grad_output, retain_graph=True, allow_unused=True)

        steps = dict(forward=torch.no_grad()(lambda: function(*leaves)), backward=backward)
        repeats = 30 if on_gpu() else 1
        return {what: summary(device_times(step, repeats, cold=True)) for what, step in steps.items()}
    except Exception as error:  # noqa: BLE001  as above
        return dict(error=f'{type(error).__name__}: {error}'[:300])


def measure_deformable() -> dict[str, dict]:
    """Deformable convolution of R50 and ResNeXt-101 at 800 x 1333 and RoI pooling, beside their peers."""
    result = {}
    peers = [peer for peer in convolution.PEERS if peer != 'mmcv']  # is not compiled here
    for layer in convolution.LAYERS if on_gpu() else convolution.LAYERS[2:3]:
        for dtype in (torch.float32, torch.bfloat16):
            tensors = [tensor.to(device(), dtype) for tensor in convolution.inputs(layer, 2)]
            grad_output = torch.randn(2, layer.C, *layer.size).to(device(), dtype)
            case = result[f'deform_conv2d, {layer.name}, B=2, {str(dtype)[6:]}'] = {}
            for peer in peers:
                try:
                    function = convolution.PEERS[peer](None)
                except Exception:  # noqa: BLE001  not installed
                    continue
                with torch.device(device()):
                    case[peer] = forward_and_backward(function, tensors, grad_output)
    with torch.device(device()):
        for name, make in pooling.CASES.items() if on_gpu() else []:
            tensors, functions = make()
            with torch.no_grad():
                grad_output = torch.randn_like(functions[min(functions)](*tensors))
            result[name] = {
                peer: forward_and_backward(function, tensors, grad_output) for peer, function in functions.items()
            }
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='JSON file')
    parser.add_argument('--go-on', action='store_true', help='measure what the file does not have')
    args = parser.parse_args()
    if args.go_on:
        result = json.loads(args.out.read_text())
    else:
        result = dict(machine=machine(device()), copy_gb_per_s=copy_bandwidth() / 1e9, attention={})

    def save():
        args.out.write_text(json.dumps(result, indent=1))

    ours = [attention.OURS, attention.FUSED, attention.UNFUSED, DETERMINISTIC]
    peers = [*ours, *(peer for peer in attention.available(device()) if peer not in ours)]
    for i, case in enumerate(cases()):
        done = result['attention'].setdefault(case.name, {})
        for peer in peers:
            breaks = any(figures.get(peer, {}).get('broke_device') for figures in result['attention'].values())
            if peer in done or breaks:
                continue
            done[peer] = measure_attention(peer, case, result['copy_gb_per_s'] * 1e9)
            print(case.name, peer, done[peer].get('forward', done[peer]), flush=True)
            save()
            if done[peer].get('broke_device'):
                start_again()
        if 'losses' not in result and (i >= 5 or not on_gpu()):
            result['losses'] = measure_losses()
            save()
            result['deformable'] = measure_deformable()
            save()


if __name__ == '__main__':
    main()
