"""Images made a batch in as few passes as PyTorch's operators allow."""

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.utils import samplelist_boxtype2tensor
from torch import Tensor


class Preprocessor(DetDataPreprocessor):
    """mmdet's, of which it takes the place in a detector for inference. Same arguments, same batches."""

    def forward(self, data: dict, training: bool = False) -> dict:
        images = data['inputs']
        is_list = isinstance(images, (list, tuple)) and all(isinstance(x, Tensor) and x.dim() == 3 for x in images)
        if training or not is_list or not self._enable_normalize or {len(x) for x in images} != {len(self.mean)}:
            return super().forward(data, training)
        data = self.cast_data(data)
        images, samples = data['inputs'], data.get('data_samples')
        sizes = [image.shape[1:] for image in images]
        shapes = [tuple(-(-side // self.pad_size_divisor) * self.pad_size_divisor for side in size) for size in sizes]
        whole = tuple(map(max, zip(*shapes)))
        batch = self.mean.new_empty(len(images), len(images[0]), *whole)
        if any(tuple(size) != whole for size in sizes):
            batch.fill_(self.pad_value)
        for image, (h, w), target in zip(images, sizes, batch):
            image = image.flip(0) if self._channel_conversion else image
            torch.sub(image, self.mean, out=target[:, :h, :w]).div_(self.std)
        for sample, shape in zip(samples or (), shapes):
            sample.set_metainfo(dict(batch_input_shape=whole, pad_shape=shape))
        if self.boxtype2tensor:
            samplelist_boxtype2tensor(samples or ())
        return dict(inputs=batch, data_samples=samples)
