"""Anchor DETR (Wang et al., AAAI 2022, arXiv:2109.07107)."""

import torch
from mmdet.models.layers import MLP, SinePositionalEncoding
from mmdet.structures import OptSampleList
from torch import Tensor, nn

from mmdet_ddetr.layers import RCDA, at_every_place, sine_embedding
from mmdet_ddetr.registry import MODELS

from .detr import DETR

ANCHORS = ('learned', 'grid')


@MODELS.register_module()
class AnchorDETR(DETR):
    """DETR whose queries are points of the image, each tried with a few learned patterns.

    Its attention to the image is row-column decoupled (``RCDA``), with positions along each axis. Dense attention may
    stand in its place, in encoder, decoder or both, as the official ``attention_type`` has it.

    Args:
        num_queries: anchor points. With ``anchors='grid'``, the nearest square number of them.
        num_patterns: contents at each point; there are ``num_queries * num_patterns`` queries.
        anchors: 'learned', or 'grid' for points that are spread evenly and stay.
        positional_encoding: of type ``SinePositionalEncoding``; temperature and offset count for the axes, too.
        **kwargs: as ``DETR``'s.
    """

    wh_bias = -2.0
    starts_from_boxes = True

    def __init__(self, *args, num_queries: int, num_patterns: int = 3, anchors: str = 'learned', **kwargs):
        if isinstance(num_patterns, bool) or not isinstance(num_patterns, int) or num_patterns < 1:
            raise ValueError(f'num_patterns must be a number of contents, at least 1, got {num_patterns!r}')
        if anchors not in ANCHORS:
            raise ValueError(f'anchors must be one of {", ".join(ANCHORS)}, got {anchors!r}')
        if kwargs.get('num_queries_one2many') and (num_patterns > 1 or anchors == 'grid'):
            raise ValueError(
                "num_queries_one2many must be 0 unless num_patterns=1 and anchors='learned': the matched queries would "
                f'not come first with {num_patterns=}, {anchors=}'
            )
        self.num_patterns = num_patterns
        self.anchors = anchors
        super().__init__(
            *args, num_queries=round(num_queries**0.5) ** 2 if anchors == 'grid' else num_queries, **kwargs
        )

    def _init_layers(self) -> None:
        super()._init_layers()
        if not isinstance(self.positional_encoding, SinePositionalEncoding):
            raise ValueError(
                'positional_encoding must be of type SinePositionalEncoding: anchors and axes take its temperature and '
                f'offset, got {type(self.positional_encoding).__name__}'
            )
        attentions = [layer.self_attn for layer in self.encoder.layers]
        attentions += [layer.cross_attn for layer in self.decoder.layers]
        by_axis = {isinstance(attention, RCDA) for attention in attentions}
        self.attends_by_axis, self.attends_by_cell = True in by_axis, False in by_axis
        C = self.embed_dims
        self.adapt_pos2d = MLP(C, C, C, 2)
        self.adapt_pos1d = MLP(C, C, C, 2) if self.attends_by_axis else None

    def _init_queries(self) -> None:
        if self.anchors == 'grid':
            self.register_buffer('grid', anchor_grid(round(self.num_queries**0.5)), persistent=False)
        else:
            self.query_embedding = nn.Embedding(self.num_learned_queries, 2)  # (x, y)
        self.patterns = nn.Embedding(self.num_patterns, self.embed_dims)

    def init_transformer(self) -> None:
        """What the layers start with: the official code has no Xavier of its own here."""

    def init_own_weights(self) -> None:
        if self.anchors == 'learned':
            nn.init.uniform_(self.query_embedding.weight, 0, 1)

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],  # one [B, C, H, W]
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict, dict]:
        """As in DETR, with positions along the axes."""
        encoder_inputs, decoder_inputs = super().pre_transformer(mlvl_feats, batch_data_samples)
        if self.attends_by_axis:
            B = mlvl_feats[0].shape[0]
            positions = self.positions_of_axes(B, encoder_inputs['spatial_shapes'][0], encoder_inputs['feat_mask'])
            encoder_inputs.update(positions)
            decoder_inputs.update(positions)
        return encoder_inputs, decoder_inputs

    def positions_of_cells(self, feat: Tensor, mask: Tensor | None) -> Tensor | None:
        if not self.attends_by_cell:
            return None
        return self.adapt_pos2d(super().positions_of_cells(feat, mask))

    def positions_of_axes(
        self,
        batch_size: int,
        shape: tuple[int, int],  # (H, W)
        mask: Tensor | None,  # [B, H*W], True = padding
    ) -> dict[str, Tensor]:
        """``key_pos_x`` [B, W, C] and ``key_pos_y`` [B, H, C]."""
        padding_x = padding_y = None
        if mask is not None:
            mask = mask.unflatten(1, shape)
            padding_x, padding_y = mask[:, 0], mask[:, :, 0]  # of a rectangle
        positions = {}
        for name, size, padding in zip(('key_pos_y', 'key_pos_x'), shape, (padding_y, padding_x)):
            weight = self.patterns.weight
            cell = torch.arange(1, size + 1, dtype=torch.float32, device=weight.device).expand(batch_size, -1)
            if padding is not None:
                size = (~padding).sum(1, keepdim=True)  # [B, 1]
                cell = cell.minimum(size.float())  # padding has the place of the image's last cell
            positions[name] = self._along_axis((cell + self.positional_encoding.offset) / size, weight.dtype)
        return positions

    def learned_queries(self, batch_size: int) -> dict[str, Tensor]:
        """Every pattern at every anchor, [B, Q, n] each, the same for every image."""
        points = self.grid if self.anchors == 'grid' else self.query_embedding.weight
        queries = self.queries_of_boxes(*at_every_place(self.patterns.weight, points[: self.num_decoder_queries]))
        return {name: x.expand(batch_size, -1, -1) for name, x in queries.items()}

    def queries_of_boxes(self, content: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """[B, Q, C], [B, Q, 2 or 4] -> the decoder's inputs of queries at the centres of boxes."""
        points = boxes[..., :2].float()
        sine = sine_embedding(points.flip(-1), self.embed_dims // 2, self.positional_encoding.temperature)  # y, x
        queries = dict(query=content, reference_points=points, query_pos=self.adapt_pos2d(sine.to(content.dtype)))
        if self.attends_by_axis:
            for axis, coordinate in zip('xy', points.unbind(-1)):
                queries[f'query_pos_{axis}'] = self._along_axis(coordinate, content.dtype)
        return queries

    def _along_axis(self, coordinate: Tensor, dtype: torch.dtype) -> Tensor:  # [B, n] -> [B, n, C]
        sine = sine_embedding(coordinate[..., None], self.embed_dims, self.positional_encoding.temperature)
        return self.adapt_pos1d(sine.to(dtype))


def anchor_grid(count: int) -> Tensor:  # [count**2, 2]
    """(x, y) of the centres of ``count`` columns and rows of the image, in [0, 1], column by column."""
    centres = (torch.arange(count) + 0.5) / count
    return torch.cartesian_prod(centres, centres)
