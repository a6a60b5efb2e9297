"""Classes as a training would see them, without a training: for `tools/train.py --check`."""

from mmengine.runner import Runner

from ..checkpoints import load
from ..datasets.inner import innermost
from ..hooks import ClassesHook
from ..hooks.classes import LOOPS, built_loops, class_counts, count_boxes
from ..hooks.fit_checkpoint import hook_of
from ..unwrap import unwrap


def check_classes(runner: Runner) -> str:
    """Build the data and compare their classes with each other, with the metrics and with the model.

    Args:
        runner: of :func:`make_runner`; its loops are built, and nothing is run.

    Returns:
        A table with the boxes that each class has in each loader; the number of classes of every head; what the
        checkpoint in ``load_from`` has for each class; and what is worth a warning.

    Raises:
        DataError: something does not fit. The sentence says what to write where.
        CheckpointError: the checkpoint cannot be read, or is of another model.
    """
    for name in LOOPS:
        getattr(runner, f'{name}_loop')  # builds it
    loops = built_loops(runner)
    model = unwrap(runner.model)
    warnings = ClassesHook(strict=_strict(runner)).check(model, loops)
    datasets = {name: loop.dataloader.dataset for name, loop in loops.items()}
    classes = next((d.metainfo['classes'] for d in datasets.values() if d.metainfo.get('classes')), ())
    boxes = {name: count_boxes(dataset) for name, dataset in datasets.items()}
    lines = _table(
        ['label', 'class', *(f'{name} boxes' for name in datasets)],
        [[label, name, *(boxes[part][label] for part in datasets)] for label, name in enumerate(classes)],
    )
    for name, dataset in datasets.items():
        kinds = ', '.join(dict.fromkeys(type(part).__name__ for part in innermost(dataset)))
        lines.append(f'{name}_dataloader: {len(dataset)} images, {kinds}')
    lines += [f'{key} = {number}' for key, (number, _) in class_counts(model).items()]
    if runner._load_from:
        lines += _of_checkpoint(runner, model, list(classes))
    without = [name for label, name in enumerate(classes) if 'train' in boxes and not boxes['train'][label]]
    if without:
        warnings.append(f'no boxes to learn from in train_dataloader: {", ".join(without)}')
    return '\n'.join([*lines, *(f'warning: {sentence}' for sentence in dict.fromkeys(warnings))])


def _strict(runner: Runner) -> bool:
    return all(hook.strict for hook in runner.hooks if isinstance(hook, ClassesHook))


def _of_checkpoint(runner: Runner, model, classes: list[str]) -> list[str]:
    """What a training would take from a checkpoint."""
    _, report = hook_of(runner).start_from(load(runner._load_from), model, classes)
    return [f'{runner._load_from}: {line}' for line in report.notes or ['its class rows are taken as they are']]


def _table(header: list[str], rows: list[list]) -> list[str]:
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    return [
        '  '.join(
            str(cell).ljust(width) if isinstance(cell, str) else str(cell).rjust(width)
            for cell, width in zip(row, widths)
        ).rstrip()
        for row in [header, *rows]
    ]
