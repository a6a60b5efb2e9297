"""The check of a whole data set, before a training or instead of one."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..datasets import (
    CocoFolder,
    CocoSplit,
    DataError,
    Report,
    check_coco,
    check_splits,
    clean_coco,
    drop_unused_groups,
    read_coco,
)
from ..datasets.image_file import ImageFacts
from ..datasets.report import Finding, counted
from ..datasets.similar import group_alike
from ..datasets.summary import as_text, class_table, split_table

PLACES = 3  # shown of a finding about several splits


@dataclass
class DataCheck:
    """What was found in a data set.

    Attributes:
        reports: of each split, by its name.
        between: findings about several splits.
        notes: sentences about how it was read.
    """

    folder: CocoFolder
    reports: Mapping[str, Report]
    between: list[Finding]
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        return f'{self.folder.format} in {self.folder.root}'

    @property
    def n_errors(self) -> int:
        errors = [finding for report in self.reports.values() for finding in report.errors]
        return sum(len(finding.places) for finding in errors) + len(self.fatal)

    @property
    def fatal(self) -> list[Finding]:
        """What leaving out images and boxes does not heal."""
        return [finding for finding in self.between if finding.level == 'error']

    @property
    def is_droppable(self) -> bool:
        """Whether something is left, and sound, without the images and boxes that have errors."""
        bad = [report.bad_images or report.bad_annotations for report in self.reports.values()]
        unread = [fault[0] == 'error' for split in self.folder.splits for fault in split.faults]
        return any([*bad, *unread]) and not self.fatal and all(r.annotations for r in self.reports.values())

    @property
    def findings(self) -> str:
        """All, for the user to read."""
        lines = [str(report) for report in self.reports.values()]
        for finding in self.between:
            lines.append(f'{finding.level}: {finding.rule}, {len(finding.places)} x')
            lines += [f'    {place}' for place in finding.places[:PLACES]]
        return '\n'.join([*lines, *self.notes])

    @property
    def tables(self) -> str:
        return '\n\n'.join([self.title, as_text(split_table(self.reports)), as_text(class_table(self.reports))])

    def heal(self, work_dir: str | Path, drop_bad: bool = False) -> tuple[CocoFolder, dict[str, Report], str]:
        """Fill harmless gaps and, if asked to, drop what is bad, in copies of the files. See ``check_folder``."""
        folder, reports, text = self.folder, dict(self.reports), self.findings
        if self.fatal or (self.n_errors and not drop_bad):
            advice = '\nCorrect the files'
            if self.is_droppable:
                advice += ', or train without the bad images and boxes: --drop-bad'
            raise DataError(f'{text}\n{counted(self.n_errors, "error")} in {folder.root}{advice}')
        splits = {}
        for split in folder.splits:
            report, unread = reports[split.name], sum(fault[0] == 'error' for fault in split.faults)
            if report.errors or report.repairs:
                copied = Path(work_dir, 'annotations', f'{split.name}.json')
                reports[split.name] = clean_coco(report, copied)
                numbers = {
                    'image': len(report.bad_images),
                    'box': len(report.bad_annotations),
                    'unreadable label': unread,
                }
                parts = [counted(n, what, 'boxes' if what == 'box' else None) for what, n in numbers.items() if n]
                done = f'{", ".join(parts)} left out' if parts else 'repaired, nothing is left out'
                text += f'\n{split.name}: {done}; the copy {copied} is used'
                split = replace(split, ann_file=copied)
            splits[split.name] = split
        splits.setdefault('test', splits['val'])
        return replace(folder, **splits), reports, text


def inspect_folder(folder: CocoFolder, num_queries: int | None = None, decode: bool = False) -> DataCheck:
    """Check all splits of a data set.

    Args:
        folder: the data set; its files are only read.
        num_queries: of the model, see :func:`mmdet_ddetr.datasets.check_coco`.
        decode: decode every image.
    """
    notes = folder.notes
    if folder.has_test and not read_coco(folder.test.ann_file)['annotations']:
        notes += (f'{folder.test.ann_file} has no annotations to test against: val takes its place',)
        folder = replace(folder, test=folder.val)

    def check(split: CocoSplit, boxed: Collection[int] = (), facts: Mapping[str, ImageFacts] | None = None) -> Report:
        facts = facts or split.facts
        return check_coco(split.ann_file, split.image_dir, num_queries, decode, facts, split.faults, split.title, boxed)

    reports = {split.name: check(split) for split in folder.splits}
    if any(len({*report.classes}) < len(report.classes) for report in reports.values()):
        # which category of a name is the one with boxes is a matter of all splits, not of the luck of each
        boxed = set().union(*(report.boxed for report in reports.values()))
        reports = {split.name: check(split, boxed, _facts_of(reports[split.name])) for split in folder.splits}
    drop_unused_groups(reports)
    return DataCheck(folder, reports, check_splits(reports), notes)


def _facts_of(report: Report) -> dict[str, ImageFacts]:
    return {image.file_name: report.facts[image.index] for image in report.images if image.index in report.facts}


def check_folder(
    folder: CocoFolder,
    work_dir: str | Path,
    num_queries: int | None = None,
    drop_bad: bool = False,
    decode: bool = False,
) -> tuple[CocoFolder, dict[str, Report], str]:
    """Check all splits of a data set; fill harmless gaps and, if asked to, drop what is bad, in copies of its files.

    Args:
        folder: the data set; its files are only read.
        work_dir: copies go to ``<work_dir>/annotations``.
        num_queries: of the model, see :func:`mmdet_ddetr.datasets.check_coco`.
        drop_bad: go on without the images and boxes that have errors.
        decode: decode every image.

    Returns:
        The folder to train on, which has copies for the files that needed one; the reports about it; and all findings
        about the original, for the user to read.

    Raises:
        DataError: there are errors that are not to be dropped, or cannot be. The message has all findings.
    """
    return inspect_folder(folder, num_queries, decode).heal(work_dir, drop_bad)


def add_alike(check: DataCheck) -> None:
    """Find pictures of val and test that look nearly like one of train, and are no copies of it.

    Takes some milliseconds an image.
    """
    places, names, digests = [], [], []
    for name, report in check.reports.items():
        images = [image for image in report.images if image.index in report.facts]
        places += [report.image_dir / image.file_name for image in images]
        digests += [report.facts[image.index].digest for image in images]
        names += [name] * len(images)
    found = []
    for group in group_alike(places):
        of_train = [i for i in group if names[i] == 'train']
        same = {digests[i] for i in of_train}  # the check has told of them: they are shared
        others = [i for i in group if names[i] != 'train' and digests[i] not in same]
        if of_train:
            found += [f'{names[i]}: {places[i].name} like {places[of_train[0]].name}' for i in others]
    if found:
        rule = 'val or test have images that look nearly like one of train: AP will look better than it is'
        check.between.append(Finding('warning', rule, places=found))
