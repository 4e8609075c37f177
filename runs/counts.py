"""Parameters and multiply-adds, exact counts without a timing: python runs/counts.py OUT.json MODEL [...] [--sizes 224 512] [--options K=V]

A MODEL is named as for tools/profile_model.py. Rows of kind "model", and with --sizes of kind "cost", as that tool writes them; a model's
row also has what a linear classifier of 1000 classes behind it would add. They are added to OUT.json; what it has is not counted again.
"""

import argparse
from itertools import islice
from pathlib import Path

from linescan.engine import quiet_imports
from linescan.engine.cli import run_tool

with quiet_imports():
    from mmengine.config import DictAction

    from linescan.profiling import Settings, line_up, read_rows, write_rows
    from linescan.profiling.session import Session
    from linescan.profiling.subjects import Subject, resolve, skeleton

CLASSES = 1000


def in_adapter(subject: Subject) -> Subject:
    """A plain backbone inside a ViTAdapter of the same architecture."""
    plain = {**subject.config, "final_norm": False}
    return resolve(dict(type="linescan.ViTAdapter", arch=plain["arch"], backbone=plain), name=f"adapter:{subject.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=[], metavar="N", help="image sides in pixels at which multiply-adds are counted"
    )
    parser.add_argument("--options", nargs="+", action=DictAction, metavar="K=V", help="constructor arguments of every backbone")
    parser.add_argument("--adapter", action="store_true", help="put each model into a ViTAdapter")
    args = parser.parse_args()
    rows = read_rows(args.out) if args.out.exists() else []
    done = {row["name"] for row in rows}
    subjects = line_up(args.models, baseline=None, options=args.options)
    subjects = [in_adapter(subject) for subject in subjects] if args.adapter else subjects
    subjects = [subject for subject in subjects if subject.name not in done]
    session = Session(subjects, Settings(sizes=args.sizes or (224,)))
    session.models = {subject.name: skeleton(subject) for subject in subjects}
    for row in islice(session.exact_rows(), None if args.sizes else len(subjects)):
        if row["kind"] == "model":
            row["result"]["classifier_parameters"] = (session.models[row["name"]].out_channels[-1] + 1) * CLASSES
        rows.append(row)
    write_rows(args.out, rows)
    print(f"{args.out}: {len(rows)} rows")


if __name__ == "__main__":
    run_tool(main)
