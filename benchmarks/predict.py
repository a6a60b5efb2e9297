"""Predictions on a CPU, from pixels to boxes: this package's beside those of others, each in a process of its own.

    pip install openvino transformers onnx onnxscript onnxruntime     # a peer that is missing is left out
    OMP_WAIT_POLICY=passive python benchmarks/predict.py --model r50 --images 1

Batches of images of one size and random weights, the same for our own model, its exported files and mmdet's; peers in
turns. Exported files are of a fixed size and are kept in the folder of ``--out``, where each run adds its table to
``predict.md``. All peers are in memory at once: where there is too little of it, name some at a time, mmdet among them.

    OMP_WAIT_POLICY=passive python benchmarks/predict.py --images 4 --peers mmdet optimised onnxruntime OpenVINO
"""

import argparse
import importlib.util
import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from _measure import Step, build_model, machine, milliseconds, table, times

# our config, mmdet's for the same, size of an image (h, w)
MODELS = {
    'r50': ('deformable-detr_r50_16xb2-50e_coco', 'deformable-detr_r50_16xb2-50e_coco', (800, 1333)),
    'r50-two-stage': (
        'deformable-detr-refine-twostage_r50_16xb2-50e_coco',
        'deformable-detr-refine-twostage_r50_16xb2-50e_coco',
        (800, 1333),
    ),
    'lite0': (
        'deformable-detr-refine-twostage-dn_lite0_shapes',
        'deformable-detr-refine_r50_16xb2-50e_coco',  # mmdet's two-stage variant needs 256 channels
        (192, 192),
    ),
}


@dataclass(frozen=True)
class Case:
    model: str
    images: int
    size: tuple[int, int]  # (h, w)

    @property
    def config(self):
        from mmdet_ddetr import get_config

        return get_config(MODELS[self.model][0])

    @property
    def pixels(self) -> torch.Tensor:  # [B, 3, H, W] uint8
        rng = torch.Generator().manual_seed(0)
        return torch.randint(256, (self.images, 3, *self.size), dtype=torch.uint8, generator=rng)


def built(config) -> torch.nn.Module:
    import mmdet_ddetr  # noqa: F401  (stands in for a compiled mmcv)
    from mmdet.apis import DetInferencer  # noqa: F401  (registers everything of mmdet)  # isort: skip
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    torch.manual_seed(0)
    model = build_model(config)
    model.eval()
    return model


def mmdet_step(model: torch.nn.Module, case: Case) -> Step:
    from mmdet.structures import DetDataSample

    meta = dict(img_shape=case.size, ori_shape=case.size, scale_factor=(1.0, 1.0))
    batch = list(case.pixels)

    def predict():
        samples = [DetDataSample(metainfo=meta) for _ in batch]
        return model.test_step(dict(inputs=batch, data_samples=samples))

    return torch.no_grad()(predict)


def mmdet(case: Case, folder: Path) -> Step:
    from mmengine.hub import get_config

    theirs = get_config(f'mmdet::deformable_detr/{MODELS[case.model][1]}.py').model
    if case.model == 'lite0':  # the parts of our config that mmdet's model has, too
        ours = case.config.model
        for part in ('backbone', 'neck', 'data_preprocessor'):
            theirs[part] = ours[part]
        theirs.num_queries, theirs.bbox_head.num_classes, theirs.bbox_head.embed_dims = 60, 5, 64
        theirs.positional_encoding.num_feats = 32
        for stack, layers in ((theirs.encoder, 2), (theirs.decoder, 3)):
            stack.num_layers = layers
            for key in ('self_attn_cfg', 'cross_attn_cfg'):
                if key in stack.layer_cfg:
                    stack.layer_cfg[key].update(embed_dims=64, num_heads=4)
            stack.layer_cfg.ffn_cfg.update(embed_dims=64, feedforward_channels=256)
    return mmdet_step(built(theirs), case)


def ours(case: Case, folder: Path, dtype: torch.dtype | None = None, compiled: bool = False) -> Step:
    """As it is; with ``dtype``, optimised; or compiled, with constants folded."""
    from mmdet_ddetr import optimize_for_inference

    model = built(case.config.model)
    if dtype is not None:
        model = optimize_for_inference(model, dtype)
    if compiled:
        torch._inductor.config.freezing = True
        model.requires_grad_(False).forward = torch.compile(model.forward)
    return mmdet_step(model, case)


