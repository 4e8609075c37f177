"""runs/: one script per published number. Commands come from a run in which python, cp and mkdir only write down what they are told."""

import difflib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import timm

from linescan.backbones import BACKBONES

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs"
README = (RUNS / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(RUNS.glob("*.sh"))
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| \[([\w.]+)\]\(\1\).*$", README, re.M)}
RESULTS = re.compile(r"`(results/\S+?\.json)`")
STUB = '#!{shell}\nprintf "%s\\n" {name} "$@" "" >> "{log}"\n'
every_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)


def commands(script: Path, folder: Path) -> list[list[str]]:
    """The commands of a script, their variables filled in, OUT being OUT. Nothing but the three is found on the path."""
    folder.mkdir()
    log, shell = folder / "log", shutil.which("sh")
    for name in ("python", "cp", "mkdir"):
        (folder / name).write_text(STUB.format(shell=shell, name=name, log=log))
        (folder / name).chmod(0o755)
    done = subprocess.run([shell, script], cwd=ROOT, env={"PATH": str(folder), "OUT": "OUT"}, capture_output=True, text=True)
    assert done.returncode == 0, f"{script.name}: {done.stderr}"
    return [text.split("\n") for text in log.read_text().strip("\n").split("\n\n")]


def wrong(command: list[str]) -> list[str]:
    """What a `python` command names that does not exist."""
    program, *words = command[1:]
    if not (ROOT / program).is_file():
        return [f"no script {program}"]
    known = set(re.findall(r'"(--[a-z][\w-]*)"', (ROOT / program).read_text(encoding="utf-8")))
    found = []
    for word in words:
        if word.startswith("--") and word not in known:
            found.append(f"{program} has no option {word}, near ones: {', '.join(difflib.get_close_matches(word, known))}")
        elif word.startswith("configs/") and not (ROOT / word).is_file():
            found.append(f"no config {word}")
        elif re.fullmatch(r"[a-z]\w*:\w+(:\w+)?", word):
            found += unknown_backbone(word)
    return found


def unknown_backbone(name: str) -> list[str]:
    try:
        config = BACKBONES.named_config(name)
    except ValueError as error:
        return [str(error)]
    known = BACKBONES.archs(BACKBONES.registered_name(config["type"])) + (timm.list_models() if "model_name" in config else [])
    arch = name.split(":")[1]
    return [] if arch in known else [f"unknown architecture {name}, near ones: {', '.join(difflib.get_close_matches(arch, known))}"]


@every_script
def test_names_only_what_exists(script, tmp_path):
    called = [command for command in commands(script, tmp_path / "bin") if command[0] == "python"]
    assert called and [problem for command in called for problem in wrong(command)] == []


@every_script
def test_header_and_row_in_the_table(script):
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/bin/sh\n# ") and "\nset -e\n" in text
    assert script.name in ROWS, "runs/README.md lists every script"
    # Sums of floats, and so trainings, differ with the number of threads.
    assert "CPU, 1 thread" not in ROWS[script.name] or "OMP_NUM_THREADS=1" in text, "the table says one thread"
    for file in map(Path, RESULTS.findall(ROWS[script.name])):
        assert f"OUT={file.parent}" in text and (file.name == "rows.json" or file.name in text), (
            f"the script does not say that it makes {file}"
        )


def test_every_results_file_has_one_script():
    table = [file for row in ROWS.values() for file in RESULTS.findall(row)]
    by_hand = RESULTS.findall(README.split("Rows without a script:")[1].split("\n\n")[0])
    assert sorted(table + by_hand) == sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("results/**/*.json"))


def test_the_page_lists_what_is_there():
    assert set(ROWS) == {script.name for script in SCRIPTS}
    assert {path.name for path in RUNS.glob("*.py")} <= set(re.findall(r"\[([\w.]+\.py)\]\(\1\)", README))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("python tools/tset.py configs/x.py", "no script tools/tset.py"),
        ("python tools/compare.py --ouT a", "tools/compare.py has no option --ouT, near ones: --out"),
        ("python tools/compare.py configs/hybrid/hybrid.py --out a", "no config configs/hybrid/hybrid.py"),
        ("python tools/profile_model.py vrwkv:smal --sizes 224", "near ones: small"),
        ("python tools/profile_model.py timm:deit_smal", "timm:deit_smal, near"),
    ],
)
def test_a_command_that_names_what_is_not_there_is_found(line, problem, tmp_path):
    script = tmp_path / "x.sh"
    script.write_text(f"#!/bin/sh\nset -e\na='{line}'\n$a\n")
    (command,) = commands(script, tmp_path / "bin")
    assert any(problem in found for found in wrong(command)), wrong(command)


def test_a_script_that_does_not_parse_or_calls_something_else_is_found(tmp_path):
    (tmp_path / "x.sh").write_text("set -e\nif true; then python a\n")
    with pytest.raises(AssertionError, match=r"x\.sh"):
        commands(tmp_path / "x.sh", tmp_path / "bin")
    (tmp_path / "y.sh").write_text("set -e\nrm -r work_dirs/nothing\n")
    with pytest.raises(AssertionError, match="rm"):
        commands(tmp_path / "y.sh", tmp_path / "bin2")
