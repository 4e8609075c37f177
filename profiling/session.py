"""One call that measures backbones and segmentors side by side, each held against a transformer of its scale.

    rows = profile(["hybrid:small:bi_wkv", "vmamba:tiny"], sizes=[224, 512])

A row is plain data (`provenance.measurement_row`) and is handed on as soon as it is measured, so an interruption loses none. What does
not run is a row as well: out of memory, a size that the model refuses, an operator without a formula.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .activations import activations_by_stage
from .batch import largest_batch
from .flops import count_macs
from .lineup import line_up, references
from .memory import OutOfMemory, is_out_of_memory, peak_memory
from .operators import time_by_operator
from .parameters import count_parameters
from .provenance import measurement_row
from .roofline import Device, find_device, measure_device, project, projection_error
from .settings import FORWARD, MAX, Settings
from .subjects import Subject, build
from .throughput import Throughput, measure_throughput

OUT_OF_MEMORY = "out of memory"
Row = dict[str, Any]
# Passes before the timed ones and passes under the profiler; of passes that take seconds (by their multiply-adds), one is enough.
WARMUP, PROFILED, LONG = 3, 3, 1e11
# What only weighs the progress: a measurement of memory in passes, the start of its child process in multiply-adds.
IN_CHILD, CHILD_START = 2, 1e11


def profile(
    models: Iterable[str | Path | Mapping | nn.Module | Subject],
    *,
    baseline: str | Subject | None = "auto",
    with_controls: bool = False,
    options: Mapping[str, Any] | None = None,
    on_row: Callable[[Row], None] | None = None,
    progress: Callable[[str, float], None] | None = None,
    **settings: Any,
) -> list[Row]:
    """Measures the models and what they are held against, interleaved; see `Settings` for the keywords.

    Args:
        models, baseline, with_controls, options: see `line_up`.
        on_row: called with each row as soon as it is there.
        progress: called with what is being measured and the estimated fraction of the work that is done.

    Returns:
        All rows, of kinds model, cost, speed, memory, operators, projection, projection_error and error.

    Raises:
        ConfigError, ValueError: an unknown model, baseline or device, or a setting out of its range. Nothing that happens while measuring
            is raised.
    """
    chosen = Settings(**settings)
    subjects = line_up(models, baseline=baseline, with_controls=with_controls, options=options)
    rows = []
    for row in Session(subjects, chosen, progress).run():
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return rows


class Progress:
    """Tells a callback the fraction of the work that is done."""

    def __init__(self, callback: Callable[[str, float], None] | None):
        self.callback, self.label = callback or (lambda label, fraction: None), ""
        self.total, self.done = 0.0, 0.0

    def show(self, label: str) -> None:
        self.label = label
        self.advance(0.0)

    def advance(self, work: float) -> None:
        self.done += work
        self.callback(self.label, min(self.done / self.total, 1.0) if self.total else 0.0)


class Session:
    """The measurements of one call, in order: what is exact first, then condition by condition what takes time.

    Args:
        subjects: from `line_up`.
        settings: what is measured.
        progress: as in `profile`.
    """

    def __init__(self, subjects: Sequence[Subject], settings: Settings, progress: Callable[[str, float], None] | None = None):
        self.progress = Progress(progress)
        self.subjects = {subject.name: subject for subject in subjects}
        self.settings = settings
        self.references = references(subjects)
        self.devices = [find_device(name) for name in settings.projections]
        self.models: dict[str, nn.Module] = {}
        self.macs: dict[tuple[str, tuple[int, int]], int] = {}
        self.latencies: dict[tuple[str, tuple[int, int], int, str], float] = {}

    def run(self) -> Iterator[Row]:
        """Yields the rows."""
        self.progress.show("counting")
        self.models = {name: build(subject) for name, subject in self.subjects.items()}
        yield from self.exact_rows()
        conditions = self.plan()
        self.progress.total = sum(weight for *_, weight in conditions)
        end = 0.0
        for size, dtype, mode, batch, weight in conditions:
            self.progress.show(f"{size[0]}x{size[1]}, batch {batch}, {dtype}, {mode}")
            names = [name for name, counted in self.macs if counted == size]
            if batch == MAX:
                for name in names:
                    yield from self.largest_batch_rows(name, size, dtype, mode)
                    self.progress.advance(weight / len(names))
            else:
                yield from self.measured_rows(names, size, batch, dtype, mode)
            end += weight
            self.progress.advance(end - self.progress.done)  # a time limit or a failure may have left passes out
        if self.devices:
            self.progress.show("projecting")
            yield from self.projection_rows()
        self.progress.show("done")

    def plan(self) -> list[tuple[tuple[int, int], str, str, int | str, float]]:
        """(size, dtype, mode, batch, weight) of what is timed; the weights are for the estimate of the time that is left."""
        settings, conditions = self.settings, []
        for size, dtype, mode, batch in itertools.product(settings.sizes, settings.dtypes, settings.modes, settings.batches):
            names = [name for name, counted in self.macs if counted == size]
            work = 0.0
            for name in names:
                passes = settings.rounds + self.passes(WARMUP, names, size, batch, mode) + IN_CHILD * settings.memory
                passes += settings.operators * (1 + self.passes(PROFILED, names, size, batch, mode))
                work += passes * self.work(name, size, batch, mode) + CHILD_START * settings.memory
            if names:
                conditions.append((size, dtype, mode, batch, work))
        return conditions

    def passes(self, number: int, names: Sequence[str], size: tuple[int, int], batch: int | str, mode: str) -> int:
        """`number`, or one where a pass of the slowest takes long on a CPU."""
        longest = max((self.work(name, size, batch, mode) for name in names), default=0.0)
        return 1 if longest > LONG and self.settings.device == "cpu" else number

    def work(self, name: str, size: tuple[int, int], batch: int | str, mode: str) -> float:
        """Multiply-adds of one pass; a training step costs about three forward passes."""
        return self.macs[name, size] * (1 if mode == FORWARD else 3) * (8 if batch == MAX else batch)

    def exact_rows(self) -> Iterator[Row]:
        """Parameters of each model, then its arithmetic at each size. A size that the model refuses is not measured later."""
        for name, subject in self.subjects.items():
            condition = {"source": _shown(subject.source), "options": dict(subject.options)}
            condition |= {"role": subject.role, "of": list(subject.of), "reason": subject.reason}
            yield self.row("model", name, condition, self.parameters(name))
        for size, name in itertools.product(self.settings.sizes, self.subjects):
            yield self.attempt("cost", name, {"size": list(size), "batch": 1}, partial(self.cost, name, size))

    def parameters(self, name: str) -> Row:
        model = self.models[name]
        try:
            counted = count_parameters(model, self.shape(self.settings.sizes[0]))
        except Exception:  # the cost row of this size says what went wrong
            counted = count_parameters(model)
        by = {"parameters_by_stage": counted.by_stage, "parameters_by_type": counted.by_type}
        return {"parameters": counted.total, "trainable": counted.trainable, "live": counted.live, **by}

    def cost(self, name: str, size: tuple[int, int]) -> Row:
        count = count_macs(self.models[name], self.shape(size))
        counts = {key: getattr(count, key) for key in ("macs", "flops", "scan_ops", "bytes_moved", "scan_ops_by_operator")}
        by = {"macs_by_stage": count.by_stage(), "macs_by_operator": count.by_operator}
        by["activation_bytes_by_stage"] = activations_by_stage(self.models[name], self.shape(size))
        self.macs[name, size] = count.macs
        return counts | by

    def measured_rows(self, names: Sequence[str], size: tuple[int, int], batch: int, dtype: str, mode: str) -> Iterator[Row]:
        """Memory and speed of the models at one condition, then where the time goes."""
        settings, condition = self.settings, {"size": list(size), "batch": batch, "dtype": dtype, "mode": mode}
        where = dict(device=settings.device, channels=settings.channels, dtype=dtype, mode=mode)
        fitting = list(names)
        for name in names if settings.memory else ():
            yield (row := self.attempt("memory", name, condition, partial(peak_memory, build, self.subjects[name], size, batch, **where)))
            self.progress.advance(IN_CHILD * self.work(name, size, batch, mode) + CHILD_START)
            if row["result"].get("error") == OUT_OF_MEMORY:
                fitting.remove(name)
                yield self.row("speed", name, condition, row["result"])
        rows = list(self.speed_rows(fitting, size, condition))
        yield from rows
        if settings.operators and batch == settings.first_batch:
            for name in [row["name"] for row in rows if "error" not in row["result"]]:
                where["trace"] = self.trace_file(name, condition)
                where |= dict(memory_format=settings.memory_format, tf32=settings.tf32)
                where["passes"] = self.passes(PROFILED, [name], size, batch, mode)
                timed = partial(time_by_operator, self.models[name], size, batch, **where)
                yield self.attempt("operators", name, condition, lambda timed=timed: timed().as_result())
                self.progress.advance((1 + where["passes"]) * self.work(name, size, batch, mode))

    def largest_batch_rows(self, name: str, size: tuple[int, int], dtype: str, mode: str) -> Iterator[Row]:
        """Speed at the largest batch that fits. A model has the memory for itself, so it is timed alone and has no ratio."""
        settings, condition = self.settings, {"size": list(size), "dtype": dtype, "mode": mode}
        where = dict(device=settings.device, channels=settings.channels, dtype=dtype, mode=mode)
        found = self.attempt("largest batch", name, condition, lambda: {"batch": largest_batch(build, self.subjects[name], size, **where)})
        if "error" in found["result"]:
            yield found
        elif found["result"]["batch"] == 0:
            error = {"error": OUT_OF_MEMORY, "message": "not even one image fits"}
            yield self.row("speed", name, {**condition, "batch": 1, "largest_batch": True}, error)
        else:
            for row in self.speed_rows([name], size, {**condition, "batch": found["result"]["batch"]}, largest=True):
                row["result"].pop("ratio", None)
                yield row

    def speed_rows(self, names: Sequence[str], size: tuple[int, int], condition: Row, *, largest: bool = False) -> Iterator[Row]:
        """One interleaved group. Where it fails, each model is tried alone, and those that run form the group."""
        settings = self.settings
        warmup = self.passes(WARMUP, names, size, condition["batch"], condition["mode"])
        limits = dict(rounds=settings.rounds, warmup=warmup, max_seconds=settings.max_seconds)
        try:
            speeds = self.timed(names, size, condition, **limits)
        except Exception:
            speeds = None  # tried again outside of this block, where nothing holds the tensors of the pass that failed
        if speeds is None:
            once = dict(rounds=1, warmup=0)
            tried = [self.attempt("speed", name, condition, partial(self.timed, [name], size, condition, **once)) for name in names]
            running = [row["name"] for row in tried if "error" not in row["result"]]
            yield from (row for row in tried if row["name"] not in running)
            try:
                speeds = self.timed(running, size, condition, **limits)
            except Exception as error:  # each runs alone, together they do not: on a GPU all of them share its memory
                yield from [self.failure("speed", name, condition, error) for name in running]
                return
        for name, speed in speeds.items():
            if condition["mode"] == FORWARD:
                self.latencies[name, size, condition["batch"], condition["dtype"]] = speed.latency_ms.median
            yield self.row("speed", name, {**speed.as_condition(), "largest_batch": largest}, speed.as_result())

    def timed(self, names: Sequence[str], size: tuple[int, int], condition: Row, **limits: Any) -> dict[str, Throughput]:
        settings = self.settings
        # A model whose baseline did not fit or did not run has no ratio to it.
        against = {name: self.references[name] if self.references[name] in names else name for name in names}
        fixed = dict(channels=settings.channels, device=settings.device, memory_format=settings.memory_format, tf32=settings.tf32)
        fixed |= dict(dtype=condition["dtype"], mode=condition["mode"], references=against)
        models = {name: self.models[name] for name in names}
        work = [self.work(name, size, condition["batch"], condition["mode"]) for name in names]
        fixed["progress"] = lambda: self.progress.advance(sum(work) / len(work))
        return measure_throughput(models, size, condition["batch"], **fixed, **limits) if names else {}

    def trace_file(self, name: str, condition: Row) -> Path | None:
        if self.settings.trace is None:
            return None
        parts = (name, "x".join(map(str, condition["size"])), condition["dtype"], condition["mode"])
        return Path(self.settings.trace) / (re.sub(r"[^\w.-]+", "-", "_".join(parts)) + ".json.gz")

    def projection_rows(self) -> Iterator[Row]:
        """Estimates for absent devices, and how far the same estimate is from what was measured on this one."""
        settings = self.settings
        batches = [batch for batch in settings.batches if batch != MAX]
        for device, (name, size), batch, dtype in itertools.product(self.devices, self.macs, batches, settings.dtypes):
            condition = {"size": list(size), "batch": batch, "dtype": dtype, "device": device.name, "source": device.source}
            yield self.attempt("projection", name, condition, partial(self.estimate, name, size, batch, dtype, device))
        here = measure_device(settings.device, (*settings.dtypes, *(("tf32",) if settings.tf32 else ())))
        for dtype in settings.dtypes:
            measured = {key: value for key, value in self.latencies.items() if key[3] == dtype}
            condition = {"device": here.name, "dtype": dtype, "rows": len(measured), "peaks": asdict(here)}
            pairs = partial(self.pairs, measured, here)
            if measured:
                yield self.attempt(
                    "projection_error", here.name, condition, lambda pairs=pairs: {"measured_over_estimated": projection_error(pairs())}
                )

    def pairs(self, measured: Mapping[tuple[str, tuple[int, int], int, str], float], device: Device) -> list[tuple[float, float]]:
        return [(latency, self.estimate(*key, device)["latency_ms"]) for key, latency in measured.items()]

    def estimate(self, name: str, size: tuple[int, int], batch: int, dtype: str, device: Device) -> Row:
        model = self.models[name]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
        count = count_macs(model, (batch, self.settings.channels, *size), dtype=dtype)
        # A CPU has no TF32; there the setting changes nothing.
        precision = "tf32" if dtype == "fp32" and self.settings.tf32 and "tf32" in device.peak_flops else dtype
        return project(count, device, dtype=precision, weights_bytes=weights).as_result()

    def attempt(self, kind: str, name: str, condition: Row, measure: Callable[[], Any]) -> Row:
        """The row of what `measure` gives, or of how it failed."""
        try:
            result = measure()
        except Exception as error:
            return self.failure(kind, name, condition, error)
        return self.row(kind, name, condition, result)

    def failure(self, kind: str, name: str, condition: Row, error: Exception) -> Row:
        """Out of memory is a result too; any other failure is a row of kind "error"."""
        message = " ".join(str(error).split())[:500]
        if isinstance(error, OutOfMemory) or is_out_of_memory(error):
            return self.row(kind, name, condition, {"error": OUT_OF_MEMORY, "message": message})
        return self.row("error", name, {**condition, "step": kind}, {"error": type(error).__name__, "message": message})

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        return (1, self.settings.channels, *size)

    def row(self, kind: str, name: str, condition: Mapping[str, Any], result: Mapping[str, Any]) -> Row:
        return measurement_row(kind, name, condition=condition, result=result, device=self.settings.device)


def _shown(source: str) -> str:
    """A path relative to the working folder, so that no one's home folder ends up in a row; anything else as it is."""
    return os.path.relpath(source) if os.path.isabs(source) else source