def exported(case: Case, folder: Path, format: str, suffix: str, precision: str = 'f32') -> Step:
    from mmdet_ddetr.export import ExportedDetector, export

    path = folder / f'{case.model}-{case.images}-{"x".join(map(str, case.size))}-{format}{suffix}'
    if not path.exists():
        config = case.config
        classes = tuple(map(str, range(config.model.bbox_head.num_classes)))
        model = built(config.model)
        export(model, config, path, format, classes=classes, size=case.size, batch=case.images)
    batch = case.pixels.float().numpy(), torch.tensor([case.size] * case.images).numpy()
    if precision == 'f32':
        run = ExportedDetector(path, threads=torch.get_num_threads()).run
        return lambda: run(*batch)
    import openvino

    hints = {'INFERENCE_PRECISION_HINT': precision, 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, 'CPU', hints)
    return lambda: compiled(batch)


def transformers(case: Case, folder: Path) -> Step:
    from transformers import (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        DeformableDetrImageProcessor,
        ResNetConfig,
    )

    if case.model == 'lite0':
        raise ValueError('there is no such backbone')
    two_stage = case.model == 'r50-two-stage'
    config = DeformableDetrConfig(
        backbone_config=ResNetConfig(out_features=['stage2', 'stage3', 'stage4']),
        two_stage=two_stage,
        with_box_refine=two_stage,
        num_labels=80,
    )
    torch.manual_seed(0)
    model = DeformableDetrForObjectDetection(config).eval()
    post_process = DeformableDetrImageProcessor().post_process_object_detection
    mean, std = (torch.tensor(x)[:, None, None] for x in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    batch, sizes = case.pixels, [case.size] * case.images
    mask = torch.ones(case.images, *case.size, dtype=torch.int64)

    def predict():
        return post_process(model((batch - mean) / std, mask), threshold=0.0, target_sizes=sizes, top_k=100)

    return torch.no_grad()(predict)


# what makes the step, and the package that it needs
PEERS = {
    'mmdet': (mmdet, None),
    'mmdet_ddetr': (ours, None),
    'optimised': (partial(ours, dtype=torch.float32), None),
    'optimised bf16': (partial(ours, dtype=torch.bfloat16), None),
    'torch.compile': (partial(ours, compiled=True), None),
    'AOTInductor': (partial(exported, format='aoti', suffix='.pt2'), None),
    'transformers': (transformers, 'transformers'),
    'onnxruntime': (partial(exported, format='onnx', suffix='.onnx'), 'onnxruntime'),
    'OpenVINO': (partial(exported, format='openvino', suffix='.xml'), 'openvino'),
    'OpenVINO bf16': (partial(exported, format='openvino', suffix='.xml', precision='bf16'), 'openvino'),
}


class Process:
    """A step in a process of its own: no peer has another's memory or settings."""

    def __init__(self, make: partial):
        context = multiprocessing.get_context('spawn')
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(make, theirs, torch.get_num_threads()), daemon=True)
        self.process.start()
        theirs.close()
        self()  # until it is there

    def __call__(self) -> None:
        self.pipe.send(None)
        error = self.pipe.recv()
        if error is not None:
            raise RuntimeError(error)


def _serve(make: partial, pipe, threads: int) -> None:
    torch.set_num_threads(threads)
    pipe.recv()
    try:
        step = make()
        step()
    except Exception as error:
        pipe.send(f'{type(error).__name__}: {str(error).splitlines()[0]}')
        raise
    pipe.send(None)
    while True:
        pipe.recv()
        step()
        pipe.send(None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default=['r50'], nargs='+', choices=MODELS)
    parser.add_argument('--images', type=int, nargs='+', default=[1], help='images of a batch (default: 1)')
    parser.add_argument('--size', nargs=2, type=int, metavar=('H', 'W'), help="default: the models' usual ones")
    parser.add_argument('--peers', nargs='+', default=list(PEERS), choices=PEERS)
    parser.add_argument('--seconds', type=float, default=20, help='of each peer, at least three runs (default: 20)')
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/benchmarks'), help='for exported files, and the table'
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / 'predict.md'
    before = file.read_text() + '\n' if file.exists() else ''
    rows, header = [], ['model', 'images', 'peer', 'ms', "times mmdet's speed"]
    for name in args.model:
        for images in args.images:
            steps = {}
            for peer in args.peers:
                make, package = PEERS[peer]
                if package and not importlib.util.find_spec(package):
                    print(f'{peer} left out: it is not installed', flush=True)
                    continue
                try:
                    steps[peer] = Process(
                        partial(make, Case(name, images, tuple(args.size or MODELS[name][2])), args.out)
                    )
                except (RuntimeError, EOFError) as error:
                    print(f'{peer} left out of {name}, {images} images: {error}', flush=True)
            taken = times(steps, args.seconds)
            for peer, samples in taken.items():
                ratio = f'{min(taken["mmdet"]) / min(samples):.2f}' if 'mmdet' in taken else ''
                rows.append([name, str(images), peer, milliseconds(samples), ratio])
            for step in steps.values():
                step.process.kill()
            text = f'{machine("cpu")}\n\n{table(header, rows)}\n'
            file.write_text(before + text)
    print(text)


if __name__ == '__main__':
    main()
