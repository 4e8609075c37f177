"""The Triton backend of Bi-WKV: `forward` and `backward`, as registered."""

from .triton_backward import backward
from .triton_forward import forward

__all__ = ["backward", "forward"]
