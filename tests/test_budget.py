"""A training by the clock: iterations, learning rate and evaluations, with a clock that the tests move."""

import random
from itertools import pairwise

import pytest
import torch
from mmengine.hooks import Hook
from training_case import fork, make_config, train

from mmdet_ddetr.loops import Budget, TimedTrainLoop, timed
from mmdet_ddetr.loops.timed import learning_rate_factors

PLAN = dict(iterations=1000, evaluations=10, val_images=80, test_images=80, batch_size=4)


class Machine:
    """Trains by a budget: iterations, evaluations and the test at the end take what ``step`` and ``evaluation`` say.

    Attributes:
        end: time at the end of all.
        spent: time in evaluations.
        progress: of each iteration.
        evaluated: progress at each evaluation.
    """

    def __init__(self, seconds, step, evaluation, state=None, done=0, stop_at=None, **plan):
        self.now, self.spent, self.progress, self.evaluated = 0.0, 0.0, [], []
        self.budget = budget = Budget(seconds, **PLAN | plan, clock=lambda: self.now)
        if state:
            budget.load_state_dict(state, done)
        while budget.remaining and len(self.progress) != stop_at:
            budget.measure()
            if budget.wants_probe:
                budget.probed(0.9 * evaluation(self.now))  # of a few batches, which tells not all
            budget.begin_iteration()
            self.progress.append(budget.progress)
            self.now += step(self.now) * (3 if len(self.progress) == 1 else 1)
            budget.end_iteration()
            if budget.evaluates:
                self.evaluated.append(budget.progress)
                self.spent += (took := evaluation(self.now))
                self.now += took
            if budget.is_last:
                self.now += evaluation(self.now)  # the test
                break
        self.end = self.now


def noisy(mean):
    generator = random.Random(0)
    return lambda now: mean * generator.uniform(0.5, 1.5)


def after_half(seconds, before, after):
    return lambda now: before if now < seconds / 2 else after


MACHINES = {
    'even': (540, lambda now: 0.5, lambda now: 10),
    'noisy': (540, noisy(0.5), noisy(10)),
    'three times slower from half on': (540, after_half(540, 0.5, 1.5), after_half(540, 10, 30)),
    'three times faster from half on': (540, after_half(540, 1.5, 0.5), after_half(540, 30, 10)),
    'ever slower': (900, lambda now: 0.5 + now / 900, lambda now: 15 * (1 + now / 900)),
    'slow every other minute': (900, lambda now: 0.5 + now // 60 % 2 / 2, lambda now: 15),
    'fast': (300, lambda now: 0.1, lambda now: 2),
}


@pytest.mark.parametrize('machine', MACHINES)
def test_ends_in_time(machine):
    seconds, *speed = MACHINES[machine]
    run = Machine(seconds, *speed)
    assert run.end == pytest.approx(seconds, rel=0.05)
    assert run.progress[0] == 0 and run.progress[-1] == 1
    assert all(a < b for a, b in pairwise(run.progress))
    assert run.evaluated[-1] == 1 and run.evaluated.count(1) == 1
    gaps = [b - a for a, b in pairwise([0, *run.evaluated])]
    assert min(gaps) > 0.05, 'evaluations follow each other closely'
    assert 1 <= len(run.evaluated) <= 10 and run.spent <= 0.2 * seconds


def test_even_machine_to_the_iteration():
    """540 s: 8 evaluations and a test of 10 s each, and the first iteration takes 1.5 s: 899 iterations of 0.5 s."""
    run = Machine(*MACHINES['even'])
    assert len(run.evaluated) == 8 and len(run.progress) == pytest.approx((540 - 90 - 1) / 0.5, abs=3)
    halfway = run.progress[len(run.progress) // 2]
    assert halfway == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize('seconds', [20, 40, 60])
def test_very_short(seconds):
    """20 s, of which an evaluation and a test take 10: some iterations of 1 s, one evaluation, all of the schedule."""
    run = Machine(seconds, lambda now: 1, lambda now: 5)
    assert run.evaluated[-1] == 1 and len(run.evaluated) == (1 if seconds == 20 else len(run.evaluated))
    assert len(run.evaluated) <= max(seconds * 0.15 / 5 + 1, 1)
    assert run.progress[-1] == 1 and run.progress[1] > 0.05, 'the warm-up is over soon'
    assert run.end == pytest.approx(seconds, abs=2)


def test_no_time_at_all():
    """An iteration of 100 s in a budget of 10 s: it ends after the first that tells."""
    run = Machine(10, lambda now: 100, lambda now: 5)
    assert len(run.progress) == 2 and run.progress[-1] == 1 and run.evaluated == [1]


def test_no_time_is_kept_for_an_evaluation_that_will_not_come():
    """At 80 % the one that was put off is too close to the end: 110 - 80.5 s, less evaluation and test of 10 s each."""
    budget = Budget(110, **PLAN | dict(evaluations=2), clock=lambda: 0.0)
    state = dict(elapsed=80, progress=0.8, evaluated=0.0, evaluation=20, evaluates=False, steps=[0.5] * 5)
    budget.load_state_dict(state, 150)
    assert budget.remaining == (110 - 80.5 - 20) / 0.5


def test_at_most():
    run = Machine(3000, lambda now: 0.5, lambda now: 10, at_most=True)
    assert len(run.progress) == 1000 and len(run.evaluated) == 10
    assert run.evaluated == pytest.approx([0.1 * n for n in range(1, 11)], abs=0.002)


def test_resume_has_the_rest_of_the_time():
    """200 s in one process, a pause, and what is left in another; progress goes on where it was."""
    step, evaluation = (lambda now: 0.5), (lambda now: 10)
    first = Machine(540, step, evaluation, stop_at=400)
    state = first.budget.state_dict()
    second = Machine(540, step, evaluation, state=state, done=400)
    assert first.end + second.end == pytest.approx(540, rel=0.05)
    assert second.progress[0] == pytest.approx(first.progress[-1], abs=0.01) and second.progress[-1] == 1
    assert len(first.evaluated) + len(second.evaluated) == 8
    finished = Machine(540, step, evaluation, state=second.budget.state_dict(), done=900)
    assert finished.progress == []


def test_learning_rate_of_the_plan():
    """Warm-up to iteration 3, then a cosine to a tenth."""
    schedule = [
        dict(type='LinearLR', start_factor=0.5, by_epoch=False, begin=0, end=4),
        dict(type='CosineAnnealingLR', eta_min_ratio=0.1, by_epoch=False, begin=0, end=40, T_max=40),
    ]
    factors = learning_rate_factors(schedule, 40)
    assert factors[0] == 0.5 and factors[1] == pytest.approx(0.667, abs=0.01) and max(factors) == factors[3]
    assert factors[20] == pytest.approx(0.55, abs=0.01) and factors[-1] == pytest.approx(0.1, abs=0.01)
    assert learning_rate_factors([], 3) == [1.0] * 3


# ------------------------------------------------------------------------------------------------------------- the loop
class Ticking:
    """A clock that each training iteration moves by a second, and each evaluation by two."""

    now = 0.0


def config(data, work_dir, seconds=30):
    cfg = make_config(data, work_dir)
    cfg.train_cfg = dict(
        type='mmdet_ddetr.TimedTrainLoop',
        seconds=seconds,
        max_iters=100,
        val_interval=25,
        schedule=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
            dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=False, begin=0, end=100, T_max=100),
        ],
    )
    cfg.param_scheduler = None
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler')
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=5)
    cfg.default_hooks.logger.log_metric_by_epoch = False
    cfg.log_processor = dict(type='LogProcessor', by_epoch=False)
    return cfg


