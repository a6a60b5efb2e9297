"""How a training spends the time that it was given."""

import math
import time
from collections import deque
from collections.abc import Callable

EVALUATION_SHARE = 0.15  # of the time goes at most into evaluations
FORWARD_SHARE = 0.5  # of an image's part of an iteration is what its evaluation takes, until one was measured
WINDOW = 30  # iterations whose mean tells how long the next ones take
PROBE_AFTER = 3  # iterations
FIRST = 2  # the first iteration, which allocates, takes so many of the others


class Budget:
    """Plans the rest of a training anew before each iteration, from the time that iterations and evaluations took.

    ``progress`` goes from 0 in the first iteration to 1 in the last, whatever their number; the learning rate follows
    it. The plan's evaluations are even in it, fewer where they would take more than EVALUATION_SHARE of the time, and
    the last iteration is always followed by one. What comes after the training, a test, is part of the time.

    Args:
        seconds: in all.
        iterations: of the plan that the config has; its warm-up and evaluations shrink and grow with the training.
        evaluations: of the plan.
        val_images: in an evaluation, counted twice where it evaluates two models.
        test_images: in the test after the training.
        batch_size: images in an iteration.
        elapsed: seconds that are gone before it is made.
        at_most: whether ``iterations`` are not to be exceeded, though there is time.
        clock: in seconds.
    """

    def __init__(
        self,
        seconds: float,
        iterations: int,
        evaluations: int,
        val_images: int,
        test_images: int,
        batch_size: int,
        elapsed: float = 0.0,
        at_most: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.seconds, self.iterations, self.evaluations = seconds, iterations, evaluations
        self.val_images, self.test_images, self.batch_size = val_images, test_images, batch_size
        self.at_most, self._clock = at_most, clock
        self.done = 0  # iterations begun
        self.remaining = iterations  # with the one begun last
        self.progress = 0.0
        self.evaluates = False  # after the iteration begun last
        self._evaluated = 0.0  # progress at the last evaluation
        self._evaluation = None  # how many iterations the last one took: a slower machine evaluates slower, too
        self._steps = deque(maxlen=WINDOW)  # seconds of iterations
        self._is_first = True  # of this process
        self._before = elapsed  # and seconds of earlier processes
        self._start = self._clock()
        self._began = self._ended = None  # of the last iteration

    @property
    def elapsed(self) -> float:
        return self._before + self._clock() - self._start

    @property
    def left(self) -> float:
        """Seconds, those of the test included."""
        return self.seconds - self.elapsed

    @property
    def is_last(self) -> bool:
        return self.remaining <= 1

    def measure(self) -> None:
        """Take in the last iteration, and the evaluation after it, when both are over."""
        if self._began is None:
            return
        now = self._clock()
        step = (self._ended if self.evaluates else now) - self._began  # with what was waited for data
        self._steps.append(step / FIRST if self._is_first else step)
        self._is_first = False
        if self.evaluates:
            self._evaluation = (now - self._ended) / self._step_time()
        self._began = None

    @property
    def wants_probe(self) -> bool:
        """Whether to try how long a part of an evaluation takes: none was measured, and some iterations were."""
        return self._evaluation is None and self.done >= PROBE_AFTER

    def probed(self, seconds: float) -> None:
        """An evaluation will take so long."""
        self._evaluation = seconds / self._step_time()

    def begin_iteration(self) -> None:
        """Plan from here on."""
        self.measure()
        self._began = self._clock()
        self.remaining = self._plan_remaining()
        if self.done:
            self.progress += (1 - self.progress) / self.remaining
        elif self.is_last:
            self.progress = 1.0
        self.done += 1
        interval = self._interval()
        due = self.progress - self._evaluated >= interval - 1e-9 and 1 - self.progress >= interval / 2
        self.evaluates = self.is_last or due
        if self.evaluates:
            self._evaluated = self.progress

    def end_iteration(self) -> None:
        self._ended = self._clock()

    def _plan_remaining(self) -> int:
        planned = max(self.iterations - self.done, 1)
        if not self._steps:
            return planned
        time_left = self.left - self._evaluations_left() * self._evaluation_time() - self._test_time()
        least = 1
        if self._evaluation is None and self.left > 0:
            least = max(PROBE_AFTER + 1 - self.done, 1)  # as yet nobody knows how long an evaluation takes
        remaining = max(round(time_left / self._step_time()), least)
        return min(remaining, planned) if self.at_most else remaining

    def _step_time(self) -> float:
        return max(sum(self._steps) / len(self._steps), 1e-6)

    def _evaluation_time(self) -> float:
        if not self._steps:
            return 0.0
        iterations = FORWARD_SHARE * self.val_images / self.batch_size if self._evaluation is None else self._evaluation
        return iterations * self._step_time()

    def _test_time(self) -> float:
        return self._evaluation_time() * self.test_images / max(self.val_images, 1)

    def _interval(self) -> float:
        """Progress between two evaluations."""
        return max(1 / self.evaluations, self._evaluation_time() / (EVALUATION_SHARE * self.seconds))

    def _evaluations_left(self) -> int:
        interval = self._interval()
        following = max(self._evaluated + interval, self.progress)  # one that is overdue comes now, or no more
        return max(math.floor((1 - interval / 2 - following) / interval + 1e-9) + 1, 0) + 1

    def state_dict(self) -> dict:
        """Plain numbers, for a checkpoint."""
        return dict(
            elapsed=self.elapsed,
            progress=self.progress,
            evaluated=self._evaluated,
            evaluation=self._evaluation,
            evaluates=self.evaluates,
            steps=list(self._steps),
        )

    def load_state_dict(self, state: dict, done: int) -> None:
        """Go on after ``done`` iterations with what is left of the time; of a finished training, nothing."""
        self._before += state['elapsed']
        self.progress, self._evaluated, self._evaluation = state['progress'], state['evaluated'], state['evaluation']
        self.evaluates, self.done = state['evaluates'], done
        self._steps.extend(state['steps'])
        if self._steps:  # the state is of the beginning of the iteration that was done last
            self._before += self._step_time() + self.evaluates * self._evaluation_time()
        self.remaining = 0 if self.progress >= 1 else self._plan_remaining()
