from pathlib import Path

from mmdet.datasets.samplers import MultiSourceSampler
from mmengine.dataset import InfiniteSampler
from mmengine.dist import broadcast_object_list, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import BatchSampler, DataLoader

from ..checkpoints import CheckpointError
from ..datasets.seeded import MODEL, seed_generators, seed_loader
from ..files import write_if_possible
from ..registry import HOOKS
from .last_checkpoint import check_resumable, resume_newest
from .resumed_settings import WAYS, reconcile

EVALUATED = 'last_evaluation'  # in the work directory: after which iteration the last evaluation was completed
ENDLESS = (InfiniteSampler, MultiSourceSampler)


@HOOKS.register_module()
class ResumeHook(Hook):
    """A training that was stopped and resumed computes what it would have computed uninterrupted.

    mmengine's ``--resume`` restores weights, optimizer and schedulers. This hook adds the rest:

    - random numbers: a seed for each iteration and each sample, see ``datasets/seeded.py``;
    - the order of the data, also where no seed was given: the samplers get the checkpoint's;
    - the place in the data: a resumed epoch goes on behind the last batch trained on, and an iteration-based loop does
      not load all that it was trained on once more;
    - an evaluation that was due at the checkpoint and not completed is done first;
    - where the last checkpoint is damaged or gone, the newest that can be read is taken, with a warning; so it is in a
      work directory that was moved or copied, which resumes from its own files.

    What a batch holds depends on the batch size and on the number of processes, so both have to stay as they were; the
    number of workers does not matter. With gradient accumulation, the gradients of an unfinished step are lost.

    Args:
        schedule: learning rates, weight decay, other settings of the optimizer, and schedulers, where the config has
            changed: 'stored' keeps those of the checkpoint, 'config' takes those of the config, at the point that its
            schedule would have reached by now. Either is said in the log.
    """

    priority = 'LOWEST'  # evaluates in before_train, when all is ready, and sets the place in the data after set_epoch

    def __init__(self, schedule: str = 'stored'):
        if schedule not in WAYS:
            raise ValueError(f'schedule must be one of {", ".join(map(repr, WAYS))}, got {schedule!r}')
        self.schedule = schedule
        self.batches = None
        self.training = False

    def before_run(self, runner) -> None:
        resume_newest(runner)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            source = runner._load_from or 'the checkpoint'
            check_resumable(checkpoint, source)
            try:
                reconcile(runner, checkpoint, self.schedule)
            except CheckpointError as error:
                raise CheckpointError(f'{source}: {error}') from None

    def before_train(self, runner) -> None:
        self.training = True
        seeds = [runner.seed]
        broadcast_object_list(seeds)  # diff_rank_seed gives each rank its own
        self.seed = seeds[0]
        self.rank, world_size = get_dist_info()
        loader = runner.train_loop.dataloader
        if loader.batch_sampler is None or not hasattr(loader.dataset, '__dict__'):
            runner.logger.warning(
                'ResumeHook: not a dataset object read in batches, so the place in it is not restored'
            )
        else:
            batch_sampler = self._fresh_batch_sampler(runner._train_dataloader, loader)
            self.batches = seed_loader(loader, batch_sampler, self.seed, self.rank, world_size)
        if self._evaluation_is_due(runner):
            runner.logger.info(f'The evaluation after iteration {runner.iter} was not completed: it is done now')
            runner.val_loop.run()

    def _fresh_batch_sampler(self, cfg, loader: DataLoader):
        """The config's samplers with this training's seed, from which nothing has been drawn yet."""
        if not isinstance(cfg, dict) or not isinstance(cfg['sampler'], dict):
            return loader.batch_sampler
        sampler = DATA_SAMPLERS.build(cfg['sampler'], default_args=dict(dataset=loader.dataset, seed=self.seed))
        if cfg.get('batch_sampler') is None:
            return BatchSampler(sampler, cfg['batch_size'], cfg.get('drop_last', False))
        default_args = dict(sampler=sampler, batch_size=cfg['batch_size'])
        return DATA_SAMPLERS.build(cfg['batch_sampler'], default_args=default_args)

    def _evaluation_is_due(self, runner) -> bool:
        loop = runner.train_loop
        if runner.val_loop is None or loop.iter == 0:
            return False
        if isinstance(loop, EpochBasedTrainLoop):
            done, last = loop.epoch, loop.max_epochs
            between_epochs = loop.iter == loop.epoch * len(loop.dataloader)
        else:
            done, last, between_epochs = loop.iter, loop.max_iters, True
        loop._decide_current_val_interval()
        due = between_epochs and done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)
        completed = Path(runner.work_dir, EVALUATED)
        decision = [due and not (completed.is_file() and completed.read_text() == str(loop.iter))]
        broadcast_object_list(decision)  # the ranks may see the folder differently
        return decision[0]

    def before_train_epoch(self, runner) -> None:
        seed_generators(self.seed, MODEL, runner.iter, self.rank, cuda=True)  # a sampler may draw from them
        if self.batches is None:
            return
        loop = runner.train_loop
        length = len(loop.dataloader)
        if isinstance(loop, IterBasedTrainLoop):
            sampler = self.batches.sampler
            passes = 0 if isinstance(sampler, ENDLESS) else loop.iter // length
            self.batches.iteration, self.batches.start = passes * length, loop.iter
            if hasattr(sampler, 'set_epoch'):
                sampler.set_epoch(passes)
            loop.dataloader_iterator = _At(loop.iter, loop.dataloader, passes)
        else:
            self.batches.iteration, self.batches.start = loop.epoch * length, loop.iter
            if not 0 <= loop.iter - loop.epoch * length <= length:
                runner.logger.warning(
                    f'ResumeHook: iteration {loop.iter} is not in epoch {loop.epoch + 1} of {length} iterations each '
                    f'(other data, batch size or number of processes?), so the epoch begins with its first batch'
                )
                self.batches.iteration = self.batches.start

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        seed_generators(self.seed, MODEL, runner.iter, self.rank, cuda=True)

    def after_val_epoch(self, runner, metrics=None) -> None:
        if self.training and is_main_process():
            write_if_possible(Path(runner.work_dir, EVALUATED), str(runner.iter).encode())

    def after_train(self, runner) -> None:
        self.training = False


class _At:
    """The endless iterator of an iteration-based loop, which asks for the batches that are behind it, and gets none."""

    def __init__(self, passed: int, loader: DataLoader, passes: int):
        self.passed = passed
        loader._iterator = None  # persistent workers have fetched from the samplers before these
        self.iterator = _InfiniteDataloaderIterator(loader)
        self.iterator._epoch = passes

    def __next__(self):
        if self.passed:
            self.passed -= 1
            return None
        return next(self.iterator)
