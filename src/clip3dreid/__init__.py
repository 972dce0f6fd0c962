"""Clothes-changing person re-identification: CLIP3DReID on PyTorch Lightning and Hydra."""

from importlib.metadata import version

__version__ = version("clip3dreid")
