"""Bidirectional WKV6 through flash-linear-attention's causal RWKV-6, called twice: once as it is, once on flipped tokens without bonus.

Needs CUDA tensors and `pip install linescan[fla]`. Its accuracy and the dtypes that it takes are those of that package. Both directions
and their gradients are its own kernels; the flips are copies.
"""

import torch
from fla.ops.rwkv6 import chunk_rwkv6
from torch import Tensor


def call(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    """(B, T, H, D) x 4, (H, D) -> (B, T, H, D). The package takes the log decay itself, -exp(w), and would scale by 1 / sqrt(D) unasked."""
    log_decay = -torch.exp(w.float())
    forwards, _ = chunk_rwkv6(r, k, v, log_decay, u, scale=1.0)
    backwards, _ = chunk_rwkv6(*(x.flip(1) for x in (r, k, v, log_decay)), torch.zeros_like(u), scale=1.0)
    return (forwards + backwards.flip(1)).to(v.dtype)
