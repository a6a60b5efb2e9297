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
from ..datasets.report import Finding
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
            droppable = any(
                reports[split.name].bad_images or reports[split.name].bad_annotations or split.faults
                for split in folder.splits
            )
            healable = droppable and not self.fatal
            advice = '\nMend the files, or train without the bad images and boxes: --drop-bad' if healable else ''
            raise DataError(f'{text}\n{self.n_errors} errors in {folder.root}{advice}')
        splits = {}
        for split in folder.splits:
            report, unread = reports[split.name], sum(fault[0] == 'error' for fault in split.faults)
            if report.errors or report.repairs:
                copied = Path(work_dir, 'annotations', f'{split.name}.json')
                reports[split.name] = clean_coco(report, copied)
                parts = [f'{len(report.bad_images)} images', f'{len(report.bad_annotations)} boxes']
                parts += [f'{unread} unreadable labels'] if unread else []
                text += f'\n{split.name}: {", ".join(parts[:-1])} and {parts[-1]} left out; the copy {copied} is used'
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
    """Find pictures of val and test that look nearly like one of train; takes some milliseconds an image."""
    places, names = [], []
    for name, report in check.reports.items():
        places += [report.image_dir / image.file_name for image in report.images if image.index in report.facts]
        names += [name] * (len(places) - len(names))
    found = []
    for group in group_alike(places):
        of_train = next((i for i in group if names[i] == 'train'), None)
        others = [i for i in group if names[i] != 'train']
        if of_train is not None and others:
            found += [f'{names[i]}: {places[i].name} like {places[of_train].name}' for i in others]
    if found:
        rule = 'val or test have images that look nearly like one of train: AP says too much'
        check.between.append(Finding('warning', rule, places=found))
