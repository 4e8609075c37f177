"""SSD, the scan of Mamba-2, and the non-causal form of VSSD."""

from .op import ssd
from .reference import ssd_ref

__all__ = ["ssd", "ssd_ref"]
