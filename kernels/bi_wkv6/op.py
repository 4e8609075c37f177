"""The public bidirectional WKV6: validation, and what PyTorch needs to know about the operator."""

import torch
from torch import Tensor

from ..registration import Operator
from ..signature import Signature
from .reference import bi_wkv6_ref

_CHECK = Signature("bi_wkv6", r="B T H D", k="B T H D", v="B T H D", w="B T H D", u="H D")


def _fake(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
    return torch.empty_like(v, memory_format=torch.contiguous_format)


_op = Operator(
    "bi_wkv6",
    package=__package__,
    tensors=("r", "k", "v", "w", "u"),
    backends={"triton": "triton_kernels", "torch": "torch_chunked"},
    peers={"fla": "peer_fla"},
    reference=bi_wkv6_ref,
    fake=_fake,
    fold=(2, 2, 2, 2, 0),
    fold_outputs=(2,),
)
BACKENDS = _op.backends


def bi_wkv6(r: Tensor, k: Tensor, v: Tensor, w: Tensor, u: Tensor, *, backend: str = "auto") -> Tensor:
    """Bidirectional WKV6 in linear time: a matrix state per head, with a decay per token and key channel that depends on the data.

    The token mixer of Vision-RWKV-6 (arXiv 2403.02308; the recurrence is RWKV-6's, arXiv 2404.05892), formula in `reference.py`. Decays
    strictly between query and key count, the token itself counts once with u, and there is no scaling.

    Args:
        r, k, v: (B, T, H, D) receptance, key and value of H heads of D channels; any T, any strides.
        w: (B, T, H, D) log of the decay rate: a token decays what passes it by exp(-exp(w)). Any value, infinite ones included.
        u: (H, D) bonus of the token itself.
        backend: "auto" or one of `BACKENDS`; see `linescan.kernels.dispatch`. "fla" runs flash-linear-attention's RWKV-6 twice.

    Returns:
        (B, T, H, D), contiguous, in the dtype of v. float16 and bfloat16 are accumulated in float32, float64 stays float64. The arguments
        may differ in dtype (under autocast w and u stay float32); their gradients come in their own.

    Raises:
        TypeError, ValueError: wrong type, dtype, shape or device, or an unknown backend; the message names the argument.
        NotImplementedError: a backend that this operator does not have; forward-mode AD and second derivatives, which only
            backend="reference" offers.
        RuntimeError: a backend that cannot run here.
    """
    _CHECK(r, k, v, w, u)
    return _op(r, k, v, w, u, backend=backend)
