"""A run that is interrupted and resumed has the losses of one that is not."""

import random
import signal
import subprocess
import sys

import pytest
import torch

from linescan.engine import CheckpointError, read_checkpoint, run_train
from linescan.engine.testing import read_losses, toy_config

pytestmark = pytest.mark.xdist_group("engine_resume")  # one worker: the tests share a fixture that trains or builds


def recorder(work_dir, **kwargs):
    return [dict(type="LossRecorder", file=f"{work_dir}/losses", **kwargs)]


def interrupted(tmp_path, stop_at, resume=True, **kwargs):
    """Losses of a run that stops at `stop_at` and is resumed."""
    work_dir = tmp_path / "interrupted"
    work_dir.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run_train(toy_config(work_dir, custom_hooks=recorder(work_dir, stop_at=stop_at), **kwargs))
    torch.rand(5), random.random()  # the new process has another random state
    run_train(toy_config(work_dir, **{**kwargs, "resume": resume}))
    return read_losses(work_dir / "losses.0")


def uninterrupted(tmp_path, **kwargs):
    work_dir = tmp_path / "uninterrupted"
    work_dir.mkdir()
    run_train(toy_config(work_dir, **kwargs))
    return read_losses(work_dir / "losses.0")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Losses without an interruption and without workers: of the iteration loop (False) and of the epoch loop (True)."""
    return {epochs: uninterrupted(tmp_path_factory.mktemp("whole"), epochs=epochs) for epochs in (False, True)}


@pytest.mark.parametrize("epochs, stop_at", [(False, 4), (False, 10), (False, 19), (True, 9), (True, 13)])
def test_resumed_losses_equal_the_uninterrupted_ones(tmp_path, expected, epochs, stop_at):
    """A checkpoint lies at every fourth iteration and, where the score rose, at a validation; epochs have six iterations."""
    assert len(expected[epochs]) == (24 if epochs else 20)
    assert interrupted(tmp_path, stop_at, epochs=epochs) == pytest.approx(expected[epochs], abs=1e-6)


@pytest.mark.parametrize("epochs, workers, persistent", [(False, 1, False), (False, 2, True), (True, 2, True)])
def test_the_number_of_workers_changes_nothing(tmp_path, expected, epochs, workers, persistent):
    got = interrupted(tmp_path, 14, epochs=epochs, workers=workers, persistent=persistent)
    assert got == pytest.approx(expected[epochs], abs=1e-6)


def test_a_finite_sampler_in_the_iteration_loop(tmp_path):
    """23 samples in batches of 4 are 6 iterations: the resume at 12 lies exactly at the end of the second pass."""
    loader = toy_config(tmp_path)["train_dataloader"]
    loader["sampler"] = dict(type="DefaultSampler", shuffle=True)
    whole = uninterrupted(tmp_path, train_dataloader=loader)
    assert interrupted(tmp_path, 13, train_dataloader=loader) == pytest.approx(whole, abs=1e-6)


def test_without_a_seed_the_resumed_run_takes_that_of_the_checkpoint(tmp_path):
    kwargs = dict(randomness=dict(seed=None))
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    run_train(toy_config(work_dir, **kwargs))
    whole = read_losses(work_dir / "losses.0")
    (work_dir / "iter_20.pth").unlink()
    run_train(toy_config(work_dir, resume=True, **kwargs))
    assert read_losses(work_dir / "losses.0") == whole


def test_the_random_states_matter(tmp_path):
    """The equality above is no accident: without the saved states dropout differs after the resume."""
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    run_train(toy_config(work_dir))
    checkpoint = read_checkpoint(work_dir / "iter_16.pth")
    del checkpoint["rng_states"]
    torch.save(checkpoint, work_dir / "stripped.pth")
    with pytest.raises(AssertionError, match="iteration 16"):
        run_train(toy_config(work_dir, resume=True, load_from=str(work_dir / "stripped.pth")))
        read_losses(work_dir / "losses.0")


def test_flexible_runner_resumes_exactly(tmp_path, expected):
    """Also where a file was saved again after a validation (iteration 10), which MMEngine's own runner numbers one too high."""
    got = interrupted(tmp_path, 10, strategy=dict(type="SingleDeviceStrategy"))
    assert got == pytest.approx(expected[False], abs=1e-6)


def test_killed_process_resumes(tmp_path, expected):
    """kill -9 at a random iteration, in a process of its own, workers running."""
    stop_at, work_dir = random.SystemRandom().randrange(4, 20), tmp_path / "killed"
    work_dir.mkdir()
    toy_config(work_dir, workers=1, custom_hooks=recorder(work_dir, stop_at=stop_at, kill=True)).dump(tmp_path / "config.py")
    code = f"from linescan.engine import *; run_train(load_config({str(tmp_path / 'config.py')!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(read_losses(work_dir / "losses.0")) == stop_at + 1
    run_train(toy_config(work_dir, resume=True))
    assert read_losses(work_dir / "losses.0") == pytest.approx(expected[False], abs=1e-6), f"killed at {stop_at}"


def test_resume_without_checkpoints_starts_from_the_beginning(tmp_path, expected):
    work_dir = tmp_path / "fresh"
    work_dir.mkdir()
    run_train(toy_config(work_dir, resume=True))
    assert read_losses(work_dir / "losses.0") == expected[False]


def damaged_run(tmp_path):
    """A finished run whose last file is cut off."""
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    run_train(toy_config(work_dir))
    last = work_dir / "iter_20.pth"
    last.write_bytes(last.read_bytes()[:5000])
    return work_dir, last


def test_auto_resume_tries_the_checkpoint_before_a_truncated_one(tmp_path):
    work_dir, last = damaged_run(tmp_path)
    runner = run_train(toy_config(work_dir, resume=True))
    log = next((work_dir / runner.timestamp).glob("*.log")).read_text()
    assert f"Not resumed from {last}: the checkpoint is truncated" in log
    assert "resumed epoch: 0, iter: 16" in log
    assert read_checkpoint(last)["meta"]["iter"] == 20


def test_explicit_resume_from_a_truncated_file_names_the_one_before(tmp_path):
    work_dir, last = damaged_run(tmp_path)
    with pytest.raises(CheckpointError, match=r"iter_20\.pth: the checkpoint is truncated.*before it is .*iter_16\.pth"):
        run_train(toy_config(work_dir, resume=True, load_from=str(last)))


def test_nothing_usable_is_an_error(tmp_path):
    work_dir, _ = damaged_run(tmp_path)
    for path in work_dir.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of its 3 checkpoints"):
        run_train(toy_config(work_dir, resume=True))


def test_foreign_checkpoints_are_refused(tmp_path):
    """Another model's file, a file of weights alone, and some dict."""
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    run_train(toy_config(work_dir))
    kwargs = dict(resume=True, load_from=str(work_dir / "iter_20.pth"), model=dict(type="ToyRegression", width=8))
    with pytest.raises(CheckpointError, match=r"iter_20\.pth: the weights are not those of ToyRegression.*of another shape.*\(16, 8\)"):
        run_train(toy_config(tmp_path / "other", **kwargs))
    best = next(work_dir.glob("best_*.pth"))
    with pytest.raises(CheckpointError, match=r"best_.*cannot resume, optimizer missing \(it holds weights only"):
        run_train(toy_config(work_dir, resume=True, load_from=str(best)))
    torch.save({"a": 1}, tmp_path / "some.pth")
    with pytest.raises(CheckpointError, match=r"some\.pth: cannot resume, meta"):
        run_train(toy_config(work_dir, resume=True, load_from=str(tmp_path / "some.pth")))
