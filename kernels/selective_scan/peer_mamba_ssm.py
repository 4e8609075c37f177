"""The CUDA selective scan of mamba-ssm as a backend that is taken by name only (`pip install mamba-ssm`, built with its CUDA extension).

It wants A, D and delta_bias in float32, and delta, B, C and z in the dtype of u; the adapter converts. Its backward ignores the gradient of
the last state, so here the last state is detached: asking for that gradient is an error instead of zero.
"""

import torch
from mamba_ssm.ops import selective_scan_interface
from torch import Tensor


def probe() -> str | None:
    """Why the installed mamba-ssm cannot scan; None where it can."""
    if getattr(selective_scan_interface, "selective_scan_cuda", None) is None:
        return "backend 'mamba_ssm' needs the CUDA extension selective_scan_cuda, which the installed mamba-ssm was built without"
    return None


def call(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> tuple[Tensor, Tensor]:
    """(y, last state) of `selective_scan`, differentiable in y.

    Raises:
        NotImplementedError: u is float64.
    """
    if u.dtype == torch.float64:
        raise NotImplementedError("selective_scan: backend 'mamba_ssm' takes u in float32, float16 or bfloat16, got torch.float64")
    A, D, delta_bias = (None if x is None else x.float() for x in (A, D, delta_bias))
    delta, B, C, z = (None if x is None else x.to(u.dtype) for x in (delta, B, C, z))
    y, last = selective_scan_interface.selective_scan_fn(
        u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus, return_last_state=True
    )
    return y, last.detach()
