"""A training that ends when its time is over."""

import math
import time
from collections.abc import Sequence
from itertools import islice

import psutil
import torch
from mmengine.hooks import EMAHook
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import IterBasedTrainLoop

from ..registry import LOOPS
from .budget import Budget

PROBE_BATCHES = 5  # of the val data
SCORING = 1.15  # an evaluation takes so many times its forward passes
clock = time.monotonic
STATE = 'budget'  # in the message hub, and so in checkpoints


@LOOPS.register_module()
class TimedTrainLoop(IterBasedTrainLoop):
    """Trains for a given time: the number of iterations, the learning rate and the evaluations follow the clock.

    See :class:`Budget`. A resumed training has the time that was left. The config has no ``param_scheduler`` beside it.

    Args:
        seconds: for all that this loop does and the test after it; with ``from_start`` for all that the process does
            until then, its imports among them.
        max_iters: iterations of the plan that ``schedule`` belongs to.
        val_interval: iterations of that plan between two evaluations.
        schedule: what would be the config's ``param_scheduler``, in iterations; the learning rate is at each share of
            the time what it would be at that share of the plan.
        test_images: evaluated after the training.
        from_start: for a program that trains and tests once.
        at_most: end after ``max_iters`` iterations, though there is time.
    """

    def __init__(
        self,
        runner,
        dataloader,
        seconds: float,
        max_iters: int,
        val_interval: int,
        schedule: Sequence[dict] = (),
        test_images: int = 0,
        from_start: bool = False,
        at_most: bool = False,
    ):
        super().__init__(runner, dataloader, max_iters=max_iters, val_interval=val_interval)
        self.schedule = learning_rate_factors(schedule, max_iters)
        self.seconds, self.test_images, self.from_start, self.at_most = seconds, test_images, from_start, at_most
        self.budget = None
        self._val_images = 0

    def run(self) -> torch.nn.Module:
        groups = self.runner.optim_wrapper.optimizer.param_groups
        for group in groups:
            group.setdefault('initial_lr', group['lr'])  # a resumed optimizer has it
        self._val_images = self._count_val_images()
        self.budget = Budget(
            self.seconds,
            self._max_iters,
            evaluations=math.ceil(self._max_iters / self.val_interval),
            val_images=self._val_images,
            test_images=self.test_images,
            batch_size=self.dataloader.batch_sampler.batch_size,
            elapsed=time.time() - psutil.Process().create_time() if self.from_start else 0.0,
            at_most=self.at_most,
            clock=clock,
        )
        state = self.runner.message_hub.get_info(STATE)
        if state is not None and self._iter:
            self.budget.load_state_dict(state, self._iter)
            self._max_iters = self._iter + self.budget.remaining
        return super().run()

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        budget = self.budget
        budget.measure()
        if budget.wants_probe and self._val_images:
            budget.probed(self._time_evaluation())
            self.runner.model.train()
        budget.begin_iteration()
        self._max_iters = self._iter + budget.remaining
        whole, part = divmod(budget.progress * (len(self.schedule) - 1), 1)
        before, after = self.schedule[int(whole)], self.schedule[min(int(whole) + 1, len(self.schedule) - 1)]
        factor = before + part * (after - before)
        for group in self.runner.optim_wrapper.optimizer.param_groups:
            group['lr'] = group['initial_lr'] * factor
        self.runner.message_hub.update_info(STATE, budget.state_dict())
        super().run_iter(data_batch)

    def _decide_current_val_interval(self) -> None:
        """Asked after each iteration: what divides its number, or does not."""
        self.budget.end_iteration()
        self.val_interval = 1 if self.budget.evaluates else self._iter + 1

    def _count_val_images(self) -> int:
        """In an evaluation; twice the number where it evaluates the weights and their averages."""
        if self.runner.val_loop is None:
            return 0
        twice = any(isinstance(hook, EMAHook) and getattr(hook, 'compare', False) for hook in self.runner.hooks)
        return len(self.runner.val_loop.dataloader.dataset) * (2 if twice else 1)

    @torch.no_grad()
    def _time_evaluation(self) -> float:
        """Seconds that one would take, by its first batches; the very first starts the workers."""
        begin, start, images = clock(), None, 0
        self.runner.model.eval()
        for batch in islice(self.runner.val_loop.dataloader, PROBE_BATCHES):
            results = self.runner.model.val_step(batch)
            if start is None:
                start = clock()
            else:
                images += len(results)
        forward = (clock() - start) / images if images else (start - begin) / len(results)  # of a single batch
        return SCORING * forward * self._val_images


def learning_rate_factors(schedule: Sequence[dict], iterations: int) -> list[float]:
    """What mmengine's schedulers, which count iterations, make of a rate of 1 in each iteration."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedulers = []
    for config in schedule:
        config = dict(config)
        schedulers.append(PARAM_SCHEDULERS.get(config.pop('type'))(optimizer, **config))
    factors = []
    for _ in range(iterations):
        factors.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return factors
