"""Datasets and loading transforms, registered with MMSegmentation on import."""

from .camvid import CamVidDataset
from .checked import (
    CheckedADE20KDataset,
    CheckedCityscapesDataset,
    CheckedDatasetMixin,
    CheckedPascalVOCDataset,
    CheckedSegDataset,
)
from .kvasir import KvasirDataset
from .loading import LoadCheckedAnnotations, LoadCheckedImage, read_pixels
from .shapes import ShapesDataset
from .sources import SOURCES, DataSource

__all__ = [
    "SOURCES",
    "CamVidDataset",
    "CheckedADE20KDataset",
    "CheckedCityscapesDataset",
    "CheckedDatasetMixin",
    "CheckedPascalVOCDataset",
    "CheckedSegDataset",
    "DataSource",
    "KvasirDataset",
    "LoadCheckedAnnotations",
    "LoadCheckedImage",
    "ShapesDataset",
    "read_pixels",
]
