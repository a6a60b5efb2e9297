import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..apis.outputs import Names
from ..apis.pictures import compare, palette
from ..registry import HOOKS
from .image_of import image_of


@HOOKS.register_module()
class SamplePicturesHook(Hook):
    """After each evaluation, a few of its images with the ground truth beside the prediction.

    They go to the visualizer's backends, ``sample_<image>_<iteration>.png`` in ``<run>/vis_data/vis_image`` with
    mmdet's default one. Of images of one name the later ones have their folder before it.

    Args:
        n_images: pictures an evaluation, always of the same images, at even distances in the data set.
        score_thr: predictions below it are not drawn.
    """

    def __init__(self, n_images: int = 4, score_thr: float = 0.3):
        self.n_images = n_images
        self.score_thr = score_thr
        self._truth = {}  # of each image to draw, by path: ids may be those of several data sets
        self._names = Names()  # of their pictures
        self._positions = set()

    def before_val_epoch(self, runner) -> None:
        length = len(runner.val_dataloader)
        count = min(self.n_images, length)  # the first image of as many batches
        self._positions = {i * length // count for i in range(count)} if is_main_process() else set()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if batch_idx not in self._positions:
            return
        sample, dataset = outputs[0], runner.val_dataloader.dataset
        image = image_of(runner, sample)
        if image is None:
            return
        if sample.img_path not in self._truth:
            self._truth[sample.img_path] = _truth_of(dataset, sample.img_path)
        classes = dataset.metainfo['classes']
        found = sample.pred_instances.cpu().numpy()
        kept = found.scores >= self.score_thr
        picture = compare(
            image,
            *self._truth[sample.img_path],
            found.bboxes[kept],
            found.labels[kept],
            found.scores[kept],
            classes,
            dataset.metainfo.get('palette') or palette(len(classes)),
            self.score_thr,
        )
        name = self._names.of(sample.img_path, '')
        runner.visualizer.add_image(f'sample_{name}', picture[..., ::-1], step=runner.iter)


def _truth_of(dataset, path: str) -> tuple[np.ndarray, list[int]]:
    """Boxes [N, 4], (x1, y1, x2, y2) in px of the file, and labels of an image, from its annotations.

    Not from the data sample: whether a pipeline has resized those boxes, nobody can tell.
    """
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if info['img_path'] == path:
            instances = [instance for instance in info['instances'] if not instance['ignore_flag']]
            boxes = np.array([instance['bbox'] for instance in instances], float).reshape(-1, 4)
            return boxes, [instance['bbox_label'] for instance in instances]
    raise KeyError(f'{path} is not in the data set')
