"""Cross scan and cross merge: an image as four sequences, as VMamba reads it, and the way back."""

from .op import cross_merge, cross_scan
from .reference import cross_merge_ref, cross_scan_ref

__all__ = ["cross_merge", "cross_merge_ref", "cross_scan", "cross_scan_ref"]
