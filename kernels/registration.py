"""How an operator becomes known to PyTorch: one pattern for all of them.

An `Operator` defines `linescan::<name>` and `linescan::<name>_backward` with shapes for meta tensors, gradients, a vmap rule and a FLOP
count, so that autograd, torch.compile, torch.export, autocast, activation checkpointing and profilers see one opaque node. What a custom
operator cannot do by itself is added around it: torch.func does not see the gradients of a custom operator (pytorch #179652), so under its
transforms an autograd.Function takes over; forward-mode AD and second derivatives, which would silently be zero, raise.
"""

import importlib
import threading
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import costs, dispatch

LIBRARY = torch.library.Library("linescan", "FRAGMENT")
OPERATORS: dict[str, "Operator"] = {}
_lock = threading.Lock()


class Operator:
    """One operator with its backends. Calling it runs `linescan::<name>`.

    Args:
        name: operator name; a key `linescan::<name>` of `costs.FORMULAS` (and the same with `_backward`) counts its arithmetic.
        package: the operator's package, in which the backends' modules lie.
        tensors: names of the tensor arguments in order; "name?" may be None.
        backends: backend -> submodule, imported at first use, with `forward(*tensors, *statics)` and
            `backward(*tensors, *grads of outputs, *statics)`, which returns a gradient per tensor argument; optionally
            `unsupported(*tensors, *statics)`, the reason why it cannot take these inputs, and `probe()`, the reason why it cannot run
            here at all, called once.
        reference: (*tensors, *statics) -> output(s), the definition, differentiable by autograd; runs for backend="reference".
        fake: (*tensors, *statics) -> the output or a tuple of outputs, uninitialised.
        peers: backend -> submodule with `call(*tensors, *statics)`: adapters of other packages, differentiable by themselves, never
            chosen by "auto".
        statics: further arguments as PyTorch schema, such as "bool delta_softplus".
        outputs: how many tensors it returns.
        fold: for every tensor the dimension whose slices never mix with each other (channels, heads), into which vmap folds its samples;
            None where there is none: vmap then loops over samples.
        fold_outputs: the same for the outputs.
    """

    def __init__(
        self,
        name: str,
        *,
        package: str,
        tensors: Sequence[str],
        backends: dict[str, str],
        reference: Callable,
        fake: Callable,
        peers: dict[str, str] | None = None,
        statics: Sequence[str] = (),
        outputs: int = 1,
        fold: Sequence[int] | None = None,
        fold_outputs: Sequence[int] | None = None,
    ):
        self.name, self.package, self.reference, self.fake = name, package, reference, fake
        self.tensors, self.optional = [t.rstrip("?") for t in tensors], [t.endswith("?") for t in tensors]
        self.outputs, self.fold, self.fold_outputs = outputs, fold, fold_outputs
        self.own, self.peers = tuple(backends), tuple(peers or ())
        self.sources, self.backends = backends | (peers or {}), (*self.own, *self.peers, "reference")
        self._modules: dict[str, ModuleType] = {}
        self._verdicts: dict[str, str | None] = {}  # what a probe found: None, or why the backend cannot run
        self._auto: dict[str, list[tuple[ModuleType, Callable | None]]] = {}
        self._define(statics)
        self.forward_op = getattr(torch.ops.linescan, name).default
        self.backward_op = getattr(torch.ops.linescan, f"{name}_backward").default
        self._eager, self._eager_backward, self._function, self._backward_function = _functions(self)
        OPERATORS[name] = self

    def __call__(self, *args, backend: str = "auto"):
        backend = dispatch.requested(self.name, self.backends, backend)
        if backend == "reference":
            return self.reference(*args)
        if backend in self.peers:
            return self._peer(backend, args)(*args)
        if torch._C._are_functorch_transforms_active():
            return self._function.apply(*args, backend)
        if forward_ad._current_level >= 0:
            for x in args:
                if isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None:
                    self.no_jvp()
        return self.forward_op(*args, backend)

    # ------------------------------------------------------------------------------------------------------------------ what users meet

    def no_jvp(self):
        raise NotImplementedError(f'{self.name} has no forward-mode derivative; backend="reference" has one')

    def no_double(self):
        raise NotImplementedError(f'{self.name} has no second derivative; backend="reference" has one')

    def module(self, backend: str) -> ModuleType:
        """The module of one backend. Imports it."""
        if backend not in self._modules:
            try:
                self._modules[backend] = importlib.import_module(f".{self.sources[backend]}", self.package)
            except ModuleNotFoundError as error:
                missing = (error.name or "").split(".")[0]
                if missing == "linescan":
                    raise
                raise RuntimeError(f"backend {backend!r} of {self.name} needs the package {missing!r}, which is not installed") from error
        return self._modules[backend]

    def why_not(self, backend: str, device_type: str) -> str | None:
        """Why a backend cannot run on a device in this process; None where it can. Imports, and for `c` builds, what it needs."""
        if reason := dispatch.wrong_device(backend, device_type):
            return reason
        if backend not in self._verdicts:
            with _lock:
                self._verdicts[backend] = self._probe(backend)
        return self._verdicts[backend]

    def _probe(self, backend: str) -> str | None:
        try:
            module = self.module(backend)
        except RuntimeError as error:
            return str(error)
        return module.probe() if hasattr(module, "probe") else None

    def _peer(self, backend: str, args: Sequence) -> Callable:
        device_type = next(x.device.type for x in args if isinstance(x, Tensor))
        if reason := self.why_not(backend, device_type):
            raise RuntimeError(f"{self.name}: {reason}")
        return self.module(backend).call

    def choices(self, device_type: str) -> list[str]:
        """The backends that "auto" may take on a device, best first."""
        return [b for b in dispatch.preference(device_type) if b in self.own and self.why_not(b, device_type) is None]

    def add_backend(self, name: str, module) -> None:
        """Makes a further implementation callable by name, for this process; "auto" never takes it.

        `module` has `forward` and `backward` as the modules of `backends` have them; adding a name again replaces it.
        """
        self._modules[name] = module
        self._verdicts[name] = None
        if name not in self.backends:
            self.backends = (*self.backends, name)

    def arguments_of(self, call: Callable[[], object]) -> tuple:
        """The arguments, tensors then statics, with which `call` runs this operator; nothing is computed."""
        found = []
        forward_op = self.forward_op
        self.forward_op = lambda *args: (found.append(args[:-1]), self._fake(*args))[1]
        try:
            call()
        finally:
            self.forward_op = forward_op
        return found[0]

    @staticmethod
    def as_tuple(outputs) -> tuple[Tensor, ...]:
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    # --------------------------------------------------------------------------------------------------------------- what PyTorch is told

    def _define(self, statics: Sequence[str]) -> None:
        arguments = [f"Tensor{'?' if o else ''} {t}" for t, o in zip(self.tensors, self.optional, strict=True)]
        grads = [f"Tensor grad_{i}" for i in range(self.outputs)]
        returns = "Tensor" if self.outputs == 1 else f"({', '.join(['Tensor'] * self.outputs)})"
        rest = [*statics, "str backend"]
        tags = (torch.Tag.pt2_compliant_tag,)
        LIBRARY.define(f"{self.name}({', '.join([*arguments, *rest])}) -> {returns}", tags=tags)
        LIBRARY.define(f"{self.name}_backward({', '.join([*arguments, *grads, *rest])}) -> Tensor[]", tags=tags)
        LIBRARY.impl(self.name, self._forward, "CompositeExplicitAutograd")
        LIBRARY.impl(f"{self.name}_backward", self._backward, "CompositeExplicitAutograd")
        LIBRARY.impl(self.name, self._autograd, "Autograd")
        LIBRARY.impl(f"{self.name}_backward", self._autograd_backward, "Autograd")
        for suffix, fake, vmap in (("", self._fake, self._vmap), ("_backward", self._fake_backward, self._vmap_backward)):
            name = f"linescan::{self.name}{suffix}"
            torch.library.register_fake(name, fake, lib=LIBRARY)
            torch.library.register_vmap(name, vmap, lib=LIBRARY)
            costs.register(name, getattr(torch.ops.linescan, self.name + suffix))

    def _select(self, backend: str, tensors: Sequence[Tensor | None], statics: Sequence) -> ModuleType:
        device_type = tensors[0].device.type
        if backend != "auto":
            if reason := self.why_not(backend, device_type):
                raise RuntimeError(f"{self.name}: {reason}")
            module = self.module(backend)
            if hasattr(module, "unsupported") and (reason := module.unsupported(*tensors, *statics)):
                raise NotImplementedError(f"{self.name}: backend {backend!r} {reason}")
            return module
        if device_type not in self._auto:
            modules = (self.module(b) for b in self.choices(device_type))
            self._auto[device_type] = [(m, getattr(m, "unsupported", None)) for m in modules]
        for module, unsupported in self._auto[device_type]:
            if unsupported is None or unsupported(*tensors, *statics) is None:
                return module
        raise NotImplementedError(f"{self.name}: no backend of {self.own} takes these inputs on {device_type}")

    def _forward(self, *args):
        n = len(self.tensors)
        forward = self._select(args[-1], args[:n], args[n:-1]).forward
        return _without_autocast(forward, args[0].device.type, args[:-1])

    def _backward(self, *args):
        n = len(self.tensors)
        tensors = args[:n]
        backward = self._select(args[-1], tensors, args[n + self.outputs : -1]).backward
        grads = _without_autocast(backward, args[0].device.type, args[:-1])
        return [g for g, x in zip(grads, tensors, strict=True) if x is not None]

    # Autograd kernels of our own: those that torch.library.register_autograd generates cost twice as much per call.
    def _autograd(self, *args):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return self._eager.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return self.forward_op(*args)

    def _autograd_backward(self, *args):
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return list(self._eager_backward.apply(*args))
        with torch._C._AutoDispatchBelowAutograd():
            return self.backward_op(*args)

    def _fake(self, *args):
        return self.fake(*args[:-1])

    def _fake_backward(self, *args):
        return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in args[: len(self.tensors)] if x is not None]

    def _save(self, ctx, inputs, output) -> None:
        n = len(self.tensors)
        ctx.save_for_backward(*inputs[:n])
        ctx.rest = inputs[n:]

    def _gradients(self, ctx, *grads):
        op = self._backward_function.apply if torch._C._are_functorch_transforms_active() else self.backward_op
        saved = ctx.saved_tensors
        found = iter(op(*saved, *grads, *ctx.rest))
        return *(None if x is None else next(found) for x in saved), *(None for _ in ctx.rest)

    # ------------------------------------------------------------------------------------------------------------------------------- vmap

    def _vmap(self, info, in_dims, *args):
        n = info.batch_size
        if self.fold is None:
            return _loop(self.forward_op, n, in_dims, args)
        folded = [_fold(n, x, d, into) for x, d, into in zip(args, in_dims, self.fold, strict=False)]
        return self._unfold(n, self.forward_op(*folded, *args[len(folded) :]), self.fold_outputs)

    def _vmap_backward(self, info, in_dims, *args):
        n = info.batch_size
        if self.fold is None:
            return _loop(self.backward_op, n, in_dims, args)
        into = (*self.fold, *self.fold_outputs)
        folded = [_fold(n, x, d, i) for x, d, i in zip(args, in_dims, into, strict=False)]
        present = [i for x, i in zip(args, self.fold, strict=False) if x is not None]
        return self._unfold(n, self.backward_op(*folded, *args[len(folded) :]), present)

    @staticmethod
    def _unfold(n: int, out, dims: Sequence[int]):
        if isinstance(out, Tensor):
            return out.unflatten(dims[0], (n, -1)), dims[0] % out.dim()
        kind = type(out)
        return kind(x.unflatten(d, (n, -1)) for x, d in zip(out, dims, strict=True)), kind(
            d % x.dim() for x, d in zip(out, dims, strict=True)
        )


