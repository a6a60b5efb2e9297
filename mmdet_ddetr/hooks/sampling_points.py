from contextlib import ExitStack

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..explain import explanation_of, record
from ..explain.overview import overview
from ..explain.panels import to_array
from ..registry import HOOKS
from ..unwrap import unwrap
from .image_of import image_of


@HOOKS.register_module()
class SamplingPointsHook(Hook):
    """At each evaluation, what the detector looks at in its first images (of a DETR, the paper's figure 6).

    The pictures go to the visualizer's backends, ``sampling_points_<image>_<iteration>.png`` in
    ``<run>/vis_data/vis_image`` with mmdet's default one. They are taken from the evaluation's own predictions, of the
    same images each time; later batches are not touched.

    Args:
        n_images: pictures an evaluation, of the first images of the validation set.
        n_objects: columns of a picture, the best detections of different objects.
        score_thr: detections below it are left out; an image without any has no picture.
    """

    def __init__(self, n_images: int = 4, n_objects: int = 4, score_thr: float = 0.3):
        self.n_images = n_images
        self.n_objects = n_objects
        self.score_thr = score_thr
        self._seen = 0  # images of this evaluation
        self._recorder = ExitStack()
        self._recording = None

    def before_val_epoch(self, runner) -> None:
        self._recorder.close()  # an evaluation before this one may have failed
        self._seen = 0

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self._seen < self.n_images and is_main_process():
            self._recording = self._recorder.enter_context(record(unwrap(runner.model)))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._recording is None:
            return
        self._recorder.close()
        for index, sample in enumerate(outputs[: self.n_images - self._seen]):
            image = image_of(runner, sample)
            if image is None:
                continue
            image = image[..., ::-1]
            explanation = explanation_of(unwrap(runner.model), self._recording, index, sample, image, self.score_thr)
            if explanation.detections:
                picture = to_array(overview(explanation, explanation.objects(self.n_objects)))
                runner.visualizer.add_image(f'sampling_points_{self._seen + index}', picture, step=runner.iter)
        self._seen += len(outputs)
        self._recording = None
