"""Weights of DETR and Deformable DETR from and to the official codes, the Hugging Face hub, MMDetection and detrex."""

from . import drawings, sources  # noqa: F401  register the loaders of all addresses
from .class_rows import names_in
from .conversion import convert, weights_of
from .description import describe
from .errors import CheckpointError
from .fitting import check_fit, fit, take_classes
from .layouts import NAMES, TARGETS, find_layout
from .load import adopt, convert_checkpoint, load, load_checkpoint
from .read import check_exists
from .report import ConversionReport

__all__ = [
    'NAMES',
    'CheckpointError',
    'TARGETS',
    'ConversionReport',
    'adopt',
    'check_exists',
    'check_fit',
    'convert',
    'convert_checkpoint',
    'describe',
    'find_layout',
    'fit',
    'load',
    'load_checkpoint',
    'names_in',
    'take_classes',
    'weights_of',
]
