"""One pass of a model, a forward pass or a training step, as every measurement of time and memory runs it.

with borrowed(model, device=device, mode=mode), backend_flags(tf32=False):
    step = make_step(model, make_images(shape, device), dtype=dtype, mode=mode)
    step()
"""

import gc
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORWARD, TRAINING = MODES = ("forward", "training step")
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
LEARNING_RATE = 1e-4
# How PyTorch, its allocators and the libraries below it say that memory is short where they do not raise torch.OutOfMemoryError.
_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",
    "bad_alloc",
    "could not create a memory",
    "Cannot allocate memory",
)


class OutOfMemory(RuntimeError):
    """A pass needs more memory than there is, or than it was allowed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, on a CPU or a GPU."""
    if isinstance(error, OutOfMemory | MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in _MEMORY_WORDS)


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Turns any error that says out of memory into `OutOfMemory`, and frees what the failed pass held."""
    try:
        yield
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = str(error) or type(error).__name__
        traceback.clear_frames(error.__traceback__)  # else the frames of the failed pass keep its tensors alive
    release(device)
    raise OutOfMemory(message)


def release(device: torch.device) -> None:
    """Gives memory that nothing uses back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def check_condition(
    size: int | Sequence[int],
    batch: int,
    channels: int,
    device: str | torch.device,
    dtype: str,
    mode: str,
    memory_format: str = "contiguous",
) -> tuple[tuple[int, int, int, int], torch.device]:
    """The shape (B, C, H, W) of the images and the device, all arguments checked.

    Raises:
        ValueError: an argument out of its range; the message names it.
        RuntimeError: the device is not present.
    """
    height_width = (size, size) if isinstance(size, int) else tuple(size)
    if len(height_width) != 2:
        raise ValueError(f"size must be one number or (height, width) in pixels, got {size}")
    for name, value in zip(("height", "width", "batch", "channels"), (*height_width, batch, channels), strict=True):
        check_count(name, value)
    for name, value, known in (("dtype", dtype, DTYPES), ("mode", mode, MODES), ("memory_format", memory_format, MEMORY_FORMATS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
    return (batch, channels, *height_width), _present(torch.device(device))


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Refuses what is not an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _present(device: torch.device) -> torch.device:
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or a CUDA device, got {device}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RuntimeError(f"device {device} is not present: this PyTorch sees {torch.cuda.device_count()} CUDA devices")
    return device


def make_images(shape: Sequence[int], device: torch.device, memory_format: str = "contiguous") -> Tensor:
    """Random float32 images (B, C, H, W), the same for every call."""
    images = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return images.to(device, memory_format=MEMORY_FORMATS[memory_format])


def make_step(model: nn.Module, x: Tensor, *, dtype: str = "fp32", mode: str = FORWARD) -> Callable[[], None]:
    """One pass over images x (B, C, H, W) as a function without arguments; the model is on the device of x and in the mode's mode.

    forward: in inference mode. training step: gradients to None, forward, backward of the sum over the returned floating-point tensors of
    the mean of their float32 square, and a step of AdamW over the trainable parameters. bf16 and fp16 run under autocast, entered anew in
    each pass; training in fp16 scales the loss, and as in any such training a step whose gradients overflow leaves the weights alone.

    Raises:
        ValueError: training of a model without trainable parameters, or (in the pass) whose outputs do not depend on any.
        TypeError: (in the pass) a model to be trained returns something else than tensors in lists, tuples and mappings.
    """

    def autocast():
        return nullcontext() if dtype == "fp32" else torch.autocast(x.device.type, DTYPES[dtype])

    def forward() -> None:
        with torch.inference_mode(), autocast():
            model(x)

    if mode == FORWARD:
        return forward
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"a training step needs trainable parameters, {type(model).__name__} has none")
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE)
    scaler = torch.amp.GradScaler(x.device.type, enabled=dtype == "fp16")

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            outputs = model(x)
        scaler.scale(_loss(outputs)).backward()
        scaler.step(optimizer)
        scaler.update()

    return train


def _loss(outputs: Any) -> Tensor:
    tensors = [tensor for tensor in _tensors(outputs) if tensor.is_floating_point()]
    if not any(tensor.requires_grad for tensor in tensors):
        raise ValueError("a training step needs an output that depends on a trainable parameter, the model returned none")
    return sum(tensor.float().square().mean() for tensor in tensors)


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping | list | tuple):
        for part in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(part)
    elif outputs is not None:
        raise TypeError(
            f"a model that is trained must return tensors, alone or in lists, tuples and mappings, got {type(outputs).__name__}"
        )


@contextmanager
def borrowed(model: nn.Module, *, device: torch.device, mode: str = FORWARD, memory_format: str = "contiguous") -> Iterator[None]:
    """The model on `device`, in the memory format, and in evaluation or (mode "training step") training mode; then given back as it came.

    Given back are every parameter's and buffer's own storage (so device, memory format and, after training, each bit of it), gradients,
    the training mode of every submodule, and the state of the random number generators.
    """
    training = [(module, module.training) for module in model.modules()]
    parameters = [(parameter, parameter.data, parameter.grad) for parameter in model.parameters()]
    buffers = [(module, key, buffer) for module in model.modules() for key, buffer in module._buffers.items() if buffer is not None]
    used: dict[int, Tensor] = {}
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for parameter, data, _ in parameters:
                parameter.grad = None
                if mode == TRAINING:
                    parameter.data = data.clone()
            if mode == TRAINING:
                copies = {id(buffer): buffer.clone() for *_, buffer in buffers}
                for module, key, buffer in buffers:
                    module._buffers[key] = copies[id(buffer)]
            model.to(device=device, memory_format=MEMORY_FORMATS[memory_format])
            model.train(mode == TRAINING)
            used = {index: module._buffers[key] for index, (module, key, _) in enumerate(buffers)}
            yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, data, grad in parameters:
            parameter.grad = None
            parameter.data = data
            parameter.grad = grad
        for index, (module, key, buffer) in enumerate(buffers):
            now = module._buffers.get(key)
            if index not in used or now is used[index]:
                module._buffers[key] = buffer
            elif now is not None:  # the model has put another tensor there, such as a table for the new image size
                module._buffers[key] = now.to(buffer.device)


@contextmanager
def backend_flags(*, tf32: bool = False, cudnn_benchmark: bool = False) -> Iterator[None]:
    """Sets whether CUDA multiplies float32 in TF32, and whether cuDNN tries its algorithms out; then puts back what was set before."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):
        switches, attribute, value = (matmul, cudnn.conv, cudnn.rnn), "fp32_precision", "tf32" if tf32 else "ieee"
    else:  # PyTorch before 2.9
        switches, attribute, value = (matmul, cudnn), "allow_tf32", tf32
    before = [getattr(switch, attribute) for switch in switches]
    benchmark = cudnn.benchmark
    try:
        for switch in switches:
            setattr(switch, attribute, value)
        cudnn.benchmark = cudnn_benchmark
        yield
    finally:
        cudnn.benchmark = benchmark
        for switch, setting in zip(switches, before, strict=True):
            setattr(switch, attribute, setting)
