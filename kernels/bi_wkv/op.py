"""The public Bi-WKV: validation, and what PyTorch needs to know about the operator."""

import torch
from torch import Tensor

from ..registration import Operator
from ..signature import Signature
from .reference import bi_wkv_ref

_CHECK = Signature("bi_wkv", k="B T C", v="B T C", w="C", u="C")


def _fake(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.empty_like(k, memory_format=torch.contiguous_format)


_op = Operator(
    "bi_wkv",
    package=__package__,
    tensors=("w", "u", "k", "v"),
    backends={"triton": "triton_kernels", "c": "c_kernels", "torch": "torch_chunked"},
    reference=bi_wkv_ref,
    fake=_fake,
    fold=(-1, -1, -1, -1),
    fold_outputs=(-1,),
)
BACKENDS = _op.backends


def bi_wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """Bidirectional WKV attention in linear time (Vision-RWKV, arXiv 2403.02308, eq. 4-5; formula in `reference.py`).

    Args:
        w: (C,) decay per token of distance, any sign. Vision-RWKV's `decay / T`: the division by T is the caller's.
        u: (C,) bonus of the token itself; Vision-RWKV's `first / T`.
        k: (B, T, C) keys (log-weights); any T, any strides.
        v: (B, T, C) values.
        backend: "auto" or one of `BACKENDS`; see `linescan.kernels.dispatch`.

    Returns:
        (B, T, C), contiguous, in the dtype of k. float16 and bfloat16 are accumulated in float32, float64 stays float64. w, u and v may
        have another floating dtype than k (under autocast w and u stay float32); their gradients come in their own dtype.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or an unknown backend; the message names the argument.
        NotImplementedError: a backend that this operator does not have; forward-mode AD and second derivatives, which only
            backend="reference" offers.
        RuntimeError: a backend that cannot run here.
    """
    _CHECK(k, v, w, u)
    return _op(w, u, k, v, backend=backend)
