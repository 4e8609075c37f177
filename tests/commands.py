"""Command lines as pages and scripts show them, read and held against the tools that they call.

    for line in page_lines(text):                # or script_lines(text)
        for argv in calls(line):                 # ["tools/train.py", "CONFIG", "--amp"]
            check(argv)                          # the tool exists and takes these arguments, its config files exist

Words in CAPITALS stand for what the reader puts there.
"""

import argparse
import functools
import itertools
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from linescan.engine.config import find_config

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = re.compile(r"(?:tools|runs)/\w+\.(?:py|sh)")
SHELLS = ("", "sh", "bash", "console", "text")
CALLERS = ("python", "python3", "torchrun", "sh", "bash")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*\b")


class Parsed(BaseException):
    """Raised instead of running a tool, once its arguments are read: the error of its parser, or None."""


def page_lines(text: str) -> list[str]:
    """Logical lines of a Markdown page's code: indented blocks, fenced ones of a shell, and `spans`."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    indented = [line for line in rest.splitlines() if line.startswith("    ")]
    prose = "\n".join(line for line in rest.splitlines() if not line.startswith("    "))
    spans = [" ".join(span.split()) for span in re.findall(r"`((?:[^`\n]|\n(?!\n))+)`", prose)]
    return script_lines("\n".join([*(body for language, body in fences if language in SHELLS), *indented, *spans]))


def script_lines(text: str) -> list[str]:
    """Logical lines of a shell script, without comments."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines()) if line]


def calls(line: str) -> Iterator[list[str]]:
    """The call of a script of ours by python, torchrun or sh in a line, as words from the script's path on, each {a,b} written out."""
    words = shlex.split(line) if SCRIPT.search(line) else []
    start = next((i for i, word in enumerate(words) if SCRIPT.fullmatch(word)), 0)
    if any(Path(word).name in CALLERS for word in words[:start]):
        end = next((i for i, word in enumerate(words) if i > start and word in ("|", "&&", ";", ">", "2>&1")), len(words))
        yield [alternative for word in words[start:end] for alternative in braces(word)]


def braces(word: str) -> list[str]:
    """a{b,c} -> ab, ac, as a shell does it."""
    parts = re.split(r"\{([^{}]*,[^{}]*)\}", word)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def check(argv: list[str]) -> None:
    """Raise AssertionError where the script does not exist, does not take these arguments, or a config file among them does not exist."""
    script, *arguments = argv
    assert (ROOT / script).is_file(), f"{script} does not exist"
    for word in arguments:
        if re.match(r"configs/|\w+::", word) and not PLACEHOLDER.search(word):
            config = word if "::" in word else ROOT / word
            assert Path(config).is_dir() or find_config(config)
    if script.endswith(".py"):
        error = arguments_error(script, tuple(arguments))
        assert error is None, f"{shlex.join(argv)}: {error}"


@functools.cache
def arguments_error(script: str, arguments: tuple[str, ...]) -> str | None:
    """What the script's own parser says against these arguments, None if nothing."""
    parser, parse = argparse.ArgumentParser, argparse.ArgumentParser.parse_args

    def parse_only(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed(None)

    def refuse(self, message):
        raise Parsed(message)

    with (
        mock.patch.object(parser, "parse_args", parse_only),
        mock.patch.object(parser, "error", refuse),
        mock.patch.object(sys, "argv", [script, *arguments]),
        mock.patch.dict("os.environ"),
    ):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except Parsed as parsed:
            return parsed.args[0]
    return "it does not read its arguments with argparse"
