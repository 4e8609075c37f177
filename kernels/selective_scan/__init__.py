"""Selective scan (S6), the state-space recurrence of Mamba: along a sequence, with groups as Vim uses them, and across an image in four
directions, as VMamba does."""

from .op import selective_scan
from .op_cross import cross_selective_scan
from .reference import selective_scan_ref
from .reference_cross import cross_selective_scan_ref

__all__ = ["cross_selective_scan", "cross_selective_scan_ref", "selective_scan", "selective_scan_ref"]
