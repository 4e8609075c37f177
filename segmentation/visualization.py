"""Pictures of label maps: colours, overlays, label PNGs and sheets of image | ground truth | prediction with a legend.

Images are RGB uint8 arrays (H, W, 3), label maps integer arrays (H, W) of class indices; everything outside 0..len(palette)-1 counts
as ignored.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IGNORED = (255, 255, 255)
Row = Sequence[np.ndarray | None]  # image, ground truth or None, one or more predictions


def _check(labels: np.ndarray, image: np.ndarray | None = None) -> None:
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be an integer array (H, W), got shape {labels.shape} of {labels.dtype}")
    if image is None:
        return
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be an RGB uint8 array (H, W, 3), got shape {image.shape} of {image.dtype}")
    if image.shape[:2] != labels.shape:
        raise ValueError(f"image and labels must have one size (H, W), got {image.shape[:2]} and {labels.shape}")


def colorize(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Label map -> RGB uint8 (H, W, 3); ignored pixels are white."""
    _check(labels)
    colors = np.array([*palette, IGNORED], dtype=np.uint8)
    valid = (labels >= 0) & (labels < len(palette))
    return colors[np.where(valid, labels, len(palette))]


def overlay(image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], opacity: float = 0.5) -> np.ndarray:
    """The image with the label colours over it; `opacity` is the weight of the colours, 0..1. Ignored pixels show the image."""
    _check(labels, image)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be within 0..1, got {opacity}")
    mixed = np.rint(image * (1 - opacity) + colorize(labels, palette) * opacity).astype(np.uint8)
    valid = (labels >= 0) & (labels < len(palette))
    return np.where(valid[..., None], mixed, image)


def save_labels(path: str | Path, labels: np.ndarray, palette: Sequence[Sequence[int]]) -> None:
    """Write a label map as a palette PNG: the pixel value is the class index, a viewer shows the class colour.

    Raises:
        ValueError: not a map of integers within 0..255.
    """
    _check(labels)
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        raise ValueError(f"a label PNG holds 0..255, got {labels.min()}..{labels.max()}")
    picture = Image.fromarray(labels.astype(np.uint8))
    colors = [*(tuple(c) for c in palette), *[IGNORED] * (256 - len(palette))]
    picture.putpalette([channel for color in colors[:256] for channel in color])
    picture.save(path)


def draw_sheet(
    rows: Sequence[Row],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    *,
    titles: Sequence[str] = ("image", "ground truth", "prediction"),
    panel: int = 480,
) -> np.ndarray:
    """A picture with one row per sample, image | ground truth | prediction(s), and a legend of the classes that occur.

    Args:
        rows: (image, ground truth or None, prediction, ...) per sample; sizes may differ between rows. Without any ground truth the column
            is left out. Predictions of several models make several columns.
        classes, palette: names and RGB colours by class index.
        titles: headings of the columns.
        panel: longest side of one picture, in pixels; larger ones are reduced, smaller ones kept.

    Returns:
        RGB uint8 array.

    Raises:
        ValueError: no rows, a row whose arrays do not fit together, or another number of titles than columns.
    """
    if not rows:
        raise ValueError("rows is empty: expected at least one (image, ground truth, prediction)")
    if any(len(row) != len(titles) or len(row) < 3 for row in rows):
        raise ValueError(f"each row must be (image, ground truth, prediction, ...), one entry for each of the titles {tuple(titles)}")
    with_truth = any(row[1] is not None for row in rows)
    columns = [t for i, t in enumerate(titles) if with_truth or i != 1]
    cells, present, ignored = [], set(), False
    for image, truth, *predictions in rows:
        maps = [truth, *predictions] if with_truth else predictions
        for labels in (m for m in maps if m is not None):
            _check(labels, image)
            ids = np.unique(labels)
            present.update(int(i) for i in ids if 0 <= i < len(palette))
            ignored |= bool(((ids < 0) | (ids >= len(palette))).any())
        colored = [np.full_like(image, 255) if m is None else colorize(m, palette) for m in maps]
        cells.append([_fit(image, panel, Image.Resampling.BILINEAR), *(_fit(c, panel, Image.Resampling.NEAREST) for c in colored)])
    entries = [(classes[i], tuple(palette[i])) for i in sorted(present)] + ([("ignored", IGNORED)] if ignored else [])
    return np.array(_paste(cells, columns, entries))


def _fit(image: np.ndarray, side: int, filter: Image.Resampling) -> Image.Image:
    picture = Image.fromarray(image)
    scale = side / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize(tuple(max(1, round(n * scale)) for n in picture.size), filter)


def _paste(cells: list[list[Image.Image]], columns: Sequence[str], entries: list[tuple[str, tuple[int, ...]]]) -> Image.Image:
    """Lay out the cells under their headings, the legend below."""
    gap, line, font = 6, 20, ImageFont.load_default(14)
    widths = [max(row[i].width for row in cells) for i in range(len(columns))]
    # A narrow sheet still has to hold its headings and the longest name of a class.
    widths = [max(w, int(font.getlength(t)) + gap) for w, t in zip(widths, columns, strict=True)]
    longest = max((int(font.getlength(name)) for name, _ in entries), default=0) + line + 2 * gap
    width = max(sum(widths) + gap * (len(widths) + 1), longest + gap)
    per_line = max(1, (width - gap) // longest) if entries else 1
    legend = line * -(-len(entries) // per_line)
    height = line + gap + sum(max(c.height for c in row) + gap for row in cells) + legend + gap
    sheet = Image.new("RGB", (width, height), (245, 245, 245))
    draw = ImageDraw.Draw(sheet)
    lefts = [gap + sum(widths[:i]) + gap * i for i in range(len(widths))]
    for left, title in zip(lefts, columns, strict=True):
        draw.text((left, 3), title, fill=(20, 20, 20), font=font)
    top = line + gap
    for row in cells:
        for left, cell in zip(lefts, row, strict=True):
            sheet.paste(cell, (left, top))
        top += max(c.height for c in row) + gap
    for i, (name, color) in enumerate(entries):
        left, y = gap + (i % per_line) * longest, top + (i // per_line) * line
        draw.rectangle((left, y + 3, left + line - 6, y + line - 4), fill=color, outline=(90, 90, 90))
        draw.text((left + line, y + 1), name, fill=(20, 20, 20), font=font)
    return sheet
