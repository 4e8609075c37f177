"""Who is measured beside whom: the models, the transformers of their scale, the controls."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..engine.errors import ConfigError
from .baselines import choose_baseline, controls
from .subjects import Subject, resolve


def line_up(
    models: Iterable[str | Path | Mapping | nn.Module | Subject],
    *,
    baseline: str | Subject | None = "auto",
    with_controls: bool = False,
    options: Mapping[str, Any] | None = None,
) -> list[Subject]:
    """The models with the transformers and controls that they are held against; each once, baselines behind the models.

    Args:
        models: see `subjects.resolve`.
        baseline: "auto" picks one for each model (`baselines.choose_baseline`), None none; anything else is
            one for all, a name or what `subjects.resolve` gives.
        with_controls: add the twins of a hybrid without long-range mixing (`baselines.controls`).
        options: constructor arguments of every backbone, or cfg_options of every config.
    """
    found: dict[str, Subject] = {}
    given = [resolve(model, options=options) for model in models]
    if not given:
        raise ConfigError("models: expected at least one, got none")
    for subject in given:
        if subject.name in found and found[subject.name].config != subject.config:
            raise ConfigError(f"models: two of them are named {subject.name}")
        found[subject.name] = subject
    common = None if baseline in (None, "auto") else replace(resolve(baseline, options=options), role="baseline", reason="as asked for")
    for subject in given:
        chosen = choose_baseline(subject) if baseline == "auto" else common
        companions = [chosen] if chosen is not None and chosen.name != subject.name else []
        for companion in companions + (controls(subject) if with_controls else []):
            known = found.get(companion.name, companion)
            found[companion.name] = replace(known, of=(*known.of, *(name for name in (subject.name,) if name not in known.of)))
    return list(found.values())


def references(subjects: Sequence[Subject]) -> dict[str, str]:
    """Name -> name of the model that its speed is divided by: its baseline; that of its model for a control; else itself.

    Where nothing is the baseline of anything, the first model is the reference of all.
    """
    transformers = {model: subject.name for subject in subjects if subject.role != "control" for model in subject.of}
    if not transformers:
        return {subject.name: subjects[0].name for subject in subjects}
    of_control = {subject.name: transformers.get(subject.of[0], subject.of[0]) for subject in subjects if subject.role == "control"}
    return {subject.name: transformers.get(subject.name, of_control.get(subject.name, subject.name)) for subject in subjects}
