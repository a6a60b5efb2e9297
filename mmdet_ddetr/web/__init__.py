"""A local web page: drop an image, move the threshold, hover a box to see what the detector looked at."""

from .app import Limits, make_app
from .viewer import Viewer

__all__ = ['Limits', 'Viewer', 'make_app']
