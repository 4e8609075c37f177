"""Every command line of README and the guides names a tool, options, config files and make targets that exist."""

import re
from pathlib import Path

import pytest

from linescan.engine import ConfigError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *(path for folder in ("docs", "configs", "kernels", "runs") for path in sorted((ROOT / folder).rglob("*.md")))]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@every_page
def test_commands_can_be_run(page, commands):
    for line in commands.page_lines(page.read_text(encoding="utf-8")):
        for argv in commands.calls(line):
            commands.check(argv)


@every_page
def test_scripts_configs_and_targets_exist(page, commands):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w/.-])(?:configs/[\w./-]+\.py|tests/\w+\.py|" + commands.SCRIPT.pattern + ")", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
    makes = {match[1] for line in commands.page_lines(text) if (match := re.match(r"make ([a-z-]+)", line))}
    assert makes <= TARGETS


def test_commands_are_found_in_every_kind_of_code(commands):
    page = """
Text with `python tools/test.py CONFIG
CHECKPOINT` in it, a name `tools/train.py` and "tools/no.py" in prose.

    LINESCAN_DATA=/data python tools/train.py configs/{a,b}_x.py \\
        --amp     # a comment
    make test

```sh
torchrun --nproc-per-node=2 tools/train.py CONFIG --launcher pytorch && echo done
```

```python
"python tools/never.py"
```
"""
    calls = [argv for line in commands.page_lines(page) for argv in commands.calls(line)]
    assert calls == [
        ["tools/train.py", "CONFIG", "--launcher", "pytorch"],
        ["tools/train.py", "configs/a_x.py", "configs/b_x.py", "--amp"],
        ["tools/test.py", "CONFIG", "CHECKPOINT"],
    ]
    assert "make test" in commands.page_lines(page)
    assert commands.braces("a{b,c}d{e,f}") == ["abde", "abdf", "acde", "acdf"]


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["tools/trane.py", "CONFIG"], AssertionError, "tools/trane.py does not exist"),
        (["tools/train.py", "CONFIG", "--workdir", "x"], AssertionError, "unrecognized arguments: --workdir"),
        (["tools/train.py", "CONFIG", "--amp", "fp8"], AssertionError, "invalid choice: 'fp8'"),
        (["tools/train.py"], AssertionError, "the following arguments are required: config"),
        (["tools/train.py", "configs/hybrid/no.py"], ConfigError, "no.py: no such config file"),
        (["tools/train.py", "mmseg::segformer/no.py"], ConfigError, "no such config among"),
    ],
)
def test_a_wrong_command_is_refused(argv, error, message, commands):
    with pytest.raises(error, match=message):
        commands.check(argv)
