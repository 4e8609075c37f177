"""Bidirectional WKV6, the token mixer of Vision-RWKV-6: a matrix state per head, a decay that depends on the data."""

from .op import bi_wkv6
from .reference import bi_wkv6_ref

__all__ = ["bi_wkv6", "bi_wkv6_ref"]
