"""What README and the guides show runs as it is shown, and what they link to exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from linescan.profiling import read_rows, report
from linescan.profiling.figures import outdated_figures
from linescan.profiling.tables import TABLES, comparison, refresh
from linescan.profiling.tables.configs import is_of

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs/*.md", "configs/*/README.md", "kernels/*/README.md", "runs/README.md")
PAGES = sorted([ROOT / "README.md", *(page for pattern in FOLDERS for page in ROOT.glob(pattern))])


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def run(*sources: str) -> None:
    done = subprocess.run([sys.executable, "-c", "\n".join(sources)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme_shows_code_that_runs():
    first, *_ = blocks("README.md")
    run(first, "assert [tuple(x.shape[2:]) for x in levels] == [(125, 84), (63, 42), (32, 21), (32, 21)] and y.shape == k.shape")


def test_third_party_guide_shows_code_that_runs():
    backbone, mixer = blocks("docs/third_party.md")
    check = "x = torch.randn(1, 3, 50, 70); build = lambda: BACKBONES.build(dict(type='FarawayNet', width=8)); assert len(build()(x)) == 2"
    run(backbone, check)
    run("import torch", mixer, "backbone(torch.randn(1, 3, 32, 48))")


def test_profiler_page_shows_code_that_runs():
    (block,) = blocks("docs/profiler.md")
    run(block, "assert {row['kind'] for row in rows} == {'model', 'cost', 'speed', 'operators'}")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.relative_to(ROOT)} links to {missing}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_are_what_their_rows_say(page):
    text = page.read_text(encoding="utf-8")
    assert refresh(text, ROOT) == text, "make tables writes them anew"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pictures_are_drawn_from_todays_rows(page):
    assert outdated_figures(page.read_text(encoding="utf-8"), ROOT) == [], "make tables draws them anew"


@pytest.mark.parametrize("folder", [path.parent for path in sorted(ROOT.glob("results/*/report.md"))], ids=lambda p: p.name)
def test_reports_are_what_their_rows_say(folder):
    assert report.outdated(read_rows(folder / "rows.json"), folder) == [], "make tables writes them anew"


@pytest.mark.parametrize("path", sorted(ROOT.glob("results/*/table.md")), ids=lambda p: p.parent.name)
def test_tables_beside_rows_are_what_the_rows_say(path):
    assert path.read_text(encoding="utf-8") == comparison(read_rows(path.with_name("results.json")))


def test_a_config_is_measured_where_rows_say_so():
    """Status in the docstring and table of the folder: a results file that no table names is found, and a status from before."""
    rows = [row for path in ROOT.glob("results/**/*.json") for row in read_rows(path)]
    measured = {row["name"] for row in rows if is_of(row, row["name"])}
    for path in sorted(ROOT.glob("configs/*/*.py")):
        if path.parent.name != "_base_":
            (line,) = [line for line in (path.parent / "README.md").read_text(encoding="utf-8").splitlines() if f"]({path.name})" in line]
            untrained = "\nStatus: untrained." in path.read_text(encoding="utf-8")
            assert (path.stem not in measured, "not measured" in line) == (untrained, untrained), path.stem


def test_every_kind_of_table_stands_on_a_page():
    used = {name for page in PAGES for name in re.findall(r"<!-- table: (\w+)", page.read_text(encoding="utf-8"))}
    assert set(TABLES) - used == {"comparison"}, "comparison is what tools/compare.py writes"


def test_a_table_that_disagrees_is_written_anew():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    wrong = text.replace("| mIoU, % | 43.4 |", "| mIoU, % | 99.9 |")
    assert wrong != text and refresh(wrong, ROOT) == text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<!-- table: sumary results/quickstart/results.json -->\n<!-- end of table -->", "did you mean summary"),
        ("<!-- table: summary results/quickstart/results.json -->\n| a |\n", "end of table"),
        ("<!-- table: summary -->\n<!-- end of table -->", "end of table"),
    ],
)
def test_a_table_that_cannot_be_made_is_an_error(text, error):
    with pytest.raises(ValueError, match=error):
        refresh(text, ROOT)