def _without_autocast(function: Callable, device_type: str, args: Sequence):
    """The arithmetic of a backend is in the precision that it chose: autocast would cast the matrix products inside it."""
    if not torch.is_autocast_enabled(device_type):
        return function(*args)
    with torch.autocast(device_type, enabled=False):
        return function(*args)


def _fold(n: int, x: Tensor | None, dim: int | None, into: int) -> Tensor | None:
    """Folds the n samples of a vmapped argument, or n copies of one that is not, into dimension `into` of a sample."""
    if x is None:
        return None
    x = x.unsqueeze(0).expand(n, *x.shape) if dim is None else x.movedim(dim, 0)
    into %= x.dim() - 1
    return x.movedim(0, into).flatten(into, into + 1)


def _loop(op: Callable, n: int, in_dims: Sequence[int | None], args: Sequence):
    """The operator sample by sample, results stacked."""
    samples = [op(*(x if d is None else x.select(d, i) for x, d in zip(args, in_dims, strict=True))) for i in range(n)]
    if isinstance(samples[0], Tensor):
        return torch.stack(samples), 0
    kind = type(samples[0])
    return kind(torch.stack(parts) for parts in zip(*samples, strict=True)), kind(0 for _ in samples[0])


def _functions(operator: Operator) -> tuple[type, type, type, type]:
    """The operator and its gradients as autograd.Functions: two for the Autograd key, two for torch.func.

    torch.func always asks for a graph of the gradients; using that graph is the error.
    """

    def forward(ctx, *args):
        operator._save(ctx, args, None)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.forward_op(*args)

    def backward_forward(ctx, *args):
        with torch._C._AutoDispatchBelowAutograd():
            return tuple(operator.backward_op(*args))

    def function(suffix: str, **members) -> type:
        methods = {name: staticmethod(f) if callable(f) else f for name, f in members.items()}
        return type(f"linescan_{operator.name}{suffix}", (torch.autograd.Function,), methods)

    def no_jvp(ctx, *tangents):
        operator.no_jvp()

    def no_double(ctx, *grads):
        operator.no_double()

    shared = dict(generate_vmap_rule=True, jvp=no_jvp)
    return (
        function("", forward=forward, backward=operator._gradients),
        function("_backward", forward=backward_forward, backward=no_double),
        function(
            "_func", forward=lambda *args: operator.forward_op(*args), setup_context=operator._save, backward=operator._gradients, **shared
        ),
        function(
            "_backward_func",
            forward=lambda *args: tuple(operator.backward_op(*args)),
            setup_context=lambda ctx, inputs, output: None,
            backward=no_double,
            **shared,
        ),
    )
