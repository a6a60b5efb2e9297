"""mmdet's inferencer, which also finds the models of this package."""

from pathlib import Path

from mmdet.apis import DetInferencer
from mmdet.apis.det_inferencer import IMG_EXTENSIONS
from mmengine.registry import MODELS

from ..checkpoints import CheckpointError, adopt, check_fit, convert, describe, load, stored_config, weights_of
from .configs import find_config, get_config, list_configs
from .stored_model import stored_model


class DDetrInferencer(DetInferencer):
    """Detect objects in images, lists of images and folders; write pictures and JSON.

    >>> inferencer = DDetrInferencer(weights='work_dirs/demo/epoch_12.pth')
    >>> inferencer('photos', batch_size=4, out_dir='out')  # out/vis/*.jpg, out/preds/*.json

    Args:
        model (str | Path | Config | dict, optional): Name of a config of this package, path of a config, a config, or a
            model name of mmdet. By default the config inside the checkpoint, which always fits its weights.
        weights (str | Path, optional): Checkpoint of any layout in docs/checkpoints.md: a file, a folder of the Hugging
            Face hub, or ``hf://owner/name``; one of another code base needs a ``model``. A model of mmdet's downloads
            its own if none is given.
        **kwargs: ``device``, ``palette``, ``show_progress``; see :class:`mmdet.apis.DetInferencer`.

    Raises:
        FileNotFoundError: No such checkpoint, or no model of that name here or in mmdet.
        ValueError: A name of this package without weights, or weights that do not fit the model.
    """

    def __init__(self, model=None, weights=None, **kwargs):
        if isinstance(model, str | Path) and not Path(model).is_file():
            model = self._resolve(str(model), weights)
        if weights is not None and '://' not in str(weights) and not Path(weights).expanduser().exists():
            raise FileNotFoundError(f'weights: no checkpoint {str(weights)!r}')
        super().__init__(
            str(model) if isinstance(model, Path) else model, str(weights) if weights is not None else None, **kwargs
        )

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
        if not cfg:
            source = stored_config.find(checkpoint)
            if source is None:
                raise ValueError(f'model: {weights} holds no config, so give one that fits{self._hint(checkpoint)}')
            cfg.update(stored_model(stored_config.parse(source), weights))
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
        super()._load_weights_to_model(model, checkpoint, cfg)

    def _inputs_to_list(self, inputs):
        if not isinstance(inputs, str | Path) or not Path(inputs).is_dir():
            inputs = inputs if isinstance(inputs, list | tuple) else [inputs]
            return [str(item) if isinstance(item, Path) else item for item in inputs]
        images = sorted(str(path) for path in Path(inputs).iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
        if not images:
            raise ValueError(
                f'inputs: no image in {str(inputs)!r}; expected files ending in {", ".join(IMG_EXTENSIONS)}'
            )
        return images

    def __call__(self, inputs, batch_size=1, *, no_save_pred=False, **kwargs):
        """Detect objects; unlike mmdet's, ``out_dir`` gets the JSON files as well as the pictures.

        Args:
            inputs (str | Path | ndarray | list): Image, folder of images (in the order of their names), URL, BGR image
                [H, W, 3], or a list of such images.
            batch_size (int): Images at a time.
            no_save_pred (bool): Write no JSON.
            **kwargs: ``out_dir``, ``pred_score_thr``, ``no_save_vis``, ``return_vis``, ``return_datasamples`` and more,
                see :class:`mmdet.apis.DetInferencer`.

        Returns:
            dict: ``predictions``, an image each: {'labels': [N], 'scores': [N], 'bboxes': [N, 4] as x1, y1, x2, y2 in
            pixels}; ``visualization``, RGB images if ``return_vis`` or ``out_dir`` is set.
        """
        return super().__call__(inputs, batch_size=batch_size, no_save_pred=no_save_pred, **kwargs)
