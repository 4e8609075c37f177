"""Training curves: what is read back from scalars.json, and that a picture comes out."""

import pytest
from PIL import Image

from linescan.profiling.curves import plot_curves, read_scalars

ROWS = '{"loss": 2.0, "iter": 10, "step": 10}\n{"loss": 1.0, "iter": 20, "step": 20}\n{"mIoU": 40.5, "step": 20}\n'


def test_series_and_steps(tmp_path):
    path = tmp_path / "scalars.json"
    path.write_text(ROWS)
    assert read_scalars(path) == {"loss": [(10, 2.0), (20, 1.0)], "mIoU": [(20, 40.5)]}


def test_a_cut_off_last_line_is_left_out_and_any_other_is_named(tmp_path):
    path = tmp_path / "scalars.json"
    path.write_text(ROWS + '{"loss": 0.')
    assert len(read_scalars(path)["loss"]) == 2
    path.write_text("{broken\n" + ROWS)
    with pytest.raises(ValueError, match="line 1"):
        read_scalars(path)


def test_picture(tmp_path):
    path = tmp_path / "scalars.json"
    path.write_text(ROWS)
    plot_curves({"a": path, "b": path}, [("loss", "training loss"), ("mIoU", "mIoU, %")], tmp_path / "curves.png")
    assert min(Image.open(tmp_path / "curves.png").size) > 300
