"""Random numbers that depend on where training stands instead of on what was drawn before.

mmengine seeds its processes once. After an interruption every generator stands elsewhere: dropout differs, and so do
the augmentations, which moreover depend on the number of workers. Here each iteration and each sample has a seed of
its own, so there is no state to save, for any number of workers and processes.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

MODEL, SAMPLE = range(2)  # streams: what the model draws, what the augmentations draw


def seed_generators(seed: int, stream: int, iteration: int, place: int, cuda: bool = False) -> None:
    """Seed Python's, numpy's and torch's generators.

    Args:
        seed: of the whole training.
        stream: MODEL or SAMPLE.
        iteration: of the training, from 0.
        place: rank (MODEL), or position in the batch of all ranks together (SAMPLE).
        cuda: seed the CUDA generators, too (a worker process must not touch them).
    """
    words = np.random.SeedSequence((seed, stream, iteration, place)).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002  the generator that mmcv's and mmdet's transforms draw from
    torch_seed = int(words[2]) << 32 | int(words[3])
    torch.default_generator.manual_seed(torch_seed)
    if cuda and torch.cuda.is_available():
        torch.cuda.manual_seed_all(torch_seed)


class SeededBatches:
    """A batch sampler whose indices come with the numbers that their samples are seeded by.

    Args:
        batch_sampler: whatever a DataLoader takes, and any epochs that it has are begun with ``set_epoch`` as ever.
        rank, world_size: of this process.

    Attributes:
        iteration: of the training, of the next batch.
        start: batches of earlier iterations are passed over, without loading them.
    """

    def __init__(self, batch_sampler, rank: int, world_size: int):
        self.batch_sampler = batch_sampler
        self.rank = rank
        self.world_size = world_size
        self.iteration = self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        """Batches of (index, iteration, place)."""
        for batch in self.batch_sampler:
            iteration, self.iteration = self.iteration, self.iteration + 1
            if iteration >= self.start:
                yield [(index, iteration, self.rank + self.world_size * i) for i, index in enumerate(batch)]

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name):  # batch_size, and the sampler, whose epoch mmengine sets
        return getattr(self.__dict__['batch_sampler'], name)


class SeededFetch:
    """``dataset.__getitems__``, PyTorch's protocol for whole batches: seed, load, next."""

    def __init__(self, dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __call__(self, batch: list[tuple[int, int, int]]) -> list:
        samples = []
        for index, iteration, place in batch:
            seed_generators(self.seed, SAMPLE, iteration, place)
            samples.append(self.dataset[index])
        return samples


def seed_loader(loader: DataLoader, batch_sampler, seed: int, rank: int, world_size: int) -> SeededBatches:
    """Make ``loader`` draw from ``batch_sampler`` and seed every sample.

    In place, because loop and hooks hold the loader; the dataset stays the object that it is.
    """
    batches = SeededBatches(batch_sampler, rank, world_size)
    loader.dataset.__getitems__ = SeededFetch(loader.dataset, seed)
    vars(loader)['batch_sampler'] = batches  # a plain assignment is forbidden, lest sampler and size contradict it
    return batches
