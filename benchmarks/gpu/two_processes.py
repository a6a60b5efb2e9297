"""Two processes train a small Deformable DETR together: the same parameters in both after some steps.

torchrun --nproc-per-node 2 benchmarks/gpu/two_processes.py    # NCCL on two GPUs, else gloo on the CPU
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[1]))
from _measure import build_model

import mmdet_ddetr
from mmdet_ddetr.testing import make_batch, shrink


def main():
    from mmengine.registry import init_default_scope

    rank, on_gpus = int(os.environ['LOCAL_RANK']), torch.cuda.device_count() >= 2
    dist.init_process_group('nccl' if on_gpus else 'gloo')
    device = torch.device('cuda', rank) if on_gpus else torch.device('cpu')
    if on_gpus:
        torch.cuda.set_device(device)
    init_default_scope('mmdet')
    torch.manual_seed(rank)  # different at first: DDP has to send those of rank 0
    config = mmdet_ddetr.get_config('deformable-detr-refine-twostage_r50_16xb2-50e_coco')
    model = build_model(shrink(config.model)).to(device).train()
    model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank] if on_gpus else None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for step in range(3):
        inputs, samples = make_batch([(96, 128), (80, 96)], [3, 1 + rank], num_classes=80, seed=10 * step + rank)
        losses = model(inputs.to(device), [sample.to(device) for sample in samples], mode='loss')
        total, _ = model.module.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    mine = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(theirs, mine)
    assert mine.isfinite().all() and all(torch.equal(mine, other) for other in theirs), 'the processes differ'
    if rank == 0:
        print(f'{dist.get_world_size()} processes, {dist.get_backend()}: the same {mine.numel()} parameters')
    dist.destroy_process_group()


if __name__ == '__main__':
    main()
