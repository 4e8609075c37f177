"""Names of backbones on a command line, and the memory measurement that takes them."""

import pytest

from linescan.backbones import list_backbones
from linescan.backbones.by_name import build, families, named_config
from linescan.profiling import peak_growth_mib


def test_every_registered_backbone_has_a_family():
    assert sorted(families().values()) == list_backbones() and families()["hybrid"] == "HybridBackbone"


def test_names_become_configs():
    assert named_config("hybrid:small:bi_wkv") == dict(type="linescan.HybridBackbone", arch="small", mixer="bi_wkv")
    assert named_config("hybrid:tiny", dict(mlp_ratio=2)) == dict(type="linescan.HybridBackbone", arch="tiny", mlp_ratio=2)
    assert len(build(named_config("hybrid:test:none")).layers) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hybird:small", "unknown family of backbones 'hybird'.*'hybrid'"),
        ("hybrid", r"named hybrid:arch\[:mixer\], got 'hybrid'"),
        ("hybrid:", "named hybrid:arch"),
        ("hybrid:small:bi_wkv:more", "named hybrid:arch"),
    ],
)
def test_other_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        named_config(name)


def test_the_peak_follows_the_number_of_pixels():
    """A quarter of the pixels takes about a quarter of the memory; the weights do not count."""
    config = named_config("hybrid:test:attention")
    small, large = (peak_growth_mib(build, config, size, threads=1) for size in (512, 1024))
    assert small["weights_mib"] == large["weights_mib"] > 0.7
    assert 2.5 < large["peak_growth_mib"] / small["peak_growth_mib"] < 5


def test_a_failing_child_is_reported():
    with pytest.raises(RuntimeError, match="at \\(0, 8\\) failed"):
        peak_growth_mib(build, named_config("hybrid:test"), (0, 8), threads=1)
