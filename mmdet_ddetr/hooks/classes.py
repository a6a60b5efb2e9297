"""Classes, before anything is trained or tested: those of the data, of the metrics and of the model's heads agree."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from mmdet.datasets import XMLDataset
from mmengine import fileio
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop
from torch import nn

from ..datasets.class_names import Comparison, as_tuple, categories_in, compare, faults_of, listed
from ..datasets.coco import LabelsByName
from ..datasets.errors import DataError
from ..datasets.image_folders import check_images
from ..datasets.inner import innermost
from ..evaluation.coco_metric import MetricByName
from ..registry import HOOKS
from ..unwrap import unwrap

LOOPS = {'train': '_train_loop', 'val': '_val_loop', 'test': '_test_loop'}
OTHER_CLASSES = ('backbone', 'neck', 'rpn_head', 'semantic_head')  # a head of these has classes of its own
DERIVED = 'dn_query_generator'  # has the number of the head


@HOOKS.register_module()
class ClassesHook(Hook):
    """Before the first iteration of a training, a validation or a test, compares classes by name.

    - Classes of the config that the annotation file does not have: an error where a name looks misspelt, or where none
      is there; else a warning. Categories of the file that are no class: a warning.
    - Labels of mmdet's own COCO-like data sets and metrics, which follow the order of the file, against the names,
      which are the config's.
    - The number of classes of every head against the data's.
    - The classes of the loaders against each other.
    - Images that do not exist: an error.

    ``python tools/train.py CONFIG --check`` does the same and shows a table; docs/classes.md says more.

    Args:
        strict: an error where a name looks misspelt; False: a warning.
    """

    priority = 'VERY_HIGH'

    def __init__(self, strict: bool = True):
        self.strict = strict

    def before_run(self, runner) -> None:
        """Check what has been built.

        Raises:
            DataError: something does not fit. The sentence says what to write where.
        """
        for sentence in dict.fromkeys(self.check(unwrap(runner.model), built_loops(runner))):
            runner.logger.warning(sentence)

    def check(self, model: nn.Module, loops: dict[str, BaseLoop]) -> list[str]:
        """Raise :class:`DataError` as described, else give what is worth a warning."""
        warnings, classes = [], {}
        for name, loop in loops.items():
            loader = f'{name}_dataloader'
            outer = loop.dataloader.dataset
            for dataset in innermost(outer):
                warnings += self._judge(compare_dataset(dataset), loader)
                check_images(dataset, loader)
            for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', []):
                warnings += self._judge(compare_metric(metric, outer), f'{name}_evaluator')
            if names := metainfo_of(outer).get('classes'):
                classes[loader] = names
        first = next(iter(classes.items()), None)
        for loader, names in classes.items():
            if list(names) != list(first[1]):
                raise DataError(
                    f'{first[0]} has the classes {listed(first[1])}, {loader} has {listed(names)}: label 0 would be '
                    f'{first[1][0]!r} in one and {names[0]!r} in the other. Write the same metainfo=dict(classes=...) '
                    'into both'
                )
        for name, loop in loops.items():
            check_heads(model, metainfo_of(loop.dataloader.dataset), f'{name}_dataloader')
        return warnings

    def _judge(self, found: Comparison, where: str) -> list[str]:
        if found.errors or (found.doubts and self.strict):
            raise DataError(f'{where}: {" ".join([*found.errors, *found.doubts])}')
        return found.doubts + found.notes


def built_loops(runner) -> dict[str, BaseLoop]:
    """{'train', 'val', 'test': loop}, of those that are built: the others are still configs, or None."""
    loops = {name: getattr(runner, loop, None) for name, loop in LOOPS.items()}
    return {name: loop for name, loop in loops.items() if isinstance(loop, BaseLoop)}


def compare_dataset(dataset) -> Comparison:
    """What does not fit between a data set's classes and its file."""
    classes = metainfo_of(dataset).get('classes')
    if classes is None or getattr(dataset, 'return_classes', False):  # classes are texts that the model reads
        return Comparison()
    if isinstance(dataset, LabelsByName):  # has said the rest when it was loaded
        dataset.doubts_told = True
        return Comparison(doubts=dataset.class_names.doubts)
    if faults := faults_of(classes):
        return Comparison(errors=faults)
    if hasattr(dataset, 'cat_ids') and hasattr(dataset, 'cat2label'):
        with fileio.get_local_path(dataset.ann_file, backend_args=dataset.backend_args) as path:
            categories = categories_in(path)
        cure = 'or let the labels follow the config: dataset=dict(type={!r}, ...)'
        return _compare_order(
            dataset, dataset.cat_ids, categories, dataset.ann_file, cure.format('mmdet_ddetr.CocoDataset')
        )
    if isinstance(dataset, XMLDataset):
        return _compare_xml(dataset)
    return Comparison()


