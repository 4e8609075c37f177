"""SSD by mamba-ssm: the adapter against a stand-in for the package, since the package itself needs CUDA."""

import importlib
import math
import sys
import types

import pytest
import torch

from linescan.kernels.registration import OPERATORS
from linescan.kernels.ssd import cases, ssd, ssd_ref

OPERATOR = OPERATORS["ssd"]


@pytest.fixture
def adapter(monkeypatch):
    """The adapter, imported over a stand-in for the package with the signature and the default limits of the real function."""

    def mamba_chunk_scan_combined(
        x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None,
        dt_softplus=False, dt_limit=(0.0, math.inf), return_final_states=False, return_varlen_states=False, out_dtype=None,
    ):  # fmt: skip
        assert chunk_size == 256
        assert return_final_states
        if dt_bias is not None:
            dt = dt + dt_bias
        dt = torch.nn.functional.softplus(dt) if dt_softplus else dt
        return ssd_ref(x, dt.clamp(*dt_limit), A, B, C, D, z, None, initial_states, return_final_states=True)

    module = types.ModuleType("mamba_ssm.ops.triton.ssd_combined")
    module.mamba_chunk_scan_combined = mamba_chunk_scan_combined
    packages = ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.triton")
    for name, value in (*((n, types.ModuleType(n)) for n in packages), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, value)
    name = "linescan.kernels.ssd.peer_mamba_ssm"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


@pytest.mark.parametrize("softplus", [True, False])
def test_adapter_passes_every_argument(adapter, softplus):
    """Without softplus step sizes are negative too: the package would set them to zero by default."""
    inputs = [0.1 * x for x in cases.make_inputs((2, 21, 4, 3, 2, 5))]
    found = adapter.call(*(x.requires_grad_() for x in inputs), softplus, True)
    expected = ssd_ref(*inputs, dt_softplus=softplus, return_final_states=True)
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)
    grads = (torch.autograd.grad(sum(x.sum() for x in outputs), inputs) for outputs in (found, expected))
    for a, e in zip(*grads, strict=True):
        torch.testing.assert_close(a, e)


def test_adapter_without_optional_arguments(adapter):
    inputs = cases.make_inputs((2, 21, 4, 3, 2, 5))[:5]
    y, last = adapter.call(*inputs, None, None, None, None, False, True)
    for a, e in zip((y, last), ssd_ref(*inputs, return_final_states=True), strict=True):
        torch.testing.assert_close(a, e)


def test_the_non_causal_form_is_refused(adapter):
    with pytest.raises(NotImplementedError, match="'mamba_ssm' has no non-causal form"):
        adapter.call(*cases.make_inputs((1, 3, 1, 2, 1, 2)), True, False)


def test_missing_or_on_a_cpu_is_named(monkeypatch):
    inputs = cases.make_inputs((1, 4, 2, 3, 1, 2))
    with pytest.raises(RuntimeError, match="ssd: backend 'mamba_ssm' needs CUDA tensors, got cpu"):
        ssd(*inputs, backend="mamba_ssm")
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.delitem(OPERATOR._modules, "mamba_ssm", raising=False)
    monkeypatch.setattr(OPERATOR, "_verdicts", {})
    assert "needs the package 'mamba_ssm" in OPERATOR.why_not("mamba_ssm", "cuda")
