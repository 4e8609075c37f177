"""Q-shift, the 2-D token shift of Vision-RWKV, alone and fused with the interpolations that follow it."""

from .op import q_shift, q_shift_mix
from .reference import q_shift_mix_ref, q_shift_ref

__all__ = ["q_shift", "q_shift_mix", "q_shift_mix_ref", "q_shift_ref"]
