"""A training step and a prediction of Deformable DETR R50 on the GPU, beside MMDetection's model, into a JSON file.

    python benchmarks/gpu/model.py --out model.json

Two images of 800 x 1333 with seven boxes each; random weights. Wall-clock time between two waits for the device, since
matching needs the host. Without a GPU: one small image, few repeats, to show that the script runs.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from functools import cache, partial
from pathlib import Path

import torch
from timing import device, device_is_broken, on_gpu, start_again

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import build_model, machine

from mmdet_ddetr.testing import make_batch  # before mmdet's own: it stands in for a compiled mmcv

OURS = {'type': 'mmdet_ddetr.DeformableDETR', 'bbox_head.type': 'mmdet_ddetr.SetHead'}  # changes to mmdet's config
SIZE, IMAGES, BOXES = ((800, 1333), 2, 7) if on_gpu() else ((64, 96), 2, 2)


@cache
def build(ours: bool):
    """The model and a batch for it; one for all steps, whose learning rate is zero."""
    from mmdet.apis import DetInferencer  # noqa: F401  registers everything of mmdet
    from mmengine.hub import get_config
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    config = get_config('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')
    config.merge_from_dict({f'model.{key}': value for key, value in (OURS if ours else {}).items()})
    torch.manual_seed(0)
    model = build_model(config.model).to(device())
    inputs, samples = make_batch([SIZE] * IMAGES, [BOXES] * IMAGES, num_classes=80)
    return model, inputs.to(device()), [sample.to(device()) for sample in samples]


def training(ours: bool, dtype=torch.float32, compiled: bool = False):
    """A step as mmengine's OptimWrapper does it: forward, loss, backward, clipping, AdamW."""
    model, inputs, samples = build(ours)
    model.train()
    loss = torch.compile(model.loss, dynamic=False) if compiled else model.loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step():
        with torch.autocast(device(), dtype=dtype, enabled=dtype != torch.float32):
            total, _ = model.parse_losses(loss(inputs, samples))
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return total.detach()

    return step


def amp_optim_wrapper(ours: bool):
    """mmengine's AmpOptimWrapper with loss scaling, through ``train_step``."""
    from mmengine.optim import AmpOptimWrapper

    model, inputs, samples = build(ours)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    wrapper = AmpOptimWrapper(loss_scale='dynamic', optimizer=optimizer, clip_grad=dict(max_norm=0.1))

    def step():
        with wrapper.optim_context(model):
            total, _ = model.parse_losses(model.loss(inputs, samples))
        wrapper.update_params(total)
        return total.detach()

    return step


def prediction(ours: bool, dtype=torch.float32, compiled: bool = False, graph: bool = False):
    """Images to logits and boxes; as a CUDA graph where asked for."""
    model, inputs, samples = build(ours)
    model.eval()
    forward = partial(model.forward, inputs, samples, mode='tensor')
    call = torch.compile(forward, dynamic=False) if compiled else forward

    @torch.no_grad()
    def step():
        with torch.autocast(device(), dtype=dtype, enabled=dtype != torch.float32):
            return call()

    if not graph:
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            expected = step()
    torch.cuda.current_stream().wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        outputs = step()
    captured.replay()
    torch.testing.assert_close(outputs, expected, rtol=1e-3, atol=1e-3)
    return captured.replay


@contextlib.contextmanager
def fallbacks():
    """This package's attention op in plain PyTorch, as an installation without the extension has them."""
    from mmdet_ddetr.layers import ms_deform_attn as layer
    from mmdet_ddetr.ops import reference

    fused = layer.ms_deform_attn_fused
    layer.ms_deform_attn_fused = reference.ms_deform_attn_fused
    try:
        yield
    finally:
        layer.ms_deform_attn_fused = fused


def wall_ms(step, repeats: int) -> dict[str, float]:
    wait = torch.cuda.synchronize if on_gpu() else lambda: None
    for _ in range(3 if on_gpu() else 1):
        step()
    wait()
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = step()
        wait()
        times.append((time.perf_counter() - start) * 1e3)
    figures = dict(ms=statistics.median(times), min_ms=min(times), repeats=repeats)
    if on_gpu():
        figures['peak_mb'] = torch.cuda.max_memory_allocated() / 2**20
    if isinstance(result, torch.Tensor) and result.ndim == 0:
        figures['loss'] = float(result)
    return figures


def variants() -> dict[str, tuple]:
    """Name -> (what makes the step, context); the most telling first."""
    bf16, fp16 = torch.bfloat16, torch.float16
    nothing = contextlib.nullcontext
    result = {
        'train, fp32': (partial(training, True), nothing),
        'train, fp32, mmdet': (partial(training, False), nothing),
        'train, bf16': (partial(training, True, bf16), nothing),
        'predict, fp32': (partial(prediction, True), nothing),
        'predict, fp32, mmdet': (partial(prediction, False), nothing),
        'predict, bf16': (partial(prediction, True, bf16), nothing),
    }
    if on_gpu():
        result |= {
            'train, fp16, AmpOptimWrapper': (partial(amp_optim_wrapper, True), nothing),
            'train, fp16, AmpOptimWrapper, mmdet': (partial(amp_optim_wrapper, False), nothing),
            'predict, fp16': (partial(prediction, True, fp16), nothing),
            'predict, fp16, mmdet': (partial(prediction, False, fp16), nothing),
            'predict, fp32, CUDA graph': (partial(prediction, True, graph=True), nothing),
            'predict, bf16, CUDA graph': (partial(prediction, True, bf16, graph=True), nothing),
            'predict, bf16, compiled': (partial(prediction, True, bf16, True), nothing),
            'train, bf16, compiled': (partial(training, True, bf16, True), nothing),
        }
    result |= {
        'train, fp32, attention in plain PyTorch': (partial(training, True), fallbacks),
        'predict, fp32, attention in plain PyTorch': (partial(prediction, True), fallbacks),
    }
    return result


def use_mmcv_kernel() -> bool:
    """Give mmdet's model mmcv's CUDA kernel, where peers.py has built it; else grid_sample, not this package's ops."""
    from mmcv.ops import multi_scale_deform_attn as module
    from ms_deform_attn import mmcv_kernels

    try:
        module.ext_module = mmcv_kernels()
    except ImportError:
        module.IS_CUDA_AVAILABLE = False  # what mmcv asks before it takes its kernel, for which ours stands in
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='JSON file')
    parser.add_argument('--go-on', action='store_true', help='measure what the file does not have')
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    result = dict(machine=machine(device()), size=SIZE, images=IMAGES, mmcv_kernel=use_mmcv_kernel(), steps={})
    if args.go_on:
        result['steps'] = json.loads(args.out.read_text())['steps']
    for name, (make, context) in variants().items():
        if name in result['steps']:
            continue
        start = time.monotonic()
        try:
            with context():
                result['steps'][name] = wall_ms(make(), 10 if on_gpu() else 1)
        except Exception as error:  # noqa: BLE001  one variant that fails must not cost the others
            result['steps'][name] = dict(error=f'{type(error).__name__}: {error}'[:500])
        print(f'{time.monotonic() - start:.1f} s: {name}', result['steps'][name], flush=True)
        args.out.write_text(json.dumps(result, indent=1))
        if 'error' in result['steps'][name] and device_is_broken():
            start_again()
        torch._dynamo.reset()
        if on_gpu():
            torch.cuda.empty_cache()


if __name__ == '__main__':
    main()
