"""Feature pyramid -> class: classifier, batch augmentation, data set, metric, averaged weights. Importing it registers everything.

Everything registers with MMEngine's own registries: a classification config has `default_scope = "mmengine"`.
"""

from .batches import ClassificationPreprocessor
from .classifier import ImageClassifier
from .datasets import ImageFolderDataset
from .ema import ModelEmaHook
from .metrics import TopKAccuracy
from .pictures import draw_sheet
from .transforms import LoadPILImage, PackClassInputs, TimmTransform

__all__ = [
    "ClassificationPreprocessor",
    "ImageClassifier",
    "ImageFolderDataset",
    "LoadPILImage",
    "ModelEmaHook",
    "PackClassInputs",
    "TimmTransform",
    "TopKAccuracy",
    "draw_sheet",
]
