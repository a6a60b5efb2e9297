"""One training step of Deformable DETR R50: time and memory of this package's model beside MMDetection's own.

    OMP_WAIT_POLICY=passive python benchmarks/train_step.py

MMDetection's config twice: as it is (attention by grid_sample where mmcv is not compiled), and with this package's
detector and head. Two images of 600 x 800 with seven boxes each; forward, loss, backward, clipping, AdamW; in turns.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from _measure import build_model, machine, milliseconds, peak_memory, table, times
from mmengine.hub import get_config
from mmengine.registry import init_default_scope

from mmdet_ddetr.testing import make_batch  # before mmdet's own: it stands in for a compiled mmcv

OURS = {'type': 'mmdet_ddetr.DeformableDETR', 'bbox_head.type': 'mmdet_ddetr.SetHead'}
PEERS = {'mmdet': {}, 'mmdet_ddetr': OURS}  # changes to the config


def step(changes: dict[str, str], size: tuple[int, int], images: int, device: str):
    """What is timed."""
    from mmdet.apis import DetInferencer  # noqa: F401  (registers everything of mmdet)

    init_default_scope('mmdet')
    config = get_config('mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')
    config.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    torch.manual_seed(0)
    model = build_model(config.model).to(device).train()
    inputs, samples = make_batch([size] * images, [7] * images, num_classes=80)
    inputs, samples = inputs.to(device), [sample.to(device) for sample in samples]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def run():
        loss, _ = model.parse_losses(model.loss(inputs, samples))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu', choices=['cpu', 'cuda'])
    parser.add_argument('--size', nargs=2, type=int, default=[600, 800], metavar=('H', 'W'))
    parser.add_argument('--images', type=int, default=2)
    parser.add_argument('--seconds', type=float, default=30, help='of each peer (default: %(default)s)')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmarks'), help='for train_step.md')
    args = parser.parse_args()
    make = partial(step, size=tuple(args.size), images=args.images, device=args.device)

    memory = {name: peak_memory(make, changes, device=args.device) for name, changes in PEERS.items()}
    taken = times({name: make(changes) for name, changes in PEERS.items()}, args.seconds, args.device)
    rows = [[name, milliseconds(taken[name]), f'{memory[name]:.0f}'] for name in PEERS]
    ratio, share = min(taken['mmdet']) / min(taken['mmdet_ddetr']), memory['mmdet_ddetr'] / memory['mmdet']
    rows.append(['ratio', f'{ratio:.2f}', f'{share:.2f}'])
    text = f'{machine(args.device)}\n\n{table(["", "step, ms", "peak memory, MB"], rows)}\n'
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f'train_step_{args.device}.md').write_text(text)
    print(text)


if __name__ == '__main__':
    main()
