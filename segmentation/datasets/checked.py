"""Datasets that say what is wrong with the data folder before training starts.

`CheckedDatasetMixin` goes in front of any MMSegmentation dataset class: a missing folder, a missing list of images or an empty folder is an
error that names the path and tells where to get the data. It also hands the number of label ids to `LoadCheckedAnnotations`.
"""

import os.path as osp

from mmseg.datasets import ADE20KDataset, BaseSegDataset, CityscapesDataset, PascalVOCDataset
from mmseg.registry import DATASETS

from .sources import SOURCES


class CheckedDatasetMixin:
    """Checks of the data folder for a subclass of `mmseg.datasets.BaseSegDataset`.

    Attributes:
        SOURCE: key of `sources.SOURCES`, or None for data that nobody publishes.

    Raises:
        FileNotFoundError: when loading the list, if a folder or the list file does not exist.
        ValueError: when loading the list, if there is no image.
    """

    SOURCE: str | None = None

    def load_data_list(self) -> list[dict]:
        """List the samples; each also carries `num_labels`, the number of ids a mask file may hold, and `ignore_index`."""
        folders = [self.data_prefix.get(key) for key in ("img_path", "seg_map_path")]
        for folder in filter(None, folders):
            if not osp.isdir(folder):
                raise FileNotFoundError(f"{type(self).__name__}: the folder {folder} does not exist. {self._advice()}")
        if self.ann_file and not osp.exists(self.ann_file):
            raise FileNotFoundError(f"{type(self).__name__}: the list of images {self.ann_file} does not exist. {self._advice()}")
        samples = super().load_data_list()
        if not samples:
            where = f"the list {self.ann_file} is empty" if self.ann_file else f"no file in {folders[0]} ends in {self.img_suffix!r}"
            raise ValueError(f"{type(self).__name__}: empty dataset, {where}. {self._advice()}")
        classes = self.METAINFO["classes"] if self.label_map is not None else self._metainfo["classes"]
        for sample in samples:
            sample.update(num_labels=len(classes), ignore_index=self.ignore_index)
        return samples

    def _advice(self) -> str:
        other = "If the data lie elsewhere, set the environment variable LINESCAN_DATA, or pass --cfg-options data_root=FOLDER."
        if self.SOURCE is None:
            return other
        source = SOURCES[self.SOURCE]
        return f"Get {source.name} from {source.url} and {source.hint}. {other}"


@DATASETS.register_module()
class CheckedADE20KDataset(CheckedDatasetMixin, ADE20KDataset):
    """ADE20K with the checks of `CheckedDatasetMixin`; label 0 of the files is ignored."""

    SOURCE = "ade20k"


@DATASETS.register_module()
class CheckedCityscapesDataset(CheckedDatasetMixin, CityscapesDataset):
    """Cityscapes with the checks of `CheckedDatasetMixin`; masks hold train ids."""

    SOURCE = "cityscapes"


@DATASETS.register_module()
class CheckedPascalVOCDataset(CheckedDatasetMixin, PascalVOCDataset):
    """Pascal VOC 2012 with the checks of `CheckedDatasetMixin`."""

    SOURCE = "voc12"


@DATASETS.register_module()
class CheckedSegDataset(CheckedDatasetMixin, BaseSegDataset):
    """Any img_dir / ann_dir folder with the checks of `CheckedDatasetMixin`; classes come from `metainfo`."""
