"""Detections of an exported file, whatever its format."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import mmcv
import numpy as np

from ..checks import check_score
from ..datasets.pixels import bgr_of_array, of_fair_shape
from .description import KEY, Description, ExportError
from .formats import quiet

MOST_THREADS = 1024  # onnxruntime starts all of them, and hangs where the system has no more


@dataclass(frozen=True)
class Detections:
    """Of one image, by falling score."""

    boxes: np.ndarray  # [N, 4] (x1, y1, x2, y2) in pixels of the image as given
    scores: np.ndarray  # [N]
    labels: np.ndarray  # [N], indices of ``classes``
    masks: np.ndarray | None = None  # [N, H, W] bool

    def above(self, threshold: float) -> 'Detections':
        """Those with at least this score."""
        keep = self.scores >= threshold
        masks = None if self.masks is None else self.masks[keep]
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], masks)


class ExportedDetector:
    """A file that ``tools/export.py`` wrote, in the runtime that it is for.

    >>> detector = ExportedDetector('detector.onnx')
    >>> (found,) = detector([cv2.imread('street.jpg')])

    Args:
        path: ``.onnx``, OpenVINO's ``.xml``, or ``.pt2`` of torch.export or AOTInductor.
        threads: of the runtime, 1 to 1024; None: its own choice.

    Raises:
        ValueError: another number of threads.
        FileNotFoundError: no such file.
        ImportError: the runtime is missing.
        ExportError: the file is of another kind, or damaged.
    """

    SUFFIXES = ('.onnx', '.xml', '.pt2')

    def __init__(self, path: str | Path, threads: int | None = None):
        if threads is not None and not (isinstance(threads, int) and 1 <= threads <= MOST_THREADS):
            raise ValueError(f'threads must be an integer from 1 to {MOST_THREADS}, or None, got {threads!r}')
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'no such file: {path}')
        if not self.reads(path):
            raise ExportError(f'{path}: expected a file of {", ".join(self.SUFFIXES)}')
        open_ = {'.onnx': _onnx, '.xml': _openvino, '.pt2': _pt2}[path.suffix.lower()]
        try:
            self.run, text = open_(path, threads)
        except ModuleNotFoundError as error:
            raise ImportError(f'{path} needs {error.name}: pip install {error.name}') from None
        self.description = Description.from_json(text, path)

    @classmethod
    def reads(cls, path: str | Path) -> bool:
        """Whether a file has the ending of an exported one, in small letters or capitals."""
        return Path(path).suffix.lower() in cls.SUFFIXES

    @property
    def threshold(self) -> float:
        """Score below which detections are usually left out."""
        return self.description.threshold

    @property
    def batch_size(self) -> int | None:
        """The number of images it takes at a time; None: any."""
        return self.description.batch

    @property
    def classes(self) -> tuple[str, ...]:
        return self.description.classes

    def __call__(self, images: Sequence[np.ndarray], threshold: float = 0.0) -> list[Detections]:
        """Detect in one batch.

        Args:
            images: [H, W, 3] uint8 in BGR, as OpenCV reads them, of any sizes; or gray [H, W], or BGRA [H, W, 4].
            threshold: score below which detections are left out.

        Raises:
            ValueError: an array is no such image, or there is one where a list is expected, or ``threshold`` is no
                number from 0 to 1; says what to do.
            ExportError: the file takes another number of images, or smaller ones.
        """
        check_score('threshold', threshold)
        if isinstance(images, np.ndarray) and images.ndim < 4:
            raise ValueError('images: expected a list of images, got one array: give [image]')
        images = [_image(image, f'images[{index}]') for index, image in enumerate(images)]
        if not images:
            return []
        resized = [self.resize(image) for image in images]
        batch, sizes = self.batch(resized)
        outputs = self.run(batch, sizes)
        results = []
        for index, image in enumerate(images):
            boxes, scores, labels, *masks = (output[index] for output in outputs)
            keep = scores >= threshold
            (h, w), (H, W) = sizes[index], image.shape[:2]
            factor = np.array([W / w, H / h] * 2, np.float32)
            mask = None
            if masks:
                mask = masks_of(masks[0][keep], batch.shape[2:], (h, w), (H, W))
            results.append(Detections(boxes[keep] * factor, scores[keep], labels[keep], mask))
        return results

    def resize(self, image: np.ndarray) -> np.ndarray:
        """As the test pipeline does."""
        if self.description.scale is None:
            return image
        h, w = image.shape[:2]
        width, height = self.description.scale
        if self.description.keep_ratio:
            width, height = (max(side, 1) for side in mmcv.rescale_size((w, h), (width, height)))
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)

    def batch(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """``images`` and ``sizes`` of the program."""
        sizes = np.array([image.shape[:2] for image in images], np.int64)
        about = self.description
        H, W = about.fixed or -(-np.maximum(sizes.max(0), about.smallest) // about.divisor) * about.divisor
        if (sizes > (H, W)).any():
            raise ExportError(f'images must be at most {W} x {H} px for this file, got {sizes[:, ::-1].tolist()}')
        if self.description.batch not in (None, len(images)):
            raise ExportError(f'this file takes {self.description.batch} images at a time, got {len(images)}')
        batch = np.zeros((len(images), 3, H, W), np.float32)
        for into, image, (h, w) in zip(batch, images, sizes):
            into[:, :h, :w] = image[..., ::-1].transpose(2, 0, 1)
        return batch, sizes


def _image(array: np.ndarray, where: str) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        raise ValueError(
            f'{where} is of type {type(array).__name__}, expected an array; of a file, cv2.imread gives it'
        )
    return of_fair_shape(bgr_of_array(array, where), where)


def masks_of(logits: np.ndarray, whole, size, target) -> np.ndarray:
    """Logits [N, h, w] of the padded input to masks of the image as given."""
    import torch
    import torch.nn.functional as F

    if not len(logits):
        return np.zeros((0, *target), bool)
    scaled = F.interpolate(torch.from_numpy(logits)[None], size=tuple(whole), mode='bilinear')[
        0, :, : size[0], : size[1]
    ]
    return F.interpolate((scaled > 0).float()[None], size=tuple(target), mode='nearest')[0].bool().numpy()


def _onnx(path: Path, threads: int | None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # its own choice
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    except Exception as error:
        raise ExportError(f'{path} cannot be read by onnxruntime: {_first_line(error)}') from None

    def run(images, sizes):
        return session.run(None, dict(images=images, sizes=sizes))

    return run, session.get_modelmeta().custom_metadata_map.get(KEY)


def _openvino(path: Path, threads: int | None):
    import openvino

    weights = path.with_suffix('.bin')
    if not weights.is_file():
        raise ExportError(f'{path} cannot be read by OpenVINO: {weights}, which belongs to it, is missing')
    core = openvino.Core()
    properties = {'INFERENCE_NUM_THREADS': threads} if threads else {}
    try:
        model = core.read_model(path)
        text = str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else None
        compiled = core.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32', **properties})
    except RuntimeError as error:
        raise ExportError(f'{path} cannot be read by OpenVINO: {str(error).rstrip().splitlines()[-1]}') from None

    def run(images, sizes):
        outputs = compiled([images, sizes])
        return [outputs[port] for port in compiled.outputs]

    return run, text


def _pt2(path: Path, threads: int | None):
    import torch

    if threads:
        torch.set_num_threads(threads)
    names = _names_in_archive(path)
    try:
        with quiet():
            if any('/data/aotinductor/' in name for name in names):
                program = torch._inductor.aoti_load_package(str(path))
                text = program.get_metadata().get(KEY)
            else:
                extra = {KEY: ''}
                program = torch.export.load(path, extra_files=extra).module()
                text = extra[KEY]
    except Exception as error:
        reason = 'it is damaged, or of a later version' if 'warnings above' in str(error) else _first_line(error)
        raise ExportError(f'{path} cannot be read by PyTorch {torch.__version__}: {reason}') from None

    def run(images, sizes):
        with torch.no_grad():
            return [output.numpy() for output in program(torch.from_numpy(images), torch.from_numpy(sizes))]

    return run, text


def _names_in_archive(path: Path) -> list[str]:
    """Of the files in an archive of torch.export or AOTInductor.

    Raises:
        ExportError: it is another one, as checkpoints and TorchScript files are, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names, damaged = archive.namelist(), archive.testzip()
    except Exception as error:  # of zipfile, zlib, ...
        raise ExportError(f'{path} cannot be read by PyTorch: {_first_line(error)}') from None
    if damaged is not None:
        raise ExportError(f'{path} cannot be read by PyTorch: {damaged} in it is damaged')
    if not any(name.endswith('/archive_format') for name in names):
        raise ExportError(f'{path} is no file of torch.export or AOTInductor, but another archive, as checkpoints are')
    return names


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
