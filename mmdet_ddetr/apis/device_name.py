"""The device that something was measured on, in words."""

import platform
from pathlib import Path

import torch


def device_name(device: str) -> str:
    """Name, threads and instructions of the processor, or the name of the GPU.

    Args:
        device: 'cpu', 'cuda', 'cuda:1', ...
    """
    if device == 'cpu':
        info = Path('/proc/cpuinfo')
        models = [line for line in info.read_text().splitlines() if 'model name' in line] if info.exists() else []
        name = models[0].split(':')[1].strip() if models else platform.processor() or platform.machine()
        threads = torch.get_num_threads()
        return f'{name}, {threads} thread{"s" * (threads > 1)}, {torch.backends.cpu.get_cpu_capability()}'
    return torch.cuda.get_device_name(device)
