"""Feature pyramid -> masks: segmentors, datasets, prediction pictures. Importing it registers everything with MMSegmentation."""

from . import datasets
from .hooks import PredictionPicturesHook
from .segmentors import PyramidEncoderDecoder

__all__ = ["PredictionPicturesHook", "PyramidEncoderDecoder", "datasets"]
