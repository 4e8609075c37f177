"""Cross scan and cross merge: the orders by their definition, values and gradients of every backend, memory layouts, hard inputs."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from linescan.kernels import testing
from linescan.kernels.cross_scan import cases, cases_cross_merge, cross_merge, cross_merge_ref, cross_scan, cross_scan_ref, torch_kernels
from linescan.kernels.cross_scan.reference import ORDERS

GOLDEN = {"cross2d": "cross", "unidi": "unidirectional", "bidi": "bidirectional"}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(params=["torch", "triton"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def device(request, backend) -> str:
    return request.getfixturevalue("triton_device") if backend == "triton" else "cpu"


def image(shape, dtype=torch.float32, device="cpu"):
    return cases.make_inputs(shape, dtype, device)[0]


def sequences(shape, dtype=torch.float32, device="cpu"):
    return cases_cross_merge.make_inputs(shape, dtype, device)[0]


@pytest.mark.parametrize("order", ORDERS)
def test_reference_reads_positions_in_the_published_order(order):
    height, width = 3, 5
    x = torch.arange(15.0).view(1, 1, height, width)
    row = [(i // width, i % width) for i in range(15)]
    column = [(i % height, i // height) for i in range(15)]
    paths = {
        "cross": (row, column, row[::-1], column[::-1]),
        "unidirectional": (row, row, row, row),
        "bidirectional": (row, row, row[::-1], row[::-1]),
    }[order]
    assert cross_scan_ref(x, order)[0, :, 0].tolist() == [[x[0, 0, h, w].item() for h, w in path] for path in paths]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", cases.TEST_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_matches_reference(shape, dtype, order):
    for op, reference, inputs in (
        (cross_scan, cross_scan_ref, image(shape, dtype)),
        (cross_merge, cross_merge_ref, sequences(shape, dtype)),
    ):
        run = partial(op, order=order, backend="torch")
        testing.assert_matches_reference(run, partial(reference, order=order), (inputs,), ("input",))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", cases.TRITON_SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_matches_reference(triton_device, shape, dtype, order):
    for op, reference, make in ((cross_scan, cross_scan_ref, image), (cross_merge, cross_merge_ref, sequences)):
        run, inputs = partial(op, order=order, backend="triton"), (make(shape, dtype, triton_device),)
        testing.assert_matches_reference(run, partial(reference, order=order), inputs, ("input",))


def test_triton_images_of_several_tiles(triton_device):
    x, ys = image((2, 3, 35, 40), device=triton_device), sequences((2, 3, 35, 40), device=triton_device)
    assert torch.equal(cross_scan(x, backend="triton"), cross_scan_ref(x))
    torch.testing.assert_close(cross_merge(ys, backend="triton"), cross_merge_ref(ys))


@pytest.mark.parametrize("order", ORDERS)
def test_gradcheck(order):
    for run in (partial(cross_scan_ref, order=order), partial(cross_scan, order=order, backend="torch")):
        testing.assert_gradcheck(run, (image((2, 3, 4, 3)),))
    for run in (partial(cross_merge_ref, order=order), partial(cross_merge, order=order, backend="torch")):
        testing.assert_gradcheck(run, (sequences((2, 3, 4, 3)),))


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(golden_ops, backend, device, name, dtype):
    case = torch.load(golden_ops / "op_cross_scan.pt", weights_only=True)[name]
    x, scan, ys, merge = (case[key].to(device, dtype) for key in ("x", "scan", "ys", "merge"))
    for chosen in (backend, "reference"):
        assert torch.equal(cross_scan(x, GOLDEN[name], backend=chosen), scan)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        for actual in (
            cross_merge(ys, order=GOLDEN[name], backend=chosen),
            cross_merge(ys.flatten(3), tuple(x.shape[2:]), GOLDEN[name], backend=chosen),
        ):
            assert (actual - merge).abs().max() <= tolerance


@pytest.mark.parametrize("order", ORDERS)
def test_each_is_the_adjoint_of_the_other(backend, device, order):
    x, ys = image((2, 3, 5, 6), torch.float64, device), sequences((2, 3, 5, 6), torch.float64, device)
    scanned, merged = cross_scan(x, order, backend=backend), cross_merge(ys, order=order, backend=backend)
    torch.testing.assert_close((scanned * ys.flatten(3)).sum(), (x.flatten(2) * merged).sum(), rtol=1e-13, atol=1e-12)
    assert torch.equal(cross_merge(scanned, (5, 6), order, backend=backend), 4 * x.flatten(2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scan_moves_values_and_computes_nothing(backend, device, dtype):
    x = image((1, 2, 5, 7), dtype, device)
    x[0, 0, 1, 2], x[0, 0, 3, 3], x[0, 1, 4, 6] = torch.nan, torch.inf, -0.0
    actual, expected = cross_scan(x, backend=backend), cross_scan_ref(x)
    assert torch.equal(actual.view(torch.int16), expected.view(torch.int16))


def test_nan_stays_in_its_channel(backend, device):
    ys = sequences((2, 4, 5, 6), device=device)
    clean = cross_merge(ys, backend=backend)
    ys[0, 1, 2, 3, 3] = torch.nan
    dirty = cross_merge(ys, backend=backend)
    assert dirty.isnan().sum() == 1
    keep = torch.tensor([0, 1, 3], device=device)
    assert torch.equal(dirty[:, keep], clean[:, keep])


def test_half_precision_is_added_in_float32(backend, device):
    """256 + 1/2 + 1 + 1/2 is 256 in bfloat16 arithmetic, in any order of pairs."""
    ys = torch.tensor([256.0, 0.5, 1.0, 0.5]).to(device, torch.bfloat16).view(1, 4, 1, 1, 1).expand(1, 4, 1, 2, 3)
    assert (cross_merge(ys, backend=backend) == 258).all()
    x = torch.ones(1, 1, 2, 3, dtype=torch.bfloat16, device=device, requires_grad=True)
    cross_scan(x, backend=backend).backward(ys.flatten(3))
    assert (x.grad == 258).all()


@pytest.mark.parametrize("order", ORDERS)
def test_every_element_is_written_and_runs_repeat_bitwise(backend, device, order):
    x, ys = image((2, 3, 9, 5), device=device), sequences((2, 3, 9, 5), device=device)
    with testing.poisoned_memory():
        first, second = (
            (
                *testing.gradients(partial(cross_scan, order=order, backend=backend), (x,), ys.flatten(3)),
                *testing.gradients(partial(cross_merge, order=order, backend=backend), (ys,), x.flatten(2)),
            )
            for _ in range(2)
        )
    for a, b in zip(first, second, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)


@pytest.mark.parametrize("slab", [1, 100, 1 << 30])
@pytest.mark.parametrize("order", ORDERS)
def test_slabs_do_not_change_the_result(monkeypatch, slab, order):
    x, ys = image((3, 4, 5, 7)), sequences((3, 4, 5, 7))
    expected = cross_scan(x, order, backend="torch"), cross_merge(ys, order=order, backend="torch")
    monkeypatch.setattr(torch_kernels, "SLAB", slab)
    assert torch.equal(cross_scan(x, order, backend="torch"), expected[0])
    assert torch.equal(cross_merge(ys, order=order, backend="torch"), expected[1])


@pytest.mark.parametrize("size", [(256, 256), (1, 65536), (65536, 1)])
def test_65536_positions(size):
    x, ys = image((1, 2, *size)), sequences((1, 2, *size))
    assert torch.equal(cross_scan(x, backend="torch"), cross_scan_ref(x))
    assert torch.equal(cross_merge(ys, backend="torch"), cross_merge_ref(ys))


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty(backend, device, shape):
    batch, channels, height, width = shape
    x = image(shape, device=device).requires_grad_()
    out = cross_scan(x, backend=backend)
    assert out.shape == (batch, 4, channels, height * width)
    back = cross_merge(out, (height, width), backend=backend)
    assert back.shape == (batch, channels, height * width)
    back.sum().backward()
    assert x.grad.shape == shape


# ------------------------------------------------------------------------------------------------------------------------ memory layouts


def layouts(x):
    """The same values in other memory: channels last, every second column, turned, in the middle of something larger."""
    wide = x.new_full((*x.shape[:3], 2 * x.shape[3]), torch.nan)
    wide[..., ::2] = x
    inner = x.new_full([n + 2 for n in x.shape], torch.nan)
    inner[1:-1, 1:-1, 1:-1, 1:-1] = x
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "every_second": wide[..., ::2],
        "turned": x.transpose(2, 3).contiguous().transpose(2, 3),
        "inner": inner[1:-1, 1:-1, 1:-1, 1:-1],
    }


@pytest.mark.parametrize("layout", ["channels_last", "every_second", "turned", "inner"])
def test_images_of_any_layout(backend, device, layout):
    x = image((2, 20, 5, 6), device=device)
    assert torch.equal(cross_scan(layouts(x)[layout], backend=backend), cross_scan_ref(x))


@pytest.mark.parametrize("layout", ["tokens_of_channels", "every_second", "five_dimensions", "expanded"])
def test_sequences_and_gradients_of_any_layout(backend, device, layout):
    """A gradient that is not contiguous has been taken for one that is (fla-org/flash-linear-attention#871)."""
    ys = sequences((2, 20, 5, 6), torch.float64, device)
    if layout == "tokens_of_channels":
        strided = ys.flatten(3).transpose(2, 3).contiguous().transpose(2, 3)
    elif layout == "every_second":
        strided = torch.stack((ys, torch.full_like(ys, torch.nan)), -1).flatten(3)[..., ::2]
    elif layout == "five_dimensions":
        strided = layouts(ys.flatten(0, 1))["channels_last"].unflatten(0, (2, 4)).flatten(3)
    else:
        ys = ys[:1, :, :1, :1, :1].expand(2, 4, 20, 5, 6)
        strided = ys.as_strided((2, 4, 20, 30), (0, ys.stride(1), 0, 0))
    expected = cross_merge_ref(ys)
    torch.testing.assert_close(cross_merge(strided, (5, 6), backend=backend), expected, rtol=1e-13, atol=1e-13)
    x = image((2, 20, 5, 6), torch.float64, device).requires_grad_()
    cross_scan(x, backend=backend).backward(strided)
    torch.testing.assert_close(x.grad.flatten(2), expected, rtol=1e-13, atol=1e-13)


def test_five_dimensions_that_are_not_one_sequence_in_memory(backend, device):
    ys = sequences((2, 3, 4, 5), device=device)
    wide = ys.new_full((2, 4, 3, 4, 9), torch.nan)
    wide[..., 2:7] = ys
    torch.testing.assert_close(cross_merge(wide[..., 2:7], backend=backend), cross_merge_ref(ys))


def test_triton_reads_channels_last_memory_as_it_lies():
    pytest.importorskip("triton")
    from linescan.kernels.cross_scan import triton_kernels
    from linescan.kernels.triton_runtime import record_launches

    x = torch.empty(2, 64, 14, 14, device="meta").to(memory_format=torch.channels_last)
    ys = torch.empty(2, 4, 196, 64, device="meta").transpose(2, 3)
    with record_launches() as launches:
        triton_kernels.scan(x, "cross")
        triton_kernels.merge(ys, 14, 14, "cross")
    assert [launch.args[0] is tensor for launch, tensor in zip(launches, (x, ys), strict=True)] == [True, True]


def test_offsets_beyond_32_bits(monkeypatch, triton_device):
    """Large strides take 64-bit offsets inside a tile too, and grids stay on the first axis, which has no limit of 65535: both have made
    peers read the wrong memory or fail (state-spaces/mamba#1015, #505)."""
    from linescan.kernels.cross_scan import triton_kernels
    from linescan.kernels.triton_runtime import record_launches

    with record_launches() as launches:
        triton_kernels.scan(torch.empty(70000, 8, 100, 100, device="meta"), "cross")
        triton_kernels.scan(torch.empty(1, 4, 2, 1 << 30, device="meta")[..., :: (1 << 25)], "cross")
        triton_kernels.merge(torch.empty(1, 4, 4, 64 << 20, device="meta")[..., :: (1 << 20)], 8, 8, "cross")
    assert [launch.constexprs["WIDE"] for launch in launches] == [False, True, True]
    assert all(len(launch.grid) == 1 for launch in launches)
    assert launches[0].grid[0] > 65535
    x, ys = image((2, 3, 5, 6), device=triton_device), sequences((2, 3, 5, 6), device=triton_device)
    monkeypatch.setattr(triton_kernels, "MOST_CHANNELS", 1 << 31)  # what decides on WIDE: now every stride is too large
    assert torch.equal(cross_scan(x, backend="triton"), cross_scan_ref(x))
    torch.testing.assert_close(cross_merge(ys, backend="triton"), cross_merge_ref(ys))


COALESCED = """
import json, re, torch
from linescan.kernels import triton_compile
from linescan.kernels.cross_scan import triton_kernels
from linescan.kernels.triton_runtime import record_launches

def fastest(launch):
    text = triton_compile.compile_launch(launch, 90).asm["ttgir"]
    axes = {name: int(axis) for name, axis in re.findall(r"^(#blocked[0-9]*) = .*order = .([0-9])", text, re.M)}
    return {kind: sorted({axes[name] for name in re.findall(rf"tt.{kind} .*(#blocked[0-9]*)>", text)}) for kind in ("load", "store")}

found = {}
for size in (56, 7):
    x = torch.empty(2, 192, size, size, dtype=torch.bfloat16, device="meta")
    ys = torch.empty(2, 4, 192, size * size, dtype=torch.bfloat16, device="meta")
    for layout in ("first", "last"):
        if layout == "last":
            x, ys = x.to(memory_format=torch.channels_last), ys.transpose(2, 3).contiguous().transpose(2, 3)
        with record_launches() as launches:
            triton_kernels.scan(x, "cross")
            triton_kernels.merge(ys, size, size, "cross")
        for launch in launches:
            found[f"{launch.name} channels {layout} {size}"] = fastest(launch)
            assert triton_compile.resources(triton_compile.compile_launch(launch, 90)).stack == 0
print(json.dumps(found))
"""


def test_every_access_is_coalesced():
    """Threads of a warp run along the first axis of a tile, the sequence, or along channels that lie last; that also the reversed sequences
    do so depends on how Triton orders axes in which it sees no contiguity."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COALESCED], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, axes in json.loads(done.stdout).items():
        assert axes == {"load": [2 if "last" in name else 0], "store": [0]}, name


# ------------------------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cross_scan(torch.zeros(2, 3, 4)), r"x must have shape \(B, D, H, W\), got \(2, 3, 4\)"),
        (lambda: cross_scan(torch.zeros(1, 2, 3, 4), "diagonal"), r"order must be one of \('cross', .*got 'diagonal'"),
        (lambda: cross_merge(torch.zeros(1, 3, 2, 6), (2, 3)), r"ys must have shape \(B, 4, D, L\).*got \(1, 3, 2, 6\)"),
        (lambda: cross_merge(torch.zeros(1, 4, 2, 6)), r"size must be \(H, W\) where ys is \(B, 4, D, L\), got None"),
        (lambda: cross_merge(torch.zeros(1, 4, 2, 6), 6), r"size must be \(H, W\).*got 6"),
        (lambda: cross_merge(torch.zeros(1, 4, 2, 6), (2, 4)), r"size must be \(H, W\) with H \* W = 6, the tokens of ys, got \(2, 4\)"),
        (lambda: cross_merge(torch.zeros(1, 4, 2, 6), (-2, -3)), r"size must be .*got \(-2, -3\)"),
        (lambda: cross_merge(torch.zeros(1, 4, 2, 2, 3), (3, 2)), r"size must be that of ys, \(2, 3\), or None, got \(3, 2\)"),
        (lambda: cross_merge(torch.zeros(1, 4, 2, 6), (2, 3), "rows"), "order must be one of"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_images_too_large_for_triton_are_refused():
    pytest.importorskip("triton")
    from linescan.kernels.cross_scan import triton_kernels, triton_merge_kernels

    x = torch.empty(1, 1, 1 << 13, 1 << 12, device="meta")
    assert "less than 33554432 positions" in triton_kernels.unsupported(x, "cross")
    assert "less than 33554432 positions" in triton_merge_kernels.unsupported(x.new_empty(1, 4, 1, 1 << 25), 1 << 13, 1 << 12, "cross")
    assert triton_kernels.unsupported(x[:, :, :-1], "cross") is None
