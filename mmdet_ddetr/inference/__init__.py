"""Detectors for inference alone."""

from .optimize import DTYPES, optimize_for_inference

__all__ = ['DTYPES', 'optimize_for_inference']
