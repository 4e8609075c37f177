"""Selective scan (S6), the state-space recurrence of Mamba, with groups as Vim and VMamba use them."""

from .op import selective_scan
from .reference import selective_scan_ref

__all__ = ["selective_scan", "selective_scan_ref"]
