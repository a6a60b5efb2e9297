"""mmdet's inferencer, which also finds the models of this package."""

import json
import logging
import warnings
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import chain, islice
from pathlib import Path

import numpy as np
from mmdet.apis import DetInferencer
from mmdet.datasets.transforms import InferencerLoader
from mmengine.logging import print_log
from mmengine.registry import MODELS

from ..checkpoints import (
    CheckpointError,
    adopt,
    check_exists,
    check_fit,
    convert,
    describe,
    load,
    names_in,
    stored_config,
    weights_of,
)
from ..datasets import DataError, LoadImageFromFile
from ..files import named, write_atomically
from ..inference import optimize_for_inference
from ..registry import TRANSFORMS, our_class
from .arguments import check_call_arguments, check_model_arguments, check_names, check_stream_arguments
from .configs import find_config, get_config, list_configs
from .console import progress, quiet
from .finetune import innermost_dataset
from .inputs import Picture, file_of, number_of, pictures
from .outputs import WRITTEN, ClipFiles, Names, Sources, finishing, sources_of
from .pictures import write_picture
from .results import CocoResults, detections_of, to_pandas, to_supervision
from .stored_model import differences, registered_only, stored_model
from .video import is_live

READ_AHEAD = 64  # images, to sort them by shape
READ_AHEAD_BYTES = 2**28  # of them, at most


@dataclass(frozen=True)
class Job:
    """An image on its way: its place among the inputs, where it comes from, what its files are called."""

    index: int
    picture: Picture
    name: str


@dataclass(frozen=True)
class Found:
    """What is found in one image.

    Attributes:
        path: the file, its address, the video or the camera; None: an array.
        frame: its number in the video, from 0; None: it is no frame.
        prediction: as ``returns`` asks for; None: the image could not be read and was skipped.
        visualization: RGB [H, W, 3], uint8, where pictures are asked for.
    """

    path: str | None
    frame: int | None
    prediction: object
    visualization: np.ndarray | None


