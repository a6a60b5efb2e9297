"""Stop a training that does not get better."""

from mmengine.hooks import Hook

from ..registry import HOOKS
from .metric_names import main_figure, numbers, rule_of, split

STATE = 'patience'  # in the message hub, and so in checkpoints


@HOOKS.register_module()
class PatienceHook(Hook):
    """Ends the training after a number of evaluations in a row without a better figure.

    A resumed training goes on counting.

    Args:
        patience: evaluations.
        metric: the figure; None: the one that counts most, see ``metric_names.py``.
        min_delta: by how much it has to be better.
    """

    priority = 'LOWEST'  # after the checkpoint of the best

    def __init__(self, patience: int, metric: str | None = None, min_delta: float = 0.0):
        if patience < 1:
            raise ValueError(f'patience must be at least 1, got {patience}')
        self.patience, self.metric, self.min_delta = patience, metric, min_delta
        self._training = False

    def before_train(self, runner) -> None:
        self._training = True

    def after_train(self, runner) -> None:
        self._training = False

    def after_val_epoch(self, runner, metrics=None) -> None:
        values = numbers(metrics)
        key = self.metric or (main_figure(values) if values else None)
        if key not in values or not self._training:
            return
        sign = 1 if rule_of(key) == 'greater' else -1
        best, waited = runner.message_hub.get_info(STATE, [None, 0])
        if best is None or sign * (values[key] - best) > self.min_delta:
            best, waited = values[key], 0
        else:
            waited += 1
        runner.message_hub.update_info(STATE, [best, waited])
        if waited >= self.patience:
            runner.train_loop.stop_training = True
            runner.logger.warning(
                f'{split(key)[1]} was not better than {best:.3f} in {waited} evaluations: the training ends here '
                '(patience)'
            )
