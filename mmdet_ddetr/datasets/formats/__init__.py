"""A folder as it comes from a labelling tool -> a data set in COCO format, which is all that everything else reads."""

from collections import Counter
from pathlib import Path

from ..coco_folder import CocoFolder, check_is_folder, find_coco_splits, passed_over, what_is_there
from ..errors import DataError
from ..report import MAX_SHOWN, printable
from ..splits import split_off_val
from .csv_boxes import READ_NAMES, find_csv, rows_of
from .labels import write_splits
from .tree import Tree
from .unread import unread_format
from .voc import find_voc
from .yolo import find_yolo

VAL_FRACTION = 0.15
FINDERS = (find_yolo, find_voc, find_csv)  # the first that finds its format

__all__ = ['find_data']


def find_data(
    root: str | Path,
    work_dir: str | Path,
    val_fraction: float | None = None,
    seed: int = 0,
    decode: bool = False,
    load_from: str | Path | None = None,
) -> CocoFolder:
    """Recognise the format of a folder and its layout, and make a val split where it has none.

    COCO's files are used as they are. Of other formats files in COCO's are made, in ``<work_dir>/annotations``; their
    entries name the user's own files and lines, which the check of the data repeats. Nothing is written to ``root``.

    Args:
        root: the folder, or one that has nothing but it inside.
        work_dir: what is made goes there.
        val_fraction: share of the train images that become val where there is no val split; None: 0.15.
        seed: of the split.
        decode: decode every image, see ``check_coco``.
        load_from: checkpoint that the training begins with. Images that were trained on for it, or in work_dir if there
            is a checkpoint in it, do not become val.

    Raises:
        DataError: there is no such folder, none of the formats is found in it, or a file that all depends on is broken.
    """
    root, made = Path(root), Path(work_dir, 'annotations')
    check_is_folder(root)
    root = _inner(root)
    splits, format, notes = find_coco_splits(root), 'COCO', []
    if 'train' not in splits:
        tree = Tree(root, skip=Path(work_dir))
        labels = next(filter(None, (find(tree) for find in FINDERS)), None)
        if labels is None:
            reasons = [*passed_over(root), *tree.passed_over]
            why = f'; passed over: {printable("; ".join(reasons[:3]))}' if reasons else ''
            raise DataError(f'{root} has no labels of COCO, YOLO, Pascal VOC or CSV{why}.\n{_instead(tree)}')
        labels.settle()
        if not labels.splits['train']:
            raise DataError(f'{root}, {labels.format}: no images to train on.\n{_instead(tree)}')
        splits, format, notes = write_splits(labels, made / 'converted', decode), labels.format, labels.notes
    if 'val' in splits and val_fraction is not None:
        notes.append(f'--val-fraction {val_fraction:g} is not needed: there is a val split')
    elif 'val' not in splits:
        fraction = VAL_FRACTION if val_fraction is None else val_fraction
        trained = [Path(work_dir)] if any(Path(work_dir).glob('*.pth')) else []
        if load_from:
            trained.append(Path(load_from).parent)
        earlier = [folder / made.name / 'split' for folder in trained]
        splits['train'], splits['val'], how = split_off_val(splits['train'], fraction, made / 'split', seed, earlier)
        notes += how
    return CocoFolder(
        root, splits['train'], splits['val'], splits.get('test', splits['val']), format, tuple(map(printable, notes))
    )


def _inner(root: Path) -> Path:
    """Unpacked archives often hold one folder with all the rest in it."""
    while True:
        inside = [path for path in root.iterdir() if not path.name.startswith(('.', '__MACOSX'))]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in ('train', 'images', 'data'):
            return root
        root = inside[0]


def _instead(tree: Tree) -> str:
    """Labels of a format that is not read, or else what the folder holds."""
    return printable(unread_format(tree)) or _contents(tree)


def _contents(tree: Tree) -> str:
    suffixes = Counter(path.suffix.lower() or path.name for path in tree.files)
    tables = [f'{tree.relative(path)} ({", ".join(next(rows_of(path), (0, ()))[1])})' for path in tree.of('.csv')]
    files = ', '.join(f'{count} {suffix}' for suffix, count in suffixes.most_common(8))
    remedy = (
        f'\n  If the CSV file holds the boxes, let its first line be a header with these names: {READ_NAMES}'
        if tables
        else ''
    )
    return (
        f'{what_is_there(tree.root)}\n'
        '  looked for as well: data.yaml and labels/*.txt (YOLO), *.xml (Pascal VOC), *.csv with\n'
        '    columns such as filename, class, xmin, ymin, xmax, ymax\n'
        f'  CSV files found: {printable("; ".join(tables[:5]), MAX_SHOWN) or "none"}\n'
        f'  all files found: {files or "none"}{remedy}'
    )
