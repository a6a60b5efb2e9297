from contextlib import ExitStack

import mmcv
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from ..explain import explanation_of, record
from ..explain.figures import figure6, to_array
from ..registry import HOOKS


@HOOKS.register_module()
class SamplingPointsHook(Hook):
    """Draws what the detector looks at in a few validation images at each evaluation (the paper's figure 6).

    The pictures go to the runner's visualizer, which by default writes them to
    ``<work dir>/<time>/vis_data/vis_image/``, and to TensorBoard or wherever else its backends write. They are taken
    from the evaluation's own predictions, of the same images each time; other batches are not touched.

    Args:
        num_images (int): How many images, the first of the validation set.
        num_detections (int): The best detections of each, a column of the figure each.
        score_thr (float): Detections below it are left out; an image without any has no picture.
    """

    def __init__(self, num_images: int = 4, num_detections: int = 4, score_thr: float = 0.3):
        self.num_images = num_images
        self.num_detections = num_detections
        self.score_thr = score_thr
        self._recorder = ExitStack()

    def before_val_epoch(self, runner) -> None:
        self._recorder.close()  # an evaluation before this one may have failed
        self._left = self.num_images

    def before_val_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self._left > 0:
            self._recording = self._recorder.enter_context(record(_model_of(runner)))

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._left <= 0:
            return
        self._recorder.close()
        for index, sample in enumerate(outputs[: self._left]):
            image = mmcv.imread(sample.img_path, channel_order='rgb')
            explanation = explanation_of(_model_of(runner), self._recording, index, sample, image, self.score_thr)
            if explanation.detections:
                picture = to_array(figure6(explanation, explanation.detections[: self.num_detections]))
                number = self.num_images - self._left + index
                runner.visualizer.add_image(f'sampling_points_{number}', picture, step=runner.iter)
        self._left -= len(outputs)
        del self._recording


def _model_of(runner):
    return runner.model.module if is_model_wrapper(runner.model) else runner.model
