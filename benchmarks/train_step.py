"""A training step, or a prediction, of a detector R50: time and memory of this package's beside those of others.

    OMP_WAIT_POLICY=passive python benchmarks/train_step.py
    OMP_WAIT_POLICY=passive python benchmarks/train_step.py --model dab-detr --predict
    OMP_WAIT_POLICY=passive python benchmarks/train_step.py --data DIR --config NAME[,key=value...] ... --tree OTHER

MMDetection's config twice: as it is (attention by grid_sample where mmcv is not compiled), and with this package's
detector and head. Of Conditional and DAB-DETR also Hugging Face's, where transformers is installed. Two images of 600 x
800 with seven boxes each; forward, loss, backward, clipping, AdamW; in turns.

With --config it is the step of that config, of this package, on a batch of the data in DIR, a folder in COCO format;
with --tree beside the same of another checkout of the package, which is built there; each waits for its threads as it
does by itself, or as variables behind the checkout say: --tree OTHER,OMP_WAIT_POLICY=passive
"""

import argparse
import contextlib
import importlib.util
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from mmdet_ddetr.testing import make_batch  # isort: skip  # sets how long threads wait; stands in for a compiled mmcv
import torch
from _measure import build_model, machine, milliseconds, peak_memory, table, times
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

# config of mmdet's, our type, transformers' name and the dropout of mmdet's config, which is not transformers' default
MODELS = {
    'deformable-detr': ('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', 'DeformableDETR', None, None),
    'conditional-detr': (
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        'ConditionalDETR',
        'ConditionalDetr',
        0.1,
    ),
    'dab-detr': ('dab_detr/dab-detr_r50_8xb2-50e_coco.py', 'DABDETR', 'DabDetr', 0.0),
}


def mmdet_model(config: str, our_type: str | None, device: str):
    """mmdet's model, or ours for the same config: forward, loss and predict of a batch."""
    from mmdet.apis import DetInferencer  # noqa: F401  (registers everything of mmdet)

    init_default_scope('mmdet')
    config = get_config(f'mmdet::{config}').model
    if our_type:
        config.type, config.bbox_head.type = f'mmdet_ddetr.{our_type}', 'mmdet_ddetr.SetHead'
    model = build_model(config).to(device)
    return model, lambda *batch: model.parse_losses(model.loss(*batch))[0], model.predict


def transformers_model(name: str, dropout: float, device: str):
    """The model of the same size, with transformers' own ResNet."""
    import transformers

    backbone = transformers.ResNetConfig(out_features=['stage4'])
    config = getattr(transformers, f'{name}Config')(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        num_queries=300,
        num_labels=80,
        auxiliary_loss=True,
        dropout=dropout,
        attention_dropout=dropout,
        activation_dropout=dropout,
    )
    model = getattr(transformers, f'{name}ForObjectDetection')(config).to(device)
    for key, parameter in model.model.backbone.named_parameters():  # as in the others; else it trains none, or all
        parameter.requires_grad_('stages' in key and 'stages.0' not in key)
    post_process = transformers.models.conditional_detr.ConditionalDetrImageProcessor().post_process_object_detection

    def loss(inputs, samples):
        labels = []
        for sample in samples:
            truth, (h, w) = sample.gt_instances, sample.img_shape
            x1, y1, x2, y2 = (truth.bboxes / truth.bboxes.new_tensor([w, h, w, h])).unbind(-1)
            boxes = torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)
            labels.append(dict(class_labels=truth.labels, boxes=boxes))
        return model(pixel_values=inputs, labels=labels).loss

    def predict(inputs, samples):
        sizes = [sample.ori_shape for sample in samples]
        return post_process(model(pixel_values=inputs), threshold=0.0, target_sizes=sizes, top_k=100)

    return model, loss, predict


def peers_of(name: str) -> dict[str, partial]:
    config, our_type, theirs, dropout = MODELS[name]
    peers = {'mmdet': partial(mmdet_model, config, None), 'mmdet_ddetr': partial(mmdet_model, config, our_type)}
    if theirs and importlib.util.find_spec('transformers'):
        peers['transformers'] = partial(transformers_model, theirs, dropout)
    return peers