class Follow(Hook):
    """Moves the clock, and keeps learning rates and evaluations."""

    priority = 'LOWEST'

    def __init__(self, stop_at=None):
        self.rates, self.evaluations, self.stop_at = [], [], stop_at

    def after_train_iter(self, runner, **kwargs):
        Ticking.now += 1
        self.rates.append(max(group['lr'] for group in runner.optim_wrapper.optimizer.param_groups))
        if len(self.rates) == self.stop_at:
            raise KeyboardInterrupt

    def after_val(self, runner):
        Ticking.now += 2
        self.evaluations.append(runner.iter)


def test_loop(data, tmp_path, monkeypatch):
    """30 s: an iteration takes 1 s, an evaluation 2 s. Killed, and resumed with the rest of the time."""

    def run():
        monkeypatch.setattr(timed, 'clock', lambda: Ticking.now)
        whole = Follow()
        runner = train(config(data, tmp_path / 'whole'), [whole])
        assert isinstance(runner.train_loop, TimedTrainLoop) and Ticking.now == pytest.approx(30, abs=1.5)
        assert whole.evaluations[-1] == len(whole.rates) == runner.iter
        assert len(whole.evaluations) <= 3
        assert max(whole.rates) > 0.8e-3 and whole.rates[0] == pytest.approx(1e-4)
        assert whole.rates[-1] == pytest.approx(1e-5, rel=0.1)
        assert (tmp_path / 'whole' / f'iter_{runner.iter}.pth').is_file()

        Ticking.now = 100.0
        parts = [Follow(stop_at=12), Follow()]
        with pytest.raises(KeyboardInterrupt):
            train(config(data, tmp_path / 'parts'), parts[:1])
        Ticking.now = 1000.0
        runner = train(config(data, tmp_path / 'parts'), parts[1:], resume=True)  # from iteration 10
        assert runner.iter == pytest.approx(len(whole.rates), abs=2)
        assert parts[1].rates[-1] == pytest.approx(1e-5, rel=0.1)
        before = runner.iter
        runner = train(config(data, tmp_path / 'parts'), [again := Follow()], resume=True)  # it was finished
        assert runner.iter == before and again.rates == []

    assert fork(run) == 0


def test_wrong_group_is_not_warmed_up(data, tmp_path):
    """Each group of parameters keeps its share of the rate."""

    def run():
        cfg = config(data, tmp_path, seconds=0.1)
        runner = train(cfg, [])
        groups = runner.optim_wrapper.optimizer.param_groups
        assert {round(group['lr'] / group['initial_lr'], 4) for group in groups} == {0.0102}
        assert len({group['initial_lr'] for group in groups}) == 2
        assert all(
            isinstance(value, float | bool | list | None) for value in runner.message_hub.get_info('budget').values()
        )

    assert fork(run) == 0
    assert torch.load(next(tmp_path.glob('iter_*.pth')), weights_only=False)['meta']['iter'] >= 1
