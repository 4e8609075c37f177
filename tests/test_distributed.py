"""Two processes on CPUs (gloo): same numbers as one process, resume included. On one node, on two "nodes", and under SLURM's variables."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from linescan.engine import run_train
from linescan.engine.testing import read_losses, toy_config

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the processes would use NCCL and share it")


@pytest.fixture
def train(tmp_path, repo_root):
    """Run tools/train.py in two processes; gives the exit codes."""

    def start(cfg, commands, *options):
        path = tmp_path / "config.py"
        cfg.dump(path)
        script = [str(repo_root / "tools" / "train.py"), str(path), *options]
        processes = [
            subprocess.Popen(
                [sys.executable, *prefix, *script],
                env={**os.environ, "OMP_NUM_THREADS": "1", **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for prefix, env in commands
        ]
        output = [process.communicate(timeout=170)[0] for process in processes]
        return [process.returncode for process in processes], "\n".join(output)

    return start


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchrun() -> list:
    """One node, two processes."""
    return [(["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"], {})]


def two_nodes() -> list:
    """Two "nodes" of one process each that meet on the loopback interface."""
    where = [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-backend=c10d", "--rdzv-id=test"]
    return [(["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={i}", *where], {}) for i in range(2)]


def slurm() -> list:
    """The variables of `srun -N2 -n2`; the real thing is in docs/distributed.md."""
    shared = {
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
        "SLURM_NODELIST": "node[1-2]",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    return [([], {**shared, "SLURM_PROCID": str(rank)}) for rank in range(2)]


def distributed_config(work_dir, **changes):
    """Two samples per process. No dropout: its masks depend on how a batch is cut. The augmentation does not, and stays."""
    loader = dict(toy_config(work_dir)["train_dataloader"], batch_size=2)
    return toy_config(work_dir, train_dataloader=loader, **{"model": dict(type="ToyRegression", dropout=0.0), **changes})


def mean_losses(work_dir):
    ranks = [read_losses(work_dir / f"losses.{rank}") for rank in range(2)]
    assert ranks[0] != ranks[1], "both processes saw the same data"
    return {i: (ranks[0][i] + ranks[1][i]) / 2 for i in ranks[0]}


@pytest.mark.parametrize(
    "commands, launcher, strategy",
    [(two_nodes, "pytorch", dict(type="DDPStrategy")), (slurm, "slurm", None)],
    ids=["two-nodes-flexible-runner", "slurm"],
)
def test_two_processes_train_like_one(tmp_path, train, commands, launcher, strategy):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    run_train(toy_config(one, model=dict(type="ToyRegression", dropout=0.0)))
    extra = dict(strategy=strategy) if strategy else {}
    codes, output = train(distributed_config(two, **extra), commands(), "--launcher", launcher)
    assert set(codes) == {0}, output
    assert mean_losses(two) == pytest.approx(read_losses(one / "losses.0"), abs=1e-5)


def test_two_killed_processes_resume_exactly(tmp_path, train):
    """With dropout, each process with its own random stream; SyncBN in the config, which gloo has no kernel for."""
    kwargs = dict(model=dict(type="ToyRegression", norm_cfg=dict(type="SyncBN")), randomness=dict(seed=7, diff_rank_seed=True))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    codes, output = train(distributed_config(whole, **kwargs), slurm(), "--launcher", "slurm")
    assert codes == [0, 0], output
    stop = [dict(type="LossRecorder", file=f"{killed}/losses", stop_at=13, kill=True)]
    codes, output = train(distributed_config(killed, custom_hooks=stop, **kwargs), slurm(), "--launcher", "slurm")
    assert -signal.SIGKILL in codes and 0 not in codes, output
    codes, output = train(distributed_config(killed, **kwargs), torchrun(), "--launcher", "pytorch", "--resume")
    assert codes == [0] and "resumed epoch: 0, iter: 12" in output, output
    for rank in range(2):
        expected = read_losses(whole / f"losses.{rank}")
        assert read_losses(killed / f"losses.{rank}") == pytest.approx(expected, abs=1e-6)