def step(peer: partial, predicts: bool, size: tuple[int, int], images: int, device: str):
    """What is timed."""
    torch.manual_seed(0)
    model, loss, predict = peer(device)
    model.train(not predicts)
    inputs, samples = make_batch([size] * images, [7] * images, num_classes=80)
    inputs, samples = inputs.to(device), [sample.to(device) for sample in samples]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def train():
        value = loss(inputs, samples)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return torch.no_grad()(lambda: predict(inputs, samples)) if predicts else train


class OtherProcess:
    """A config's step in a process of its own, with the package of a checkout.

    Args:
        tree: the checkout, then variables of the process: ``DIR,KEY=VALUE,...``.
    """

    def __init__(self, tree: str, config: str, data: str):
        from mmdet_ddetr.waiting import ROUNDS  # which another checkout, with this file, need not have

        folder, *variables = tree.split(',')
        command = [sys.executable, '-W', 'ignore', __file__, '--serve', '--config', config, '--data', data]
        own = dict(variable.split('=', 1) for variable in variables)
        environment = {**os.environ, 'PYTHONPATH': str(Path(folder).resolve())}
        if environment.get('GOMP_SPINCOUNT') == ROUNDS:
            del environment['GOMP_SPINCOUNT']  # it is this package's, which this process has imported
        self.process = subprocess.Popen(
            command, env={**environment, **own}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self):
        with contextlib.suppress(BrokenPipeError):  # it has ended, and said why
            print(file=self.process.stdin, flush=True)
        if not self.process.stdout.readline():
            sys.exit(f'the process ended with {self.process.wait()}; see above')


def serve(config: str, data: str):
    """A step for each line of stdin."""
    from convergence import Model, make_step

    answers, sys.stdout = sys.stdout, sys.stderr
    step = make_step(Model.parse(f'{os.getpid()}={config}'), data, Path('work_dirs/benchmarks'))
    for _ in sys.stdin:
        step()
        print(file=answers, flush=True)


def compare_trees(configs: list[str], data: str, trees: list[str], seconds: float) -> str:
    here = str(Path(__file__).parents[1])
    steps = {(config, tree): OtherProcess(tree, config, data) for config in configs for tree in (here, *trees)}
    taken = times(steps, seconds)
    rows = [
        [config, '' if tree == here else tree, milliseconds(t), f'{min(t) / min(taken[config, here]):.2f}']
        for (config, tree), t in taken.items()
    ]
    return table(['config', 'checkout', 'step, ms', 'x this'], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='deformable-detr', choices=MODELS)
    parser.add_argument('--config', nargs='+', help='the step of these configs on --data instead')
    parser.add_argument('--data', help='folder in COCO format')
    parser.add_argument(
        '--tree',
        nargs='+',
        default=[],
        metavar='DIR[,KEY=VALUE...]',
        help='other checkouts of this package, with variables of their environment',
    )
    parser.add_argument('--serve', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--predict', action='store_true', help='a prediction instead of a training step')
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--size', nargs=2, type=int, default=[600, 800], metavar=('H', 'W'))
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--seconds', type=float, default=30, help='of each peer (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'), help='for the table, a .md file')
    args = parser.parse_args()
    if args.config and not args.data:
        parser.error('--config needs --data')
    if args.serve:
        return serve(*args.config, args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.config:
        text = f'{machine("cpu")}\n\n{compare_trees(args.config, args.data, args.tree, args.seconds)}\n'
        (args.out / 'train_step_configs.md').write_text(text)
        return print(text)
    make = partial(step, predicts=args.predict, size=tuple(args.size), images=args.images, device=args.device)
    peers = peers_of(args.model)

    memory = {name: peak_memory(make, peer, device=args.device) for name, peer in peers.items()}
    taken = times({name: make(peer) for name, peer in peers.items()}, args.seconds, args.device)
    rows = [
        [
            name,
            milliseconds(taken[name]),
            f'{min(taken[name]) / min(taken["mmdet_ddetr"]):.2f}',
            f'{memory[name]:.0f}',
            f'{memory[name] / memory["mmdet_ddetr"]:.2f}',
        ]
        for name in peers
    ]
    what = 'prediction' if args.predict else 'step'
    header = [args.model, f'{what}, ms', 'x ours', 'peak memory, MB', 'x ours']
    text = f'{machine(args.device)}\n\n{table(header, rows)}\n'
    (args.out / f'{"predict" if args.predict else "train_step"}_{args.model}_{args.device}.md').write_text(text)
    print(text)


if __name__ == '__main__':
    main()
