"""SSD by the Triton kernels of mamba-ssm (state-spaces/mamba), for comparison: `backend="mamba_ssm"`."""

import math

from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
from torch import Tensor

CHUNK = 256  # what its own modules pass


def call(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    dt_softplus: bool,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, T, H, P) and the last state (B, H, P, N).

    Its default `dt_limit` sets negative step sizes to zero; no limit is passed here, so that the function is the same as ours.

    Raises:
        NotImplementedError: the non-causal form, which mamba-ssm does not have.
    """
    if not causal:
        raise NotImplementedError("ssd: backend 'mamba_ssm' has no non-causal form")
    return mamba_chunk_scan_combined(
        x,
        dt,
        A,
        B,
        C,
        CHUNK,
        D=D,
        z=z,
        dt_bias=dt_bias,
        initial_states=initial_states,
        dt_softplus=dt_softplus,
        dt_limit=(-math.inf, math.inf),
        return_final_states=True,
    )
