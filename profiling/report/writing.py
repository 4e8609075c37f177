"""A folder with the report: Markdown, one HTML file, and each plot as a picture."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import bars, plots
from .data import Report, Row
from .markdown import document
from .page import page
from .style import digest, digest_in, png
from .text import listed, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAND = "bands: 20th to 80th percentile; the slope is the exponent of the number of pixels, 1 is linear, 2 quadratic"
FIGURES = {
    "latency": (plots.latency, f"Latency against image size, both logarithmic ({_BAND})."),
    "memory": (plots.memory, "Peak memory against image size, both logarithmic; the slope is the exponent of the number of pixels."),
    "accuracy_latency": (
        plots.accuracy_latency,
        "Accuracy against measured latency; no model is both faster and more accurate than one on the Pareto front.",
    ),
    "operators": (bars.operators, "Time by operator, each panel with its own scale."),
    "macs": (bars.macs, "Multiply-adds by kind of operator; the element operations of scans are not among them."),
    "activations": (bars.activations, "What a training step keeps of one image for the backward pass, by stage."),
    "parameters": (bars.parameters, "Parameters by type of module."),
}


def write_report(rows: Sequence[Row], folder: str | os.PathLike[str], *, title: str | None = None) -> list[Path]:
    """Writes report.md, report.html and a PNG of each plot that the rows allow.

    Each file is written whole or not at all, and a picture carries the digest of the rows. A plot of an earlier report in the same folder
    that these rows do not allow is removed, since it would show other measurements than the text beside it.

    Args:
        rows: as `linescan.profiling.read_rows` gives them; kinds that are no part of a profile are passed over and named.
        folder: is made where it does not exist.
        title: of the report; default: the names of the first models.

    Returns:
        The files, in the order report.md, report.html, plots.

    Raises:
        ValueError: no rows, rows of another schema, or rows that lack what their kind must have.
    """
    report = Report(rows)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    title = title or default_title(report)
    figures = _figures(report)
    captions = {name: FIGURES[name][1] for name in figures}
    pictures = {name: (captions[name], png(figure, digest(name, rows))) for name, figure in figures.items()}
    content = {"report.md": document(report, title=title, figures=captions).encode()}
    content["report.html"] = page(report, title=title, figures=pictures).encode()
    content |= {f"{name}.png": picture for name, (_, picture) in pictures.items()}
    for name in FIGURES.keys() - figures.keys():
        (folder / f"{name}.png").unlink(missing_ok=True)
    return [_write(folder / name, data) for name, data in content.items()]


def outdated(rows: Sequence[Row], folder: str | os.PathLike[str]) -> list[Path]:
    """What in a folder is not the report of these rows: report.md with another text, pictures of other rows, missing ones, and pictures
    that these rows do not allow. For reports with their default title; report.html is not looked at."""
    report, folder = Report(rows), Path(folder)
    figures = _figures(report)
    text = document(report, title=default_title(report), figures={name: FIGURES[name][1] for name in figures})
    current = folder / "report.md"
    found = [] if current.exists() and current.read_text(encoding="utf-8") == text else [current]
    for name in FIGURES:
        picture = folder / f"{name}.png"
        carried = digest_in(picture.read_bytes()) if picture.exists() else None
        if carried != digest(name, rows) if name in figures else picture.exists():
            found.append(picture)
    return found


def _figures(report: Report) -> dict[str, "Figure"]:
    """The plots that the rows allow."""
    return {name: figure for name, (draw, _) in FIGURES.items() if (figure := draw(report)) is not None}


def default_title(report: Report) -> str:
    """ "Profile of A, B and 4 more models", as many names as fit a heading."""
    models = [one_line(name) for name in report.ordered if report.role(name) == "model"]
    if not models:
        return "Profile"
    shown = next(count for count in (3, 2, 1) if count == 1 or sum(map(len, models[:count])) < 90)
    left = len(models) - shown
    return f"Profile of {listed(models[:shown] + ([f'{left} more model' + 's' * (left > 1)] if left > 0 else []))}"


def _write(path: Path, data: bytes) -> Path:
    """A reader sees the old file or the new one, never half of one."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
    return path
