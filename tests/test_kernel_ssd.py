"""SSD: values and gradients against float64 and the stored tensors."""

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.ssd import cases, ssd, ssd_ref


@pytest.mark.parametrize("shape", cases.TEST_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_matches_reference(shape, dtype):
    inputs = cases.make_inputs(shape, dtype)
    ops = (lambda *x, op=op: op(*x, **cases.KWARGS) for op in (ssd, ssd_ref))
    testing.assert_matches_reference(*ops, inputs, cases.INPUTS)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_golden(golden_ops, dtype, tolerance):
    stored = torch.load(golden_ops / "op_ssd.pt", weights_only=True)
    inputs = {name: x.to(dtype).requires_grad_() for name, x in stored["inputs"].items()}
    y, state = ssd(**inputs, **stored["kwargs"], return_final_states=True)
    testing.assert_close(y, stored["outputs"][0], tolerance, "y")
    testing.assert_close(state, stored["final_state"], tolerance, "final state")
    grads = torch.autograd.grad(y, list(inputs.values()), stored["grad_outputs"][0].to(dtype))
    for name, grad in zip(inputs, grads, strict=True):
        testing.assert_close(grad, stored["grads"][name], tolerance, name)
