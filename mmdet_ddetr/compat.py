"""Placeholder until the stand-in for mmcv._ext is written."""


def install():
    pass
