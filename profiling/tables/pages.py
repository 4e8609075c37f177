"""Writes the tables of a page."""

import difflib
import json
import re
from pathlib import Path

from .base import TABLES, Row
from .configs import config_rows

_BLOCK = re.compile(r"(?P<head><!-- table: (?P<name>\w+) (?P<files>\S+(?: \S+)*) -->\n)(?P<body>.*?)(?P<end><!-- end of table -->)", re.S)
_OPENING = "<!-- table:"


def refresh(text: str, root: Path) -> str:
    """The text of a page with every table made from the files that its comment names.

    Args:
        text: Markdown.
        root: the folder that the file names start from. A folder of configs stands for a row of each config.

    Raises:
        ValueError: an unknown table, a comment without its end, or a folder without configs.
        FileNotFoundError: no such results file.
    """
    if text.count(_OPENING) != len(_BLOCK.findall(text)):
        raise ValueError(f"every '{_OPENING} NAME FILE ... -->' needs an '<!-- end of table -->' below it, and nothing else on its line")

    def written(block: re.Match) -> str:
        if block["name"] not in TABLES:
            near = difflib.get_close_matches(block["name"], TABLES, n=1)
            raise ValueError(
                f"unknown table {block['name']!r}{f', did you mean {near[0]}?' if near else ''}; there are {', '.join(TABLES)}"
            )
        rows = [row for file in block["files"].split() for row in _rows(root / file)]
        return block["head"] + TABLES[block["name"]](rows) + block["end"]

    return _BLOCK.sub(written, text)


def _rows(path: Path) -> list[Row]:
    return config_rows(path) if path.is_dir() else json.loads(path.read_text(encoding="utf-8"))
