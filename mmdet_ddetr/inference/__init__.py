"""Detectors for inference alone."""

from .optimize import optimize_for_inference

__all__ = ['optimize_for_inference']