class DDetrInferencer(DetInferencer):
    """Detect objects in images, folders, videos and streams of images; write pictures, videos and JSON.

    >>> inferencer = DDetrInferencer(weights='work_dirs/demo/epoch_12.pth')
    >>> inferencer('photos', batch_size=4, out_dir='out')  # out/vis/*.jpg, out/preds/*.json

    Args:
        model (str | Path | Config | dict, optional): Name of a config of this package, path of a config, a config, or a
            model name of mmdet. By default the config inside the checkpoint, which always fits its weights.
        weights (str | Path, optional): Checkpoint of any layout in docs/checkpoints.md: a file, a folder of the Hugging
            Face hub, or ``hf://owner/name``; one of another code base needs a ``model``. A model of mmdet's downloads
            its own if none is given.
        optimize (str, optional): 'float32', 'bfloat16' or 'float16': predict with what
            :func:`mmdet_ddetr.optimize_for_inference` makes of the model, in that type. Figures of it cannot be made.
        **kwargs: ``device``, ``palette``, ``show_progress``; see :class:`mmdet.apis.DetInferencer`.

    Raises:
        FileNotFoundError: No such checkpoint, or no model of that name here or in mmdet.
        ValueError: A config that cannot be read, a name of this package without weights, or weights that do not fit
            the model.
        TypeError: An argument of another type, or one that there is not; the message names the nearest.
    """

    def __init__(self, model=None, weights=None, optimize=None, **kwargs):
        own, theirs = (signature(cls.__init__).parameters for cls in (DDetrInferencer, DetInferencer))
        check_names(kwargs, [name for name in own | theirs if name not in ('self', 'kwargs')])
        check_model_arguments(model, weights, kwargs.get('device'), optimize)
        if isinstance(model, str | Path):
            model = get_config(model) if Path(model).is_file() else self._resolve(str(model), weights)
        try:
            check_exists(weights)
        except CheckpointError as error:
            raise FileNotFoundError(f'weights: {error}') from None
        self.names = Names()
        self._every, self._clips, self._sources = 1, ClipFiles(), Sources()
        self._stored = None  # source of the config in the checkpoint, where another one is given
        self._guard = nullcontext  # around what is built of a stored config, and what that does: it may build, too
        with quiet(), ExitStack() as self._while_built:
            super().__init__(
                model,
                str(weights) if weights is not None else None,
                **kwargs,
            )
        if optimize is not None:
            self.model = optimize_for_inference(self.model, optimize)

    @staticmethod
    def _resolve(name, weights):
        """Return the config of one of our models, or ``name`` itself if it may be mmdet's."""
        if name.removesuffix('.py') not in list_configs():
            return name
        if weights is None:
            raise ValueError(
                f'weights: {name} has no published checkpoint; give the path of one, '
                f'or pass get_config({name!r}) to run it with random weights'
            )
        return get_config(name)

    def _load_model_from_metafile(self, model):
        try:
            return super()._load_model_from_metafile(model)
        except ValueError:  # mmdet does not know it either: say which names are like it
            find_config(model)
            raise

    def _init_model(self, cfg, weights, device='cpu'):
        """mmdet's, but for a config in the checkpoint: mmdet would execute it."""
        self._weights = weights
        checkpoint = load(weights) if weights is not None else None
        source = stored_config.find(checkpoint)
        if cfg:
            self._stored = source
        else:
            if source is None:
                raise ValueError(f'model: {weights} holds no config, so give one that fits{self._hint(checkpoint)}')
            cfg.update(stored_model(stored_config.parse(source), weights))
            self._guard = partial(registered_only, weights)
            self._while_built.enter_context(self._guard())
        if cfg.model.get('pretrained') is not None:
            del cfg.model.pretrained  # the checkpoint has them all
        model = MODELS.build(cfg.model)
        model.cfg = cfg
        self._load_weights_to_model(model, checkpoint, cfg)
        return model.to(device).eval()

    def _init_visualizer(self, cfg):
        cfg.visualizer.pop('vis_backends', None)  # they are for a training's folder; here each would only warn
        return super()._init_visualizer(cfg)

    @staticmethod
    def _hint(checkpoint):
        """What is known of weights of any layout."""
        try:
            return f': {describe(convert(checkpoint, classes="keep"))}'
        except CheckpointError:
            return ''

    def _load_weights_to_model(self, model, checkpoint, cfg):
        if checkpoint is not None:
            try:
                checkpoint = adopt(checkpoint, model)
                checkpoint = {**checkpoint, 'state_dict': check_fit(weights_of(checkpoint), model)}
            except CheckpointError as error:
                raise ValueError(
                    f'weights: {self._weights}: {error}. Pass the config the checkpoint was trained with, or no model '
                    'at all'
                ) from None
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'palette does not exist')  # random colours are no news
            super()._load_weights_to_model(model, checkpoint, cfg)
        meta = model.dataset_meta
        meta['classes'] = names_of(model, checkpoint, cfg.test_dataloader, meta['classes'])

    def _init_pipeline(self, cfg):
        """mmdet's, which reads files by this package's loader: every format and orientation, errors with a name."""
        for transform in cfg.test_dataloader.dataset.pipeline:
            if our_class(transform['type'], TRANSFORMS) is LoadImageFromFile:
                transform['type'] = 'LoadImageFromFile'  # as mmdet looks for it
        pipeline = super()._init_pipeline(cfg)
        for transform, config in zip(pipeline.transforms, cfg.test_dataloader.dataset.pipeline):
            if isinstance(transform, InferencerLoader):
                # a pipeline that a config takes from its base has the base's scope
                arguments = {key: value for key, value in config.items() if key not in ('type', '_scope_')}
                transform.from_file = LoadImageFromFile(**arguments)
        return pipeline

    def __call__(self, inputs, batch_size=1, **kwargs):
        """Detect objects, and keep all that is found in memory; :meth:`stream` does not.

        Args: those of :meth:`stream`, but for a camera, which has no end.

        Returns:
            dict: ``predictions``, an image each, in the order of the inputs: {'labels': [N], 'scores': [N], 'bboxes':
            [N, 4] as x1, y1, x2, y2 in pixels}, or what ``returns`` asks for; None of an image that was skipped.
            ``visualization``, RGB images, with ``return_vis``, else empty.

        Raises:
            ValueError, TypeError, FileNotFoundError: An input is not readable or no image; the message says which, what
                it is and what was expected. What came before it is in ``out_dir``.
        """
        check_names(kwargs, list(signature(self.stream).parameters))
        for item in inputs if isinstance(inputs, list | tuple) else [inputs]:
            if isinstance(item, int | str) and not isinstance(item, bool) and is_live(item):
                raise ValueError(f'inputs: camera {item} has no end, and all its detections no place: use .stream(...)')
        found = list(self.stream(inputs, batch_size, **kwargs))
        return dict(
            predictions=[item.prediction for item in found],
            visualization=[item.visualization for item in found] if kwargs.get('return_vis') else [],
        )

    def stream(
        self,
        inputs,
        batch_size=1,
        *,
        out_dir='',
        pred_score_thr=0.3,
        return_vis=False,
        returns='dict',
        return_datasamples=False,
        coco=None,
        every=1,
        unreadable='raise',
        no_save_vis=False,
        no_save_pred=False,
        show=False,
        wait_time=0,
        draw_pred=True,
        print_result=False,
        texts=None,
        stuff_texts=None,
        custom_entities=False,
        tokens_positive=None,
    ):
        """Detect objects, one result after the other, in the order of the inputs.

        >>> for found in inferencer.stream('street.mp4', batch_size=4, out_dir='out'):  # out/vis/street.mp4
        ...     print(found.path, found.frame, len(found.prediction['scores']))

        Args:
            inputs (str | Path | ndarray | PIL.Image | int | Iterable): A file, a folder of images and videos (in the
                order of their names), a pattern such as ``'photos/**/*.jpg'``, an address of http or https; a video;
                the number of a camera or its address of rtsp; an array of uint8 [H, W], [H, W, 1] (gray), [H, W, 3]
                (BGR, as OpenCV reads) or [H, W, 4] (BGRA, whose alpha is left out); a PIL image of any mode of 8 or 16
                bits, turned as its EXIF data say; or a list, tuple or iterator of such. Iterators and videos are read
                as they are needed. Of an animated picture the first is taken.
            batch_size (int): Images at a time. With more than one, up to 64 images are read ahead and those of like
                shapes go together.
            out_dir (str | Path): Folder for ``vis/<name>.<suffix>`` and ``preds/<name>.json``, and of a video or camera
                ``vis/<name>.mp4`` and ``preds/<name>.jsonl``, a line a frame; '' writes nothing. A name is the file's,
                after its folders where another file of this inferencer's has it, as in ``cam2_0001``; of arrays and PIL
                images it is their number.
            pred_score_thr (float): Score, 0 to 1, below which nothing is drawn.
            return_vis (bool): Give the pictures, too.
            returns (str): ``'dict'``; ``'datasample'``, mmdet's; ``'supervision'``, its Detections; or ``'pandas'``, a
                DataFrame with a row a detection. What is written stays the same.
            return_datasamples (bool): The same as ``returns='datasample'``.
            coco (str | Path, optional): Annotation file that gives the ids of images, by their file names, and of
                categories: ``<out_dir>/results.bbox.json`` holds the detections as COCO's results then.
            every (int): Of videos and cameras, look at each n-th frame.
            unreadable (str): What happens at an input that is no image: ``'raise'``, or ``'skip'``, which names it in
                the log.
            no_save_vis, no_save_pred (bool): Write no pictures, no JSON.
            show, wait_time, draw_pred, print_result, texts, stuff_texts, custom_entities, tokens_positive: see
                :class:`mmdet.apis.DetInferencer`.

        Yields:
            Found: One an image.

        Raises: as the call.
        """
        returns = 'datasample' if return_datasamples else returns
        check_call_arguments(batch_size, pred_score_thr, out_dir, show)
        check_stream_arguments(returns, unreadable, every, coco, out_dir)
        out_dir = str(out_dir)
        prompts = dict(texts=texts, stuff_texts=stuff_texts)
        prompts.update(custom_entities=custom_entities, tokens_positive=tokens_positive)
        drawing = dict(show=show, wait_time=wait_time, draw_pred=draw_pred, pred_score_thr=pred_score_thr)
        drawing.update(return_vis=return_vis, no_save_vis=no_save_vis, img_out_dir=out_dir)
        writing = dict(print_result=print_result, no_save_pred=no_save_pred, pred_out_dir=out_dir)
        self._every, self._clips = every, ClipFiles()
        self._sources = self._sources_of(inputs, out_dir) if out_dir and not no_save_vis else Sources()
        ids = coco and CocoResults(Path(out_dir, CocoResults.NAME), coco, self.classes)

        def close(whole):
            with named(out_dir), closing(self._clips):
                if ids:
                    ids.close(whole)

        with finishing(close):
            batches = self.preprocess(
                inputs, batch_size, out_dir=out_dir, every=every, unreadable=unreadable, **prompts
            )
            first = list(islice(batches, 1))  # an error of the inputs comes before the progress bar
            waiting, next_one = {}, 0
            with progress('Inference', number_of(inputs, every), self.show_progress and first) as advance:
                for jobs, data in chain(first, batches):
                    with named(out_dir):
                        results = self._results_of(jobs, data, returns, drawing, writing, ids)
                    waiting.update(zip((job.index for job in jobs), results))
                    advance(len(jobs))
                    while next_one in waiting:
                        yield waiting.pop(next_one)
                        next_one += 1

    def _sources_of(self, inputs, out_dir):
        """The files among the inputs, if no picture or video would replace one."""
        try:
            return sources_of(inputs, self.names, out_dir, lambda *file: [_drawn_suffix(*file)], 'vis')
        except FileExistsError as error:
            raise ValueError(f'out_dir is {out_dir!r}, but {error}') from None

    def differences(self):
        """Where detections by the given config are not those by the one in the checkpoint.

        Returns:
            list[str]: ``name value, not value``: of the images' scale and the settings of ``model.test_cfg``.
        """
        try:
            return differences(self.cfg, stored_config.parse(self._stored)) if self._stored else []
        except CheckpointError:  # nothing can be told of it
            return []

    @property
    def classes(self):
        """A name for each label."""
        return self.model.dataset_meta['classes']

    def detect(self, images, threshold=0.0):
        """Detect in one batch of arrays, as an :class:`~mmdet_ddetr.export.ExportedDetector` does.

        Args:
            images (Sequence[ndarray]): [H, W, 3], uint8, BGR.
            threshold (float): Score below which detections are left out.

        Returns:
            list[Detections]: One an image.
        """
        if not len(images):
            return []
        with self._guard():
            preds = self.forward(self.collate_fn([self.pipeline({'img': image}) for image in images]))
        return [detections_of(pred).above(threshold) for pred in preds]

    def _results_of(self, jobs, data, returns, drawing, writing, ids):
        """What is found in a batch, drawn and written; of what could not be read, ``data`` is None."""
        places = [(job.picture.origin, job.picture.number) for job in jobs]
        if data is None:
            return [Found(*place, None, None) for place in places]
        with self._guard():
            preds = self.forward(data)
        drawn = self.visualize(jobs, preds, **drawing)
        results = self.postprocess(preds, drawn, returns == 'datasample', jobs=jobs, **writing)['predictions']
        if ids or returns in ('supervision', 'pandas'):
            detections = [detections_of(pred) for pred in preds]
            for job, found in zip(jobs, detections) if ids else ():
                if job.picture.path:
                    self._add_to(ids, job.picture.path, found)
            if returns == 'supervision':
                results = [to_supervision(found, self.classes) for found in detections]
            elif returns == 'pandas':
                results = [to_pandas(found, self.classes, *place) for found, place in zip(detections, places)]
        if not drawing['return_vis']:
            drawn = [None] * len(jobs)
        return [Found(*place, *item) for place, *item in zip(places, results, drawn)]

    @staticmethod
    def _add_to(ids, path, found):
        try:
            ids.add(path, found)
        except DataError as error:
            print_log(str(error), 'current', logging.WARNING)

    def preprocess(self, inputs, batch_size=1, *, out_dir='', every=1, unreadable='raise', **prompts):
        """Yield (jobs, batch): images of like shapes together, as padding costs time and moves detections.

        An input that cannot be read ends this after what came before it or, where it is skipped, has None for a batch.
        """
        ahead = 1 if batch_size == 1 else max(READ_AHEAD, batch_size)
        images, held, stopped = enumerate(pictures(inputs, every)), None, None
        while stopped is None:
            window, size = [], 0
            try:
                # frames are of one shape: nothing is gained by reading more of them
                while len(window) < (batch_size if window and window[0][0].picture.clip else ahead) and (
                    size < READ_AHEAD_BYTES or len(window) % batch_size
                ):
                    index, picture = held or next(images)
                    held = None
                    if window and picture.clip is not window[0][0].picture.clip:
                        held = index, picture  # the files of one clip at a time are open
                        break
                    try:
                        picture = picture.downloaded()
                        data = self._read(picture, index, **prompts)
                    except (ValueError, OSError) as error:
                        if unreadable == 'raise':
                            raise
                        print_log(f'{error}; it is skipped', 'current', logging.WARNING)
                        yield (Job(index, picture, ''),), None
                        continue
                    size += data['inputs'].nbytes
                    size += picture.source.nbytes if isinstance(picture.source, np.ndarray) else 0
                    name = self.names.of(picture.origin, out_dir) if out_dir else ''
                    if picture.origin:
                        self._sources.add(picture.origin)  # of an iterator it is told here only
                    window.append((Job(index, picture, name), data))
            except (StopIteration, ValueError, TypeError, OSError) as error:
                stopped = error
            window.sort(key=lambda item: tuple(item[1]['inputs'].shape[-2:]))
            for start in range(0, len(window), batch_size):
                jobs, batch = zip(*window[start : start + batch_size])
                yield jobs, self.collate_fn(batch)
        if not isinstance(stopped, StopIteration):
            raise stopped

    def _read(self, picture, index, texts=None, stuff_texts=None, custom_entities=False, tokens_positive=None):
        """What the pipeline makes of an image."""
        if isinstance(picture.source, Exception):
            raise picture.source
        data = {'img_path' if isinstance(picture.source, str) else 'img': picture.source}
        if texts is not None:
            text = texts if isinstance(texts, str) else texts[index]
            data.update(text=text, custom_entities=custom_entities, tokens_positive=tokens_positive)
        if stuff_texts is not None:
            data['stuff_text'] = stuff_texts if isinstance(stuff_texts, str) else stuff_texts[index]
        try:
            with self._guard():
                return self.pipeline(data)
        except DataError as error:  # names the file
            missing = isinstance(picture.source, str) and not Path(picture.source).exists()
            raise (FileNotFoundError if missing else ValueError)(picture.named(error)) from None

    def visualize(
        self,
        jobs,
        preds,
        return_vis=False,
        show=False,
        wait_time=0,
        no_save_vis=False,
        draw_pred=True,
        pred_score_thr=0.3,
        img_out_dir='',
    ):
        """Draw detections, RGB; write them to ``<img_out_dir>/vis``."""
        out_dir = '' if no_save_vis else img_out_dir
        if not (show or out_dir or return_vis):
            return None
        if self.visualizer is None:
            raise ValueError('the config has no visualizer, which out_dir, return_vis and show need')
        drawn = []
        for job, pred in zip(jobs, preds):
            clip = job.picture.clip
            file = f'{job.name}{_drawn_suffix(job.picture.origin, bool(clip))}'
            if out_dir:
                self._sources.check(Path(out_dir, 'vis', file))
            self.visualizer.add_datasample(
                file,
                job.picture.read()[..., ::-1],
                pred,
                show=show,
                wait_time=wait_time,
                draw_gt=False,
                draw_pred=draw_pred,
                pred_score_thr=pred_score_thr,
            )
            drawn.append(self.visualizer.get_image())
            if out_dir and not clip:
                write_picture(Path(out_dir, 'vis', file), drawn[-1][..., ::-1])
            elif out_dir:
                self._clips.draw(Path(out_dir, 'vis', file), clip, drawn[-1][..., ::-1], clip.fps / self._every)
        return drawn

    def postprocess(
        self,
        preds,
        visualization=None,
        return_datasamples=False,
        print_result=False,
        no_save_pred=False,
        pred_out_dir='',
        jobs=(),
    ):
        """Detections as dicts; write them to ``<pred_out_dir>/preds``."""
        out_dir = '' if no_save_pred else pred_out_dir
        results = list(preds)
        if out_dir or not return_datasamples:
            results = [self.pred2dict(pred) for pred in preds]
        if out_dir:
            folder = Path(out_dir, 'preds')
            folder.mkdir(parents=True, exist_ok=True)
            for job, result in zip(jobs, results):
                if 'panoptic_seg' in result:
                    result['panoptic_seg_path'] = str(folder / f'{job.name}_panoptic_seg.png')
                    write_picture(result['panoptic_seg_path'], result.pop('panoptic_seg')[..., ::-1])
                if job.picture.clip:
                    place = dict(frame=job.picture.number, time=round(job.picture.time, 4))
                    self._clips.note(folder / f'{job.name}.jsonl', job.picture.clip, place | result)
                else:
                    write_atomically(folder / f'{job.name}.json', json.dumps(result).encode(), sync=False)
        results = dict(predictions=list(preds) if return_datasamples else results)
        if print_result:
            print(results)
        return dict(results, visualization=visualization)


def _drawn_suffix(path, is_video):
    """Of the annotated picture or video of a file, or of an array, whose path is None."""
    if is_video:
        return '.mp4'
    suffix = file_of(path).suffix if path else ''
    return suffix if suffix.lower() in WRITTEN else '.jpg'


def names_of(model, checkpoint, loader, default):
    """The names of a model's classes: the checkpoint's, else the config's, and never those of other classes.

    Args:
        checkpoint (dict | None): That the model was loaded from.
        loader (dict): Config of a data loader, whose ``dataset.metainfo`` may name the classes.
        default (Sequence[str]): COCO's, where nobody names any and their number fits; else each class is called by its
            label.
    """
    number = getattr(getattr(model, 'bbox_head', None), 'num_classes', None)
    written = (innermost_dataset(loader).get('metainfo') or {}).get('classes')
    for names in (names_in(checkpoint or {}), written, default):
        if names and not isinstance(names, str) and number in (None, len(names)):
            return names
    return tuple(f'class {label}' for label in range(number))
