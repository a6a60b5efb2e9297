"""What a file is that is no checkpoint, and what a pickle asks for: for messages, nothing of it is run."""

import io
import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

PICTURE = 'a picture'
KINDS = {  # by the first bytes
    b'\x89PNG': PICTURE,
    b'\xff\xd8\xff': PICTURE,
    b'GIF8': PICTURE,
    b'BM': PICTURE,
    b'RIFF': PICTURE,
    b'II*\0': PICTURE,
    b'%PDF': 'a PDF document',
    b'\x1f\x8b': 'a gzip archive: unpack it first',
    b'\x89HDF': 'an HDF5 file',
    b'version https://git-lfs': 'only a pointer of Git LFS: get the file itself with `git lfs pull`',
}
EXPORTED = 'a detector that was exported: open it with `predict --weights` or mmdet_ddetr.apis.open_detector'
WEB_PAGE = re.compile(rb'\s*<(!doctype html|html)', re.IGNORECASE)
ONNX = re.compile(rb'\x08[\x03-\x20](\x12|:)')  # the version of the format, then who wrote it, or the graph
OPENVINO = re.compile(rb'(\xef\xbb\xbf)?\s*<\?xml[^>]*>\s*<net\b')
PICKLE_BYTES = 2**22  # of a file that are looked at
PICKLES = 10  # likewise; files from before torch 1.6 have five


def kind_of(path: Path) -> str | None:
    """What a file is by its first bytes, if that is known and not a checkpoint."""
    with open(path, 'rb') as file:
        head = file.read(1024)
    for start, kind in KINDS.items():
        if head.startswith(start):
            return kind
    if head.startswith(b'PK'):
        return _kind_of_zip(path)
    if WEB_PAGE.match(head):
        return 'a web page: download the file itself'
    if ONNX.match(head) or OPENVINO.match(head):
        return EXPORTED
    if head[:1] == b'\x80':
        return 'a pickle that is cut off, or not written by torch.save'
    if head[8:9] == b'{' and 0 < int.from_bytes(head[:8], 'little') < path.stat().st_size:
        return 'a file of safetensors: give it the suffix .safetensors'
    if not any(head):
        return 'a file of zeros, as a crash or a broken copy leaves it'
    return 'a text file' if min(head) >= ord('\t') else None


def _kind_of_zip(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return 'a zip archive that is cut off or damaged: copy or download it again'
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith('/archive_format') for name in names):  # of torch.export and AOTInductor
        return EXPORTED
    is_checkpoint = any(name.endswith('data.pkl') for name in names)
    return None if is_checkpoint else 'a zip archive of something else'


def asked_for(path: Path) -> list[str]:
    """What the pickle in a file wants called or built that torch was not told to allow."""
    return _not_allowed(set(_globals(_pickle_in(path))))


def protocol_of(path: Path) -> int | None:
    """Of the pickle in a file; None: there is none, or it does not say so, as before protocol 2."""
    start = _pickle_in(path)[:2]
    return start[1] if start[:1] == b'\x80' and len(start) == 2 else None


def _pickle_in(path: Path) -> bytes:
    """The first bytes of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith('data.pkl'))
            with archive.open(name) as file:
                return file.read(PICKLE_BYTES)
    except (zipfile.BadZipFile, StopIteration, NotImplementedError):
        with open(path, 'rb') as file:  # written before torch 1.6, or by pickle: one pickle after the other
            return file.read(PICKLE_BYTES)


def _not_allowed(names: set[tuple[str, str]]) -> list[str]:
    """Those of the names, (module, name), that ``torch.load`` refuses; torch tells it of a checkpoint."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('archive/version', '3')
        file.writestr('archive/data.pkl', ''.join(f'c{module}\n{name}\n' for module, name in names) + '.')
    archive.seek(0)
    return sorted(get_unsafe_globals_in_checkpoint(archive))


def _globals(data: bytes) -> Iterator[tuple[str, str]]:
    stream = io.BytesIO(data)
    for _ in range(PICKLES):
        strings, memo = [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):  # leaves the stream behind the pickle
                match opcode.name:
                    case 'GLOBAL' | 'INST':
                        yield tuple(argument.split(' ', 1))
                    case 'STACK_GLOBAL':
                        yield tuple(strings[-2:])
                    case 'MEMOIZE':
                        memo[len(memo)] = strings[-1] if strings else ''
                    case 'BINPUT' | 'LONG_BINPUT' | 'PUT':
                        memo[int(argument)] = strings[-1] if strings else ''
                    case 'BINGET' | 'LONG_BINGET' | 'GET':
                        strings.append(memo.get(int(argument), ''))
                if isinstance(argument, str):
                    strings.append(argument)
        except Exception:  # noqa: BLE001  not a pickle from here on
            return
