"""What a program, rather than a command line, uses."""

from .configs import find_config, get_config, list_configs, parse_options
from .detect_files import open_detector
from .inferencer import DDetrInferencer, Found
from .slicing import Sliced

__all__ = [
    'DDetrInferencer',
    'Found',
    'Sliced',
    'find_config',
    'get_config',
    'list_configs',
    'open_detector',
    'parse_options',
]
