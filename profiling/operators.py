"""Which operators the time of a pass goes to, by torch.profiler.

The profiler sees a tree of events: `aten::linear` calls `aten::addmm`, a scan calls what it is made of, `ConvolutionBackward0` calls
`aten::convolution_backward`. The topmost event of a branch that the table below knows claims the whole branch. So everything below a scan
operator is scan, whether C, Triton or PyTorch does it, and a gradient counts where its operator does.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from ..kernels.costs import FORMULAS, rearrangement
from .steps import backend_flags, borrowed, check_condition, check_count, make_images, make_step, memory_errors

CATEGORIES = (
    "convolution",
    "linear",
    "matmul",
    "attention",
    "scan",
    "normalisation",
    "activation",
    "element-wise",
    "data movement",
    "resampling and pooling",
    "optimizer",
    "other",
)
# Category -> names of operators as shell patterns, without namespace, leading and trailing underscores and "backward"; the first that fits
# counts. Nodes of autograd are read in the same spelling: NativeLayerNormBackward0 is native_layer_norm.
# A product of matrices is "linear" where it is a linear layer or stands in for one: `mm` and `addmm` by themselves are gradients of linear
# layers. Attention that is written out counts as the products and the softmax that it is. Reductions, comparisons and random numbers are
# element-wise; allocations and views are data movement. Scans are not here: `linescan.kernels.costs` names them.
TABLE: dict[str, str] = {
    "optimizer": "amp_foreach* amp_update_scale",
    "attention": "*scaled_dot_product* *flash_attention* *efficient_attention* *multi_head_attention* transformer_encoder_layer*",
    "convolution": "*conv1d* *conv2d* *conv3d* *convolution* conv_transpose* *conv_depthwise* *conv_tbc*",
    "linear": "linear mkldnn_linear* bilinear mm addmm mv addmv",
    "matmul": "matmul bmm baddbmm addbmm einsum dot vdot inner outer tensordot *chain_matmul* linalg_multi_dot",
    "normalisation": "*batch_norm* *layer_norm* *group_norm* *instance_norm* *rms_norm* *weight_norm* norm linalg_*norm "
    "local_response_norm",
    "activation": "relu relu6 clamp_min threshold gelu silu mish elu celu selu prelu rrelu leaky_relu glu hardtanh hardswish hardsigmoid "
    "hardshrink softshrink sigmoid log_sigmoid* tanh softplus softsign *softmax* *softmin*",
    "resampling and pooling": "upsample* *pool1d* *pool2d* *pool3d* *grid_sampler* interpolate* affine_grid*",
    "data movement": "copy clone contiguous to to_* cat concat* hstack vstack stack roll flip rot90 pad *_pad *_pad1d *_pad2d *_pad3d "
    "constant_pad_nd index* unsafe_index* gather scatter* select* slice* narrow* view* unsafe_view reshape* permute transpose t mT mH "
    "movedim flatten unflatten expand* broadcast_* squeeze unsqueeze as_strided* alias detach empty* new_* zeros* ones* full* zero fill "
    "resize* set set_data unbind split* unsafe_split* chunk tensor_split repeat* tile unfold* fold im2col col2im pixel_shuffle "
    "pixel_unshuffle channel_shuffle item local_scalar_dense arange linspace lift* resolve_* accumulate_grad meshgrid embedding* "
    "masked_scatter diagonal* tril* triu* nonzero* copy_slices pin_memory is_pinned memcpy* memset* scalar_tensor numpy_t adjoint ravel",
    "element-wise": "add sub rsub mul div pow sqrt rsqrt square exp expm1 exp2 log log2 log10 log1p neg abs sign sgn reciprocal maximum "
    "minimum max min amax amin aminmax argmax argmin clamp clamp_max clip where lerp addcmul addcdiv foreach_* fused_* sin cos tan "
    "atan* erf* floor ceil round trunc frac remainder fmod floor_divide true_divide eq ne lt le gt ge logical_* bitwise_* isnan isinf "
    "isfinite is_nonzero any all sum mean var std var_mean std_mean prod cumsum cumprod logsumexp logcumsumexp sort topk masked_fill "
    "dropout* *_dropout bernoulli* rand* normal* uniform* mse_loss* result_type promote_types can_cast multiply divide subtract negative",
}
LONGEST = 20  # entries of `OperatorTimes.top`
_SUFFIXES = (".json", ".json.gz")


@dataclass(frozen=True)
class OperatorTimes:
    """Time of one pass by operator: on a CPU the time inside operators, on a GPU that of its kernels.

    What passes between operators (Python) is in neither, so the sum is below the latency, more so for small images.

    Attributes:
        milliseconds: category -> ms per pass, all of `CATEGORIES`. "other" is what the table does not know; operators of other packages
            are there, while what they call in PyTorch is counted by its own category.
        share: category -> fraction of the sum; the fractions add up to 1.
        top: the operators that take most, longest first: `name`, with its namespace ("linescan::bi_wkv" is of category scan), `category`,
            `calls` and `ms` per pass. Backward counts with forward.
    """

    milliseconds: dict[str, float]
    share: dict[str, float]
    top: list[dict[str, Any]]

    def as_result(self) -> dict[str, Any]:
        """The numbers as plain data for `measurement_row(result=...)`."""
        return asdict(self)


def time_by_operator(
    model: nn.Module,
    size: int | tuple[int, int],
    batch: int = 1,
    *,
    channels: int = 3,
    device: str | torch.device = "cpu",
    dtype: str = "fp32",
    mode: str = "forward",
    memory_format: str = "contiguous",
    tf32: bool = False,
    passes: int = 3,
    trace: Path | None = None,
) -> OperatorTimes:
    """Profiles a model, which is given back as it came. Profiling itself costs time with each event: shares are its result, not speeds.

    Args:
        model, size, batch, channels, device, dtype, mode, memory_format, tf32: as in `measure_throughput`.
        passes: profiled passes; one more runs before them.
        trace: file for a Chrome trace of these passes, ".json" or ".json.gz"; its folder is made.

    Raises:
        ValueError: an argument out of its range.
        RuntimeError: the device is not present, or no operator was seen.
        OutOfMemory: the pass does not fit on the device.
    """
    shape, device = check_condition(size, batch, channels, device, dtype, mode, memory_format)
    check_count("passes", passes)
    if trace is not None and not Path(trace).name.endswith(_SUFFIXES):
        raise ValueError(f"trace must end in {' or '.join(_SUFFIXES)}, got {str(trace)!r}")
    with memory_errors(device):
        profiler = _profiled(model, make_images(shape, device, memory_format), dtype, mode, memory_format, tf32, passes)
    if trace is not None:
        Path(trace).parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(trace))
    return _times(profiler.events(), device.type == "cuda", passes)


def _profiled(model: nn.Module, x: torch.Tensor, dtype: str, mode: str, memory_format: str, tf32: bool, passes: int) -> profile:
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else the profiler reports its stages, and an absent GPU as an error
    on_gpu, device = x.device.type == "cuda", x.device
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    current = torch.cuda.device(device) if on_gpu else nullcontext()
    flags = backend_flags(tf32=tf32, cudnn_benchmark=on_gpu)
    with current, flags, borrowed(model, device=device, mode=mode, memory_format=memory_format):
        step = make_step(model, x, dtype=dtype, mode=mode)
        step()
        with profile(activities=activities, acc_events=True) as profiler:
            for _ in range(passes):
                step()
            if on_gpu:
                torch.cuda.synchronize(device)
    return profiler


def _times(events: list[FunctionEvent], on_gpu: bool, passes: int) -> OperatorTimes:
    spent: dict[str, float] = dict.fromkeys(CATEGORIES, 0.0)
    by_name: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0])
    roots = [event for event in events if event.cpu_parent is None and event.device_type == DeviceType.CPU]
    for first, name, group, microseconds in _claims(roots, on_gpu):
        spent[group] += microseconds / 1e3 / passes
        by_name[name, group][0] += first
        by_name[name, group][1] += microseconds / 1e3 / passes
    if on_gpu:  # kernels that no operator launched
        kernels = sum(e.self_device_time_total for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation)
        spent["other"] += max(kernels / 1e3 / passes - sum(spent.values()), 0.0)
    total = sum(spent.values())
    if total <= 0:
        raise RuntimeError("the profiler saw no operator: the model does nothing that it records")
    longest = sorted(by_name.items(), key=lambda item: -item[1][1])[:LONGEST]
    return OperatorTimes(
        milliseconds=spent,
        share={name: ms / total for name, ms in spent.items()},
        top=[{"name": name, "category": group, "calls": round(n / passes, 2), "ms": ms} for (name, group), (n, ms) in longest if ms > 0],
    )


def _claims(roots: list[FunctionEvent], on_gpu: bool) -> Iterator[tuple[bool, str, str, float]]:
    """(is the claiming event itself, its name, its category, own microseconds) of every event below the roots."""
    waiting: list[tuple[FunctionEvent, tuple[str, str] | None]] = [(root, None) for root in roots]
    while waiting:
        event, claim = waiting.pop()
        own = operator_name(event.name)
        group = category(own) if claim is None else None
        mine = claim or ((own, group) if group is not None else None)
        microseconds = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        yield claim is None, *(mine or (own, "other")), microseconds
        waiting += [(child, mine) for child in event.cpu_children]


@cache
def operator_name(event: str) -> str:
    """The operator of an event, in the spelling of the dispatcher; forward and backward have one name.

    autograd::engine::evaluate_function: NativeLayerNormBackward0 -> aten::native_layer_norm, linescan_bi_wkvBackward -> linescan::bi_wkv.
    Names of no operator stay as they are.
    """
    node = event.removeprefix("autograd::engine::evaluate_function: ").removeprefix("torch::autograd::")
    if ours := re.fullmatch(r"linescan(?:_|::)(\w+?)(?:_backward|Backward)?", node):
        return f"linescan::{ours[1]}"
    if node.startswith("aten::"):
        return "aten::" + re.sub(r"_backward\w*$", "", node.removeprefix("aten::").strip("_"))
    if node in ("AccumulateGrad", "CopySlices") or re.fullmatch(r"[A-Za-z]\w*Backwards?\d*", node):
        words = re.sub(r"Backwards?\d*$", "", node)
        return "aten::" + re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[A-Z][a-z])", "_", words).lower()
    return node


@cache
def category(name: str) -> str | None:
    """The category of an operator's name, None where there is none. A scan is what `kernels.costs` has a formula for."""
    if formula := FORMULAS.get(name):
        return "data movement" if formula is rearrangement else "scan"
    if name.startswith("Optimizer."):
        return "optimizer"
    namespace, _, operator = name.rpartition("::")
    if namespace not in ("aten", ""):
        return None
    return next((group for group, patterns in TABLE.items() if any(fnmatchcase(operator, p) for p in patterns.split())), None)
