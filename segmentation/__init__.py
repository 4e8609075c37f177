"""Feature pyramid -> masks: segmentors, datasets, prediction pictures. Importing it registers everything with MMSegmentation."""

from . import datasets
from .hooks import PredictionPicturesHook
from .metrics import ClassPairAccuracy, PerClassIoUMetric
from .necks import SimpleFeaturePyramid
from .segmentors import PyramidEncoderDecoder

__all__ = ["ClassPairAccuracy", "PerClassIoUMetric", "PredictionPicturesHook", "PyramidEncoderDecoder", "SimpleFeaturePyramid", "datasets"]