def compare_metric(metric, dataset) -> Comparison:
    """What does not fit between a metric's annotation file and the classes of its data set."""
    api = getattr(metric, '_coco_api', None) or getattr(metric, '_lvis_api', None)
    classes = metainfo_of(dataset).get('classes')
    if api is None or classes is None or faults_of(classes):
        return Comparison()
    if isinstance(metric, MetricByName):
        categories = metric.file_categories or api.dataset['categories']
    elif hasattr(metric, '_lvis_api'):
        categories = list(api.cats.values())
    else:
        categories = api.dataset['categories']
    file = 'its annotation file'
    if isinstance(metric, MetricByName):
        found = compare(classes, [category['name'] for category in categories], file)
        return Comparison(found.errors, found.doubts)  # the data set has warned of the rest
    cure = "or let the labels follow the config: type='mmdet_ddetr.CocoMetric'"
    ids = [category['id'] for category in categories if category['name'] in classes or hasattr(metric, '_lvis_api')]
    found = _compare_order(dataset, ids, categories, file, cure)
    if ids != sorted(ids) and getattr(metric, 'classwise', False) and not found.errors:
        found.errors.append(
            f'the categories of {file} are not sorted by id, which swaps the figures of single classes (classwise=True)'
            f' in mmdet: sort them, {cure}'
        )
    return Comparison(found.errors, found.doubts)


def _compare_order(dataset, ids: list, categories: list[dict], file, cure: str) -> Comparison:
    """As ``compare``, and whether label i, of the category ``ids[i]``, is the i-th class."""
    meta = metainfo_of(dataset)
    classes, names = list(meta['classes']), {category['id']: category['name'] for category in categories}
    by_label = [names.get(i) for i in ids]
    is_default = classes == list(getattr(dataset, 'METAINFO', {}).get('classes', ()))
    if by_label == classes or (is_default and len(ids) == len(classes) == len(categories) and _is_lvis(dataset)):
        return Comparison(notes=compare(classes, list(names.values()), file, is_default).notes)
    found = compare(classes, list(names.values()), file, is_default)
    if not found.errors and not found.doubts:
        present = tuple(dict.fromkeys(name for name in by_label if name))
        found.errors.append(
            f'{type(dataset).__name__} numbers labels in the order of the categories of {file}, {listed(by_label)}, '
            f'while names come from metainfo, {listed(classes)}: they would be swapped in pictures and results. Write '
            f'metainfo=dict(classes={as_tuple(present)}), {cure}'
        )
    return found


def _is_lvis(dataset) -> bool:
    """Whether labels count all categories of the file, whatever their names."""
    return any(cls.__name__.startswith('LVIS') for cls in type(dataset).__mro__)


def _compare_xml(dataset: XMLDataset) -> Comparison:
    """The files of VOC are read by their names only: labels cannot shift, but objects of other names are dropped."""
    classes = dataset.metainfo['classes']
    boxes = count_boxes(dataset)
    if all(boxes[label] for label in range(len(classes))):
        return Comparison()
    names = Counter()
    for image in fileio.list_from_file(dataset.ann_file, backend_args=dataset.backend_args):
        path = Path(dataset.sub_data_root, dataset.ann_subdir, f'{image}.xml')
        tree = ElementTree.fromstring(fileio.get(str(path), backend_args=dataset.backend_args))
        names.update(item.findtext('name') for item in tree.findall('object'))
    is_default = list(classes) == list(dataset.METAINFO.get('classes', ()))
    return compare(classes, sorted(filter(None, names)), dataset.ann_file, is_default)


def count_boxes(dataset) -> Counter:
    """Boxes of each label."""
    boxes = Counter()
    for index in range(len(dataset)):
        boxes.update(instance['bbox_label'] for instance in dataset.get_data_info(index).get('instances', []))
    return boxes


def class_counts(model: nn.Module) -> dict[str, tuple[int, str]]:
    """{key in the config: (number, which classes it counts)} of every head: 'all', 'things' or 'stuff'."""
    found = {}
    for path, module in model.named_modules():
        parts, own = path.split('.'), vars(module)
        if (
            {*OTHER_CLASSES, DERIVED} & set(parts)
            or own.get('class_agnostic')
            or not isinstance(own.get('num_classes'), int)
        ):
            continue
        key = f'model.{path}'
        if 'num_things_classes' in own:
            things = own['num_things_classes']
            found[f'{key}.num_things_classes'] = things, 'things'
            stuff = own.get('num_stuff_classes', own['num_classes'] - things)
            found[f'{key}.num_stuff_classes'] = stuff, 'stuff'
        else:
            found[f'{key}.num_classes'] = own['num_classes'], 'all'
    return found


def check_heads(model: nn.Module, metainfo: dict, loader: str) -> None:
    """Compare the number of classes of every head with the data's.

    Raises:
        DataError: with the number to write and the key to write it to.
    """
    classes = metainfo.get('classes')
    if classes is None or hasattr(model, 'language_model'):  # the latter reads its classes as texts
        return
    things = metainfo.get('thing_classes', classes)
    stuff = metainfo.get('stuff_classes', ())
    right = dict(all={len(classes), len(things)}, things={len(things)}, stuff={len(stuff)})
    best = dict(all=len(classes), things=len(things), stuff=len(stuff))
    wrong = {k: (number, kind) for k, (number, kind) in class_counts(model).items() if number not in right[kind]}
    if wrong:
        was = ', '.join(f'{key} is {number}' for key, (number, _) in wrong.items())
        options = ' '.join(f'{key}={best[kind]}' for key, (_, kind) in wrong.items())
        data = 'class' if len(classes) == 1 else 'classes'
        raise DataError(
            f'{was}, but the data of {loader} have {len(classes)} {data}: {listed(classes)}. Correct it in the config '
            f'(--cfg-options {options}), or correct metainfo=dict(classes=...) of the loader'
        )


def metainfo_of(dataset) -> dict:
    """A data set's; {} where it has none."""
    return getattr(dataset, 'metainfo', None) or {}
