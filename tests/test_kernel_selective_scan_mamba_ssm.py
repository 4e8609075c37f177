"""Selective scan by mamba-ssm: the adapter against a stand-in for the package, since the package itself needs CUDA."""

import importlib
import sys
import types

import pytest
import torch

from linescan.kernels.registration import OPERATORS
from linescan.kernels.selective_scan import cases, selective_scan, selective_scan_ref

OPERATOR = OPERATORS["selective_scan"]


@pytest.fixture
def mamba_ssm(monkeypatch):
    """A stand-in for the package with the signature and the demands of the real function; the adapter is imported over it."""

    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False, cu_seqlens=None
    ):
        assert {x.dtype for x in (A, D, delta_bias) if x is not None} == {torch.float32}
        assert {x.dtype for x in (delta, B, C, z) if x is not None} == {u.dtype}
        assert B.dim() == C.dim() == 4
        return selective_scan_ref(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)

    module = types.ModuleType("mamba_ssm.ops.selective_scan_interface")
    module.selective_scan_fn, module.selective_scan_cuda = selective_scan_fn, object()
    packages = {name: types.ModuleType(name) for name in ("mamba_ssm", "mamba_ssm.ops")}
    packages["mamba_ssm.ops"].selective_scan_interface = module
    for name, value in (*packages.items(), (module.__name__, module)):
        monkeypatch.setitem(sys.modules, name, value)
    name = "linescan.kernels.selective_scan.peer_mamba_ssm"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name), module
    sys.modules.pop(name, None)


def test_mamba_ssm_adapter(mamba_ssm):
    adapter, module = mamba_ssm
    assert adapter.probe() is None
    inputs = cases.make_inputs((2, 6, 21, 3, 2), torch.bfloat16)
    y, last = adapter.call(*(x.requires_grad_() for x in inputs), True)
    expected, state = selective_scan_ref(*inputs, delta_softplus=True, return_last_state=True)
    assert torch.equal(y, expected) and torch.equal(last, state)
    assert y.requires_grad and not last.requires_grad  # the package has no gradient of the last state
    assert [g.dtype for g in torch.autograd.grad(y.float().sum(), inputs)] == [x.dtype for x in inputs]
    bare = adapter.call(*inputs[:5], None, None, None, False)[0]
    assert torch.equal(bare, selective_scan_ref(*inputs[:5]))
    with pytest.raises(NotImplementedError, match=r"mamba_ssm.*float64"):
        adapter.call(*cases.make_inputs((2, 6, 21, 3, 2), torch.float64), True)
    del module.selective_scan_cuda
    assert "built without" in adapter.probe()


def test_mamba_ssm_missing_or_on_a_cpu_is_named(monkeypatch):
    inputs = cases.make_inputs((1, 4, 5, 2, 1))
    with pytest.raises(RuntimeError, match="selective_scan: backend 'mamba_ssm' needs CUDA tensors, got cpu"):
        selective_scan(*inputs, backend="mamba_ssm")
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.delitem(OPERATOR._modules, "mamba_ssm", raising=False)
    assert "needs the package 'mamba_ssm" in OPERATOR.why_not("mamba_ssm", "cuda")
