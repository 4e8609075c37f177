"""Bidirectional WKV (Bi-WKV), the token mixer of Vision-RWKV and RWKV-SAM."""

from .op import bi_wkv
from .reference import bi_wkv_ref

__all__ = ["bi_wkv", "bi_wkv_ref"]
