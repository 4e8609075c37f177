"""Checking what the caller passed: types, dtypes, devices and shapes of all tensor arguments, by one table per operator."""

from collections.abc import Collection

import torch
from torch import Tensor


class Signature:
    """Names and dimensions of an operator's tensor arguments.

        CHECK = Signature("bi_wkv", k="B T C", v="B T C", w="C", u="C")
        CHECK(k, v, w, u)

    The first argument that has a dimension gives its size, the others must agree; all must be floating-point and on the device of the
    first. A name that ends with "_" is optional ("D_" stands for the argument D, which may be None). A dimension may be a number, or
    several layouts may be allowed, joined by " | ".

    Raises (when called):
        TypeError: not a tensor, or not floating-point.
        ValueError: wrong number of dimensions, a size that does not agree, another device.
    """

    def __init__(self, op: str, **layouts: str):
        self.op = op
        self.arguments = []  # (name, whether optional, number of dimensions -> their names)
        for name, text in layouts.items():
            by_rank = {len(layout.split()): tuple(layout.split()) for layout in text.split("|")}
            self.arguments.append((name.rstrip("_"), name.endswith("_"), by_rank))
        numbers = {dim for *_, by_rank in self.arguments for dims in by_rank.values() for dim in dims if dim.isdigit()}
        self.fixed = {dim: int(dim) for dim in numbers}

    def __call__(self, *tensors: Tensor | None) -> dict[str, int]:
        """Checks the tensors, in the order of the table; returns the size of every named dimension."""
        if torch.jit.is_tracing():  # a tracer makes tensors of the sizes compared here, and warns
            return {}
        sizes = self.fixed.copy()
        device = getattr(tensors[0], "device", None)
        for (name, optional, by_rank), x in zip(self.arguments, tensors, strict=True):
            if x is None and optional:
                continue
            if not isinstance(x, Tensor):
                raise TypeError(f"{self.op}: {name} must be a Tensor{' or None' if optional else ''}, got {type(x).__name__}")
            if not x.dtype.is_floating_point:
                raise TypeError(f"{self.op}: {name} must be a floating-point tensor, got {x.dtype}")
            if x.device != device:
                raise ValueError(f"{self.op}: {name} must be on the device of {self.arguments[0][0]} ({device}), got {x.device}")
            layout = by_rank.get(x.dim())
            if layout is None:
                self._wrong(name, by_rank.values(), sizes, x)
            for dim, size in zip(layout, x.shape):  # noqa: B905 the lengths agree, and strict costs as much as the comparison
                if sizes.setdefault(dim, size) != size:
                    self._wrong(name, [layout], sizes, x)
        return sizes

    def _wrong(self, name: str, layouts: Collection[tuple[str, ...]], sizes: dict[str, int], x: Tensor) -> None:
        def text(names) -> str:
            return f"({', '.join(map(str, names))}{',' if len(names) == 1 else ''})"

        expected = " or ".join(text(layout) for layout in layouts)
        known = [text([sizes.get(d, d) for d in layout]) for layout in layouts if any(d in sizes for d in layout)]
        raise ValueError(
            f"{self.op}: {name} must have shape {expected}{' = ' + ' or '.join(known) if known else ''}, got {text(tuple(x.shape))}"
        )
