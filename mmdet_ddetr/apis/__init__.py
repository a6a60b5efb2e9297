"""What a program, rather than a command line, uses."""

from .configs import find_config, get_config, list_configs, parse_options
from .inferencer import DDetrInferencer

__all__ = ['DDetrInferencer', 'find_config', 'get_config', 'list_configs', 'parse_options']
