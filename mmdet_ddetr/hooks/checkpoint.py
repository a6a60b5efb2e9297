import copy
import shutil
from collections import deque
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook

from ..files import remove_unfinished, write_atomically
from ..registry import HOOKS
from .metric_names import advice, check_names, main_figure, numbers, rule_of


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with a good checkpoint on the disk at every moment.

    Checkpoints and ``last_checkpoint`` are written atomically, and an older checkpoint is removed after its successor
    has been written instead of before. One that cannot be written (full disk, quota) is reported as an error and
    training goes on: it is tried again at the next interval. If the one at the end of training fails as well, training
    ends with the error.

    Metrics of any name are followed: ``save_best='auto'`` takes the figure that counts most, see ``metric_names.py``,
    and a ``rule`` that is not given follows from its name. A ``save_best`` that is misspelt is an error before the
    training starts, as far as the names can be known then; otherwise the log says after the first evaluation which
    there are, and 'auto' takes its place.

    Args:
        on_failure: 'continue' as described, or 'stop' at the first checkpoint that cannot be written.
        *args, **kwargs: as in ``mmengine.hooks.CheckpointHook``.

    Raises:
        StartError: in ``before_train``, about ``save_best``.
    """

    def __init__(self, *args, on_failure: str = 'continue', **kwargs):
        super().__init__(*args, **kwargs)
        if on_failure not in ('continue', 'stop'):
            raise ValueError(f"on_failure must be 'continue' or 'stop', got {on_failure!r}")
        self.on_failure = on_failure
        self.unsaved = False
        self.certain = []  # names of save_best that evaluations have, if not each

    def before_train(self, runner) -> None:
        folder = str(self.out_dir or runner.work_dir)
        is_local = '://' not in folder  # object stores show an object when all of it is there
        if is_local and self.backend_args is None and self.file_client_args is None:
            self.backend_args = dict(backend='mmdet_ddetr.atomic')
        if is_local:
            self._relocate(runner)
        super().before_train(runner)
        if is_local and is_main_process():
            remove_unfinished(self.out_dir)
            remove_unfinished(runner.work_dir)
        if self.save_best and runner.val_loop is not None:
            self.certain, warning = check_names(self.key_indicators, runner.val_evaluator)
            if warning:
                runner.logger.warning(f'{warning}, unless a hook adds it')

    def _relocate(self, runner) -> None:
        """After a resume in a folder that was moved or copied: the previous best lies here, not in the original.

        What the checkpoint says is going to be removed one day, so that only a checkpoint's name is taken from it.
        """
        folder = Path(runner.work_dir)
        if self.out_dir is not None and Path(self.out_dir) != folder:
            folder = Path(self.out_dir, folder.name)  # as mmengine has it
        for key, value in list(runner.message_hub.runtime_info.items()):
            if key.startswith(('best_ckpt', 'last_ckpt')):
                name = Path(value).name if isinstance(value, str) else ''
                if self._is_ours(name, 'best_' if key.startswith('best') else ''):
                    runner.message_hub.update_info(key, str(folder / name))
                else:
                    del runner.message_hub.runtime_info[key]

    def _is_ours(self, name: str, prefix: str) -> bool:
        """Whether this hook gives such names to checkpoints: files, or folders of sharded ones."""
        return (
            name not in ('', '.', '..') and name.startswith(prefix) and name.endswith(Path(self.filename_tmpl).suffix)
        )

    def _init_rule(self, rules: list[str | None], key_indicators: list[str]) -> None:
        """As in mmengine, but with a rule for every name, unless the user gave lists of names."""
        rules = rules * len(key_indicators) if len(rules) == 1 else rules
        if self.greater_keys is self._default_greater_keys and self.less_keys is self._default_less_keys:
            rules = [rule or (None if key == 'auto' else rule_of(key)) for rule, key in zip(rules, key_indicators)]
        super()._init_rule(rules, key_indicators)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        """Save, point ``last_checkpoint`` to it, and only then remove what is too old."""
        hub, filename = runner.message_hub, self.filename_tmpl.format(step)
        before = {key: hub.get_info(key) for key in ('last_ckpt', 'keep_ckpt_ids')}
        others = (other for other in getattr(self, 'keep_ckpt_ids', ()) if isinstance(other, int) and other != step)
        kept = [*others, step]
        path = self.file_backend.join_path(self.out_dir, filename)
        hub.update_info('last_ckpt', path)
        if self.max_keep_ckpts > 0:
            hub.update_info('keep_ckpt_ids', kept)  # with what is removed below: a resumed training makes up for it
        try:
            runner.save_checkpoint(
                self.out_dir,
                filename,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
            if is_main_process():
                write_atomically(Path(runner.work_dir, 'last_checkpoint'), path.encode())
        except OSError as error:
            hub.update_info_dict(before)
            self.unsaved = True
            self._report(runner, path, error)
            return
        self.last_ckpt, self.unsaved = path, False
        if self.max_keep_ckpts > 0:
            for old in kept[: -self.max_keep_ckpts]:
                self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        """Save, if it is the best so far, and only then remove the previous best."""
        if not self.save_best or not hasattr(self, 'file_backend'):  # the latter: evaluated alone, without training
            return
        metrics = self._choose(runner, numbers(metrics))
        if 'auto' in self.key_indicators:  # there is nothing to choose from
            return
        info = runner.message_hub.runtime_info
        before = {key: value for key, value in info.items() if key.startswith('best_')}
        own = {key: copy.copy(value) for key, value in vars(self).items() if key.startswith('best_ckpt_path')}
        outdated = []
        self.file_backend.remove = self.file_backend.rmtree = outdated.append
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            for key in [key for key in info if key.startswith('best_')]:
                del info[key]
            info.update(before)
            vars(self).update(own)
            self._report(runner, f'of the best {"/".join(self.key_indicators)}', error)
            return
        finally:
            del self.file_backend.remove, self.file_backend.rmtree
        for path in outdated:
            self._remove(path)

    def _choose(self, runner, metrics: dict[str, float]) -> dict[str, float | None]:
        """Let ``key_indicators`` be names that there are. Returns the metrics, None for what this evaluation lacks."""
        given = dict(zip(self.key_indicators, self.rules))
        wrong = [key for key in given if key not in (*metrics, *self.certain, 'auto')]
        if metrics and (wrong or 'auto' in given):
            kept = [key for key in given if key not in (*wrong, 'auto')] or [main_figure(metrics)]
            for key in wrong:
                runner.logger.error(f'save_best is {key!r}; {advice(key, metrics)} (kept instead: {", ".join(kept)})')
            self._init_rule([given.get(key, given.get('auto')) for key in kept], kept)
        hub = runner.message_hub
        if len(self.key_indicators) == 1 and 'auto' not in self.key_indicators:
            (key,) = self.key_indicators
            if hub.get_info('best_key', key) != key:  # resumed with another: the scores are no scale for it
                for info in ('best_score', 'best_ckpt'):
                    hub.runtime_info.pop(info, None)
            hub.update_info('best_key', key)
            self.best_ckpt_path = hub.get_info('best_ckpt')
        return dict.fromkeys(self.key_indicators) | metrics

    def after_train(self, runner) -> None:
        if self.unsaved:
            self.on_failure = 'stop'
            step = runner.epoch if self.by_epoch else runner.iter
            self._save_checkpoint_with_step(runner, step, dict(epoch=runner.epoch, iter=runner.iter))
        super().after_train(runner)

    def _remove(self, path: str) -> None:
        if is_main_process():
            if self.file_backend.isdir(path):  # a sharded checkpoint
                self.file_backend.rmtree(path)
            elif self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def _report(self, runner, path: str, error: OSError) -> None:
        if self.on_failure == 'stop':
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        try:
            free = f'{shutil.disk_usage(runner.work_dir).free / 2**30:.2f} GiB are free'
        except OSError:
            free = 'the disk does not answer'
        runner.logger.error(
            f'THE CHECKPOINT {path} COULD NOT BE WRITTEN: {error} ({free}). Training goes on; whoever resumes it now '
            f'starts from {runner.message_hub.get_info("last_ckpt") or "the beginning"}'
        )
