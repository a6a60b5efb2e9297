"""Annotated videos."""

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from ..datasets.errors import DataError
from .video import clip_of, is_text, quiet_ffmpeg

CODES = 'avc1', 'mp4v'  # H.264, for which most builds of OpenCV have no encoder, and MPEG-4 Part 2, which all have

LARGEST_SIDE = 8190  # px of MPEG-4 Part 2
MARK = b'\0\0\0\x13free' + b'mmdet_ddetr'  # at the end of each video: a box of 19 bytes that players pass over


class VideoFile:
    """An annotated video that grows frame by frame, an ``.mp4`` file.

    It is H.264, which every browser plays, where PyAV is installed or OpenCV has an encoder for it; else MPEG-4 Part 2,
    which players such as VLC take, but browsers do not.

    Args:
        path: of the file.
        fps: frames a second.
        size: (w, h) in px of the first frame. Others are fitted to it, odd sides get one more row or column, and a
            side of more than 8,190 px is made smaller.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: str | Path, fps: float, size: tuple[int, int]):
        scale = min(LARGEST_SIDE / max(size), 1)
        size = tuple(max(int(side * scale), 1) for side in size)
        self.path, self.size = Path(path), size
        if not is_text(path):
            raise OSError(f'{path}: the name is no UTF-8, which a video needs: take another folder')
        self._odd = (size[1] % 2, size[0] % 2)
        width, height = size[0] + self._odd[1], size[1] + self._odd[0]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._encoder = _by_pyav(self.path, fps, width, height) or _by_opencv(self.path, fps, width, height)
        if self._encoder is None:
            raise OSError(f'{path}: no video of {width}x{height} px at {fps:g} frames a second can be written there')

    def write(self, frame: np.ndarray) -> None:
        """Append BGR [H, W, 3], uint8."""
        if frame.shape[1::-1] != self.size:
            frame = cv2.resize(frame, self.size, interpolation=cv2.INTER_AREA)
        bottom, right = self._odd
        self._encoder.write(cv2.copyMakeBorder(frame, 0, bottom, 0, right, cv2.BORDER_REPLICATE))

    def close(self) -> None:
        """Finish the file: before that no player opens it.

        Raises:
            OSError: not all of it is on the disk, of which OpenCV says nothing.
        """
        try:
            self._encoder.release()
            with open(self.path, 'ab') as file:
                file.write(MARK)
            clip_of(str(self.path))
        except (DataError, OSError) as error:
            raise OSError(f'{self.path}: the video is damaged, {error}: is the disk full?') from None


class _Encoder(Protocol):
    def write(self, frame: np.ndarray) -> None: ...
    def release(self) -> None: ...


def _by_opencv(path: Path, fps: float, width: int, height: int) -> _Encoder | None:
    for code in CODES:
        with quiet_ffmpeg():
            writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), fps, (width, height))
        if writer.isOpened():
            return writer
    return None


def _by_pyav(path: Path, fps: float, width: int, height: int) -> _Encoder | None:
    try:
        import av
    except ImportError:
        return None
    with suppress(av.FFmpegError):  # a build of it without the encoder, or sides that are too long for H.264
        return _PyAV(av, path, fps, width, height)
    return None


class _PyAV:
    """x264, fast rather than small."""

    def __init__(self, av, path: Path, fps: float, width: int, height: int):
        self._av, self._file = av, av.open(str(path), 'w')
        rate = Fraction(fps).limit_denominator(1001)
        self._stream = self._file.add_stream('libx264', rate, options=dict(preset='veryfast', bf='0'))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, 'yuv420p'
        self._stream.codec_context.open()

    def write(self, frame: np.ndarray) -> None:
        self._file.mux(self._stream.encode(self._av.VideoFrame.from_ndarray(frame, 'bgr24')))

    def release(self) -> None:
        try:
            self._file.mux(self._stream.encode())
        finally:
            self._file.close()
