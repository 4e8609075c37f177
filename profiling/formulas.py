"""What one operator costs in multiply-adds (MACs), and the list of operators that cost none by convention.

Convention of the field, and of every table in this project: MACs are those of convolutions, linear layers and matrix products (attention
included). Element-wise arithmetic, activations, normalisation, softmax, pooling, resampling and data movement are not counted. One MAC is
two floating-point operations. The element operations of scans, which are no matrix products, are counted apart (`linescan.kernels.costs`).

Formulas take the arguments of the ATen operator and its result; only shapes are read, so tensors may lie on the meta device.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Formula = Callable[[tuple[Any, ...], Any], int]


def _product_macs(a: Tensor, result: Tensor) -> int:
    """Matrix product a (..., M, K) @ (..., K, N): every result element is a sum of K products."""
    return result.numel() * a.shape[-1]


def _conv_macs(args: tuple[Any, ...], result: Tensor) -> int:
    """Convolution: weight (C_out, C_in / groups, *kernel), or (C_in, C_out / groups, *kernel) when transposed."""
    x, weight, transposed = args[0], args[1], args[6]
    positions = x if transposed else result
    return positions.numel() * math.prod(weight.shape[1:])


# ATen operator -> (kind of operator shown to the user, formula). `F.linear` and `@` arrive as mm, addmm or bmm.
MAC_FORMULAS: dict[str, tuple[str, Formula]] = {
    "aten::convolution": ("conv", _conv_macs),
    "aten::_convolution": ("conv", _conv_macs),
    "aten::mm": ("linear", lambda args, out: _product_macs(args[0], out)),
    "aten::addmm": ("linear", lambda args, out: _product_macs(args[1], out)),
    "aten::bmm": ("matmul", lambda args, out: _product_macs(args[0], out)),
    "aten::baddbmm": ("matmul", lambda args, out: _product_macs(args[1], out)),
    "aten::addbmm": ("matmul", lambda args, out: args[1].numel() * out.shape[-1]),
    "aten::mv": ("matmul", lambda args, out: _product_macs(args[0], out)),
    "aten::addmv": ("matmul", lambda args, out: _product_macs(args[1], out)),
    "aten::dot": ("matmul", lambda args, out: args[0].numel()),
    "aten::vdot": ("matmul", lambda args, out: args[0].numel()),
}

# Element-wise operators without PyTorch's tag `pointwise`.
_ELEMENTWISE = """hardswish hardsigmoid hardtanh leaky_relu elu celu selu glu mish silu softplus softshrink _prelu_kernel rrelu_with_noise
    log_sigmoid_forward logit erfinv polygamma clamp_min clamp_max cosine_similarity cross"""
_REDUCTIONS = """sum mean prod max min amax amin aminmax argmax argmin any all var var_mean std std_mean norm linalg_vector_norm logsumexp
    cumsum cumprod cummax cummin logcumsumexp count_nonzero equal median nanmedian nansum"""
_NORMALISATION = """native_layer_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
    batch_norm_update_stats native_group_norm _fused_rms_norm rms_norm _softmax _log_softmax _safe_softmax _weight_norm_interface renorm"""
_POOLING = """avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool2d"""
_RESAMPLING = """upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d"""
_DATA_MOVEMENT = """clone copy _to_copy _reshape_copy contiguous cat stack index _unsafe_index index_put _unsafe_index_put
    index_select index_copy index_fill gather scatter scatter_add scatter_reduce masked_select masked_scatter take nonzero where roll flip
    rot90 repeat repeat_interleave tile constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d pixel_shuffle
    pixel_unshuffle channel_shuffle im2col col2im unfold sort topk searchsorted bucketize unique_consecutive embedding one_hot tril triu
    unsafe_split unsafe_split_with_sizes unsafe_chunk split_with_sizes_copy"""
# Results that hold no argument's numbers: nothing is read to make them.
_CREATION = """new_zeros zeros zeros_like new_ones ones ones_like full full_like new_full fill zero scalar_tensor arange linspace eye rand
    rand_like randn randn_like randint randperm bernoulli uniform normal native_dropout tril_indices triu_indices"""
# Nothing is read or written: memory is only reserved or seen in another shape (in place too, which PyTorch does not call a view), or the
# question is about a tensor and not its numbers.
_NO_TRAFFIC = """empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize_ set_ as_strided _unsafe_view
    _reshape_alias lift_fresh squeeze unsqueeze t transpose swapaxes swapdims detach promote_types result_type _local_scalar_dense item
    is_nonzero"""


def _names(group: str) -> frozenset[str]:
    return frozenset(f"aten::{name}" for name in group.split())


# Kind of operator shown to the user -> operators that cost no MACs by the convention above.
UNCOUNTED_KINDS: dict[str, frozenset[str]] = {
    "element-wise": _names(_ELEMENTWISE),
    "reduction": _names(_REDUCTIONS),
    "normalisation": _names(_NORMALISATION),
    "resampling and pooling": _names(_POOLING) | _names(_RESAMPLING),
    "data movement": _names(_DATA_MOVEMENT) | _names(_CREATION) | _names(_NO_TRAFFIC),
}
UNCOUNTED: frozenset[str] = frozenset().union(*UNCOUNTED_KINDS.values())
_READS_NOTHING = _names(_CREATION) - _names("bernoulli native_dropout")
_OVERWRITES = _names("copy")  # x.copy_(y) writes x without having read it
_FREE = _names(_NO_TRAFFIC)
_BATCH_NORMS = _names("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm")


def norm_ops(name: str, args: tuple[Any, ...]) -> int:
    """Element operations of a normalisation as fvcore counts them: 5 per element of a layer or group norm, 4 without weights; 2 and 1 for
    a batch norm. They are no MACs; some papers add them. Anything else, RMS norm included, gives 0 as it does there."""
    if name == "aten::native_layer_norm":
        return args[0].numel() * (4 + (args[2] is not None))
    if name == "aten::native_group_norm":
        return args[0].numel() * (4 + (args[1] is not None))
    if name in _BATCH_NORMS:
        return args[0].numel() * (1 + (args[1] is not None))
    return 0


def bytes_moved(name: str, args: Any, result: Any) -> int:
    """Bytes that one operator call reads and writes: its tensor arguments once each, and its results, at their dtypes.

    A tensor that was expanded counts as it lies in memory, and the same numbers given twice (x @ x.T) count once. Views are free. Caches
    are not thought of, nor is what an operator needs beside its arguments.

    Args:
        name: `namespace::name` of the operator, see `operator_name`.
        args: all its arguments, nested as they come.
        result: what it returned.
    """
    if name in _FREE:
        return 0
    arguments = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
    if name in _READS_NOTHING:
        arguments = []
    elif name in _OVERWRITES:
        arguments = arguments[1:]
    results = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    return sum({_place(x): _bytes(x) for x in arguments}.values()) + sum(_bytes(x) for x in results)


def _bytes(x: Tensor) -> int:
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _place(x: Tensor) -> tuple[int, int, int]:
    return x.untyped_storage()._cdata, x.storage_offset(), x.numel()


def operator_name(func: torch._ops.OpOverload) -> str:
    """`namespace::name` of an operator, the in-place form (`add_`) under the name of the plain one."""
    name = func._schema.name
    return name[:-1] if name.endswith("_") and not name.endswith("__") and name not in UNCOUNTED else name


def is_uncounted(func: torch._ops.OpOverload) -> bool:
    """Whether an operator costs no MACs by the convention above: views, element-wise operators (PyTorch's own tag), and `UNCOUNTED`."""
    return func.is_view or func.namespace == "prim" or torch.Tag.pointwise in func.tags or operator_name(func) in UNCOUNTED


def uncounted_kind(name: str) -> str:
    """Kind, as shown to the user, of an operator for which `is_uncounted` holds; one that only has the tag `pointwise` is element-wise."""
    return next((kind for kind, names in UNCOUNTED_KINDS.items() if name in names), "element-wise")
