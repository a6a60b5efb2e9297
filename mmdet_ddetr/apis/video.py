"""Videos and cameras, frame by frame."""

import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import cv2
import numpy as np

from ..datasets.download import download, is_web
from ..datasets.errors import DataError
from ..datasets.image_file import MAX_PIXELS, check_aspect

SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
STREAMS = ('rtsp://', 'rtsps://')  # addresses of network cameras
MAX_DOWNLOAD = 2**31  # bytes of a video
SILENCE = 10_000  # ms that a network camera may be silent
USUAL_FPS = 25.0  # of what does not say its own
OPTIONS = 'OPENCV_FFMPEG_CAPTURE_OPTIONS'  # environment variable: key;value|key;value
# A playlist in place of a video may name other files and addresses: only what holds its own pictures is opened.
CONTAINERS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,asf,mpeg,mpegts,mpegvideo,h264,hevc,flv,ogg'
ONE_FILE = f'protocol_whitelist;file|format_whitelist;{CONTAINERS}'


@dataclass(frozen=True)
class Clip:
    """A video, or what a camera sends.

    Attributes:
        source: path or address of a video or network camera, or the number of a camera of this machine.
        fps: frames a second.
        count: of frames, as the file says; None: it does not, or has no end.
    """

    source: str | int
    fps: float
    count: int | None

    @property
    def live(self) -> bool:
        return is_live(self.source)

    @property
    def name(self) -> str:
        return f'camera {self.source}' if isinstance(self.source, int) else self.source


@dataclass(frozen=True)
class Frame:
    """One picture of a clip.

    Attributes:
        number: from 0, those left out counted.
        time: seconds from the beginning.
        pixels: BGR [H, W, 3], uint8, upright; or why there are none.
    """

    number: int
    time: float
    pixels: np.ndarray | DataError


def is_live(source: str | int) -> bool:
    return isinstance(source, int) or source.lower().startswith(STREAMS)


def clip_of(source: str | int) -> Clip:
    """What a video says of itself; nothing of a camera is asked, nor of an address.

    Raises:
        DataError: why it cannot be read, without its name.
    """
    if is_live(source) or is_web(source):
        return Clip(source, USUAL_FPS, None)
    with _opened(source) as (_, clip):
        return clip


def frames(source: str | int, every: int = 1) -> Iterator[tuple[Clip, Frame]]:
    """The frames of a video, or of a camera until it is off.

    Args:
        source: see :class:`Clip`. What is on the web is downloaded to a temporary file first.
        every: leave out all but each n-th frame.

    Raises:
        DataError: it cannot be read, or ends before its end; without its name. What came before has been yielded.
    """
    if not is_live(source) and is_web(source):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'video')
            with open(path, 'wb') as file:
                for chunk in download(source, MAX_DOWNLOAD):
                    file.write(chunk)
            there = None
            for clip, frame in frames(str(path), every):
                there = there or Clip(source, clip.fps, clip.count)
                yield there, frame
        return
    with _opened(source) as (capture, clip):
        number, start = 0, time.monotonic()
        while capture.grab():
            if number % every == 0:
                at = time.monotonic() - start if clip.live else capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
                yield clip, Frame(number, at, _pixels(capture))
            number += 1
        _check_end(clip, number)


@contextmanager
def _opened(source: str | int) -> Iterator[tuple[cv2.VideoCapture, Clip]]:
    with quiet_ffmpeg():
        if isinstance(source, int):
            capture = cv2.VideoCapture(source)
        elif is_live(source):
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, SILENCE, cv2.CAP_PROP_READ_TIMEOUT_MSEC, SILENCE]
            capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
        else:
            if not os.path.isfile(source):
                raise DataError('no such file' if not os.path.exists(source) else 'no regular file')
            if not is_text(source):
                raise DataError('the name is no UTF-8, which a video needs: rename it')
            with mock.patch.dict(os.environ, {OPTIONS: ONE_FILE}):
                capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise DataError(_why_closed(source))
        width, height, fps, count = (
            capture.get(key)
            for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT)
        )
        if width * height > MAX_PIXELS:
            raise DataError(f'{width:g}x{height:g} is {width * height:,.0f} pixels, expected at most {MAX_PIXELS:,}')
        fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else USUAL_FPS
        yield capture, Clip(source, fps, round(count) if count > 0 and not is_live(source) else None)
    finally:
        capture.release()


@contextmanager
def quiet_ffmpeg() -> Iterator[None]:
    """What OpenCV and ffmpeg would print on opening a file is said in one sentence by who calls."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        with mock.patch.dict(os.environ, {'OPENCV_FFMPEG_LOGLEVEL': '-8'}):
            yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def is_text(path: str | Path) -> bool:
    """Whether OpenCV takes a path: by one with other bytes than UTF-8's it ends the process."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _why_closed(source: str | int) -> str:
    if isinstance(source, int):
        return 'no camera of this number gives pictures'
    if is_live(source):
        return f'no stream of pictures within {SILENCE / 1000:g} s'
    return 'the file is empty' if not os.path.getsize(source) else 'not a video, or damaged'


def _pixels(capture: cv2.VideoCapture) -> np.ndarray | DataError:
    done, pixels = capture.retrieve()
    if not done or pixels is None or not pixels.size:
        return DataError('does not decode')
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, 2)
    try:
        check_aspect(*pixels.shape[1::-1])
    except DataError as error:
        return error
    return pixels


def _check_end(clip: Clip, number: int) -> None:
    """Whether all is read; the count in a file is an estimate, off by a few."""
    if clip.live:
        raise DataError(f'gives no more pictures, after {number}')
    if not number:
        raise DataError('no frame decodes')
    if clip.count is not None and number < 0.98 * clip.count - 2:
        raise DataError(f'ends after {number} of {clip.count} frames: the file is damaged or cut off')
