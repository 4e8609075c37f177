"""A sheet of images with their true and predicted classes."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RIGHT, WRONG, TEXT, PAPER = (30, 120, 50), (190, 40, 30), (20, 20, 20), (250, 250, 250)


def draw_sheet(
    images: Sequence[Image.Image], truths: Sequence[str], predictions: dict[str, Sequence[str]], *, columns: int = 6, side: int = 128
) -> np.ndarray:
    """Images in a grid; under each its true class, then one line per model with the predicted class, green if right and red if wrong.

    Args:
        images: RGB, any size; larger ones are reduced to fit `side`.
        truths: name of the true class of each image.
        predictions: name of a model -> its class names, one for each image.
        columns: images in a row.
        side: side of a cell in pixels.

    Returns:
        RGB uint8 array (H, W, 3).

    Raises:
        ValueError: no images, or lists of different lengths.
    """
    if not images or any(len(names) != len(images) for names in (truths, *predictions.values())):
        lengths = {"truths": len(truths), **{name: len(names) for name, names in predictions.items()}}
        raise ValueError(f"expected at least one image and one name for each, got {len(images)} images and {lengths}")
    gap, line, font = 8, 16, ImageFont.load_default(12)
    longest = max(font.getlength(text) for names in (truths, *predictions.values()) for text in names)
    prefix = max((font.getlength(f"{name}: ") for name in predictions), default=0)
    width = int(max(side, prefix + longest)) + gap
    height = side + line * (1 + len(predictions)) + 2 * gap
    columns = min(columns, len(images))
    sheet = Image.new("RGB", (columns * width + gap, -(-len(images) // columns) * height + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, truth) in enumerate(zip(images, truths, strict=True)):
        left, top = gap + i % columns * width, gap + i // columns * height
        small = image.convert("RGB")
        small.thumbnail((side, side))
        sheet.paste(small, (left, top + side - small.height))
        draw.text((left, top + side + 2), truth, fill=TEXT, font=font)
        for n, (name, names) in enumerate(predictions.items(), 1):
            y = top + side + 2 + n * line
            draw.text((left, y), f"{name}: {names[i]}", fill=RIGHT if names[i] == truth else WRONG, font=font)
    return np.array(sheet)
