"""The Pyramid contract, over everything registered: a new backbone is tested because it is registered."""

import copy
import inspect
import io
import pickle
import sys

import pytest
import torch
from torch import nn

from linescan.backbones import BACKBONES, MIXERS, Pyramid, list_backbones
from linescan.kernels.dispatch import use_backend

SIZES = [(64, 64), (63, 97), (120, 50), (17, 1)]
# Modules of PyTorch whose vectors are biases or of a norm.
BIASED_OR_NORM = nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.BatchNorm2d


def configs_of(name: str) -> dict[str, dict]:
    """Label -> config of a registered backbone: each of its module's ARCHS that starts with "test".

    The first argument of the constructor names the architecture (`arch`, or `model_name` of a wrapper).
    """
    cls = BACKBONES.get(name)
    argument = next(iter(inspect.signature(cls).parameters))
    archs = [arch for arch in getattr(sys.modules[cls.__module__], "ARCHS", ["test"]) if arch.startswith("test")]
    return {name + arch.removeprefix("test").replace("_", "-"): {"type": f"linescan.{name}", argument: arch} for arch in archs}


CONFIGS = {label: config for name in list_backbones() for label, config in configs_of(name).items()}
CONFIGS |= {
    f"HybridBackbone-{mixer}": dict(type="linescan.HybridBackbone", arch="test", mixer=mixer)
    for mixer in sorted(MIXERS)
    if mixer != "bi_wkv"
}
CONFIGS["HybridBackbone-extra"] = dict(type="linescan.HybridBackbone", arch="test", extra_level=True, pos_embed_size=(3, 5))
every_backbone = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def build(config: dict, **more: object) -> nn.Module:
    torch.manual_seed(0)
    return BACKBONES.build({**config, **more})


def image(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def loss(outputs: tuple) -> torch.Tensor:
    """Every map with its own weights, so that no gradient cancels."""
    return sum((o.float() * image(*o.shape)).sum() for o in outputs)


@every_backbone
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_at_any_size(config, batch):
    model = build(config).eval()
    for height, width in SIZES:
        outputs = model(image(batch, 3, height, width))
        assert isinstance(outputs, tuple)
        promised = [(batch, c, -(-height // s), -(-width // s)) for c, s in zip(model.out_channels, model.out_strides, strict=True)]
        assert [tuple(o.shape) for o in outputs] == promised
        assert all(torch.isfinite(o).all() for o in outputs)


@every_backbone
def test_gradients_reach_every_parameter(config):
    model = build(config)
    loss(model(image(2, 3, 40, 48))).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@every_backbone
def test_train_returns_self_and_eval_is_deterministic(config):
    model = build(config, drop_path_rate=0.5)
    assert model.train() is model and model.training
    assert model.eval() is model and not model.training
    x = image(1, 3, 32, 48)
    assert all(torch.equal(a, b) for a, b in zip(model(x), model(x), strict=True))
    model.train()
    assert any(not torch.equal(a, b) for a, b in zip(model(image(8, 3, 32, 48)), model(image(8, 3, 32, 48)), strict=True))


@every_backbone
def test_out_indices(config):
    full = build(config).eval()
    count = len(full.out_channels)
    x = image(1, 3, 33, 40)
    chosen = (0, count - 1) if count > 1 else (0,)
    part = build(config, out_indices=chosen).eval()
    assert part.out_channels == tuple(full.out_channels[i] for i in chosen)
    assert part.out_strides == tuple(full.out_strides[i] for i in chosen)
    assert all(torch.equal(a, full(x)[i]) for a, i in zip(part(x), chosen, strict=True))
    for wrong in ((count,), (-1,), (0, 0), (1, 0)):
        with pytest.raises(ValueError, match="out_indices"):
            build(config, out_indices=wrong)
    for wrong in ((), 2, "01"):
        with pytest.raises(TypeError, match="out_indices"):
            build(config, out_indices=wrong)


@every_backbone
def test_frozen_stages_are_frozen(config):
    stages, previous = 0, -1
    while True:
        try:
            model = build(config, frozen_stages=stages).train()
        except ValueError as error:
            assert "frozen_stages" in str(error) and stages > 0
            break
        before = copy.deepcopy(model.state_dict())
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert len(frozen) > previous, "each stage freezes more"
        training = [p for p in model.parameters() if p.requires_grad]
        if training:
            loss(model(image(2, 3, 40, 48))).backward()  # several tokens at stride 32: one alone has no gradient for decays
            torch.optim.SGD(training, lr=1.0).step()
        changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
        for name, module in model.named_modules():
            own = [f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)]
            assert not own or isinstance(module, Pyramid) or module.training == any(parameter not in frozen for parameter in own), name
        stages, previous = stages + 1, len(frozen)
    assert previous == len(list(model.parameters())), "the last stage freezes everything"
    still = build(config, frozen_stages=stages - 1, drop_path_rate=0.9)
    x = image(4, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(still.train()(x), still.eval()(x), strict=True)), "drop path too"
    with pytest.raises(ValueError, match="frozen_stages"):
        build(config, frozen_stages=-2)


@every_backbone
def test_checkpointing_changes_nothing(config):
    plain, recomputed = build(config, drop_path_rate=0.3), build(config, drop_path_rate=0.3, with_cp=True)
    results = []
    for model in (plain, recomputed):
        torch.manual_seed(3)
        outputs = model(image(2, 3, 33, 48))
        loss(outputs).backward()
        results.append((outputs, [p.grad for p in model.parameters()], list(model.buffers())))  # buffers: batch norm counts a batch once
    for a, b in zip(*results, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every_backbone
def test_copies_and_state_dict_round_trip(config):
    model = build(config).eval()
    x = image(1, 3, 40, 33)
    expected = model(x)
    torch.manual_seed(5)
    other = BACKBONES.build(config).eval()
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        assert all(torch.equal(a, b) for a, b in zip(expected, twin(x), strict=True))


@every_backbone
def test_dtypes(config):
    """Pure float64, bfloat16 and float16, and bfloat16 autocast, agree with float64 within their precision; gradients are finite."""
    reference = build(config).double()
    x = image(2, 3, 32, 48)
    expected = reference.eval()(x.double())
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2), (torch.float16, 1e-2)):
        model = copy.deepcopy(reference).to(dtype)
        outputs = model(x.to(dtype))
        _agrees(outputs, expected, dtype, tolerance)
        loss(outputs).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    model = copy.deepcopy(reference).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(x)
    _agrees(outputs, expected, None, 5e-2)
    loss(outputs).backward()
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())


def _agrees(outputs: tuple, expected: tuple, dtype: torch.dtype | None, tolerance: float) -> None:
    for value, reference in zip(outputs, expected, strict=True):
        assert dtype is None or value.dtype == dtype
        assert (value.double() - reference).norm() < tolerance * reference.norm()


@every_backbone
def test_meta_device(config):
    with torch.device("meta"):
        model = BACKBONES.build(config)
        outputs = model(torch.empty(1, 3, 70, 90))
    assert [o.shape[1] for o in outputs] == list(model.out_channels)


@every_backbone
def test_bad_input_is_named(config):
    model = build(config)
    for wrong in (image(3, 32, 32), image(1, 4, 32, 32), image(1, 3, 0, 32)):
        with pytest.raises(ValueError, match="x must have shape"):
            model(wrong)
    with pytest.raises(TypeError, match="floating-point"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(TypeError, match="must be a tensor"):
        model([1])


@every_backbone
def test_export_and_compile_see_one_graph(config):
    """The whole forward, the output check included, is one graph: exported, and compiled with fullgraph=True down to ATen operators."""
    model = build(config).eval()
    x = image(1, 3, 48, 40)
    expected = model(x)
    exported = torch.export.export(model, (x,)).module()(x)
    torch._dynamo.reset()  # otherwise the graphs of the backbones before count against the limit of recompilations
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")(x)
    for outputs in (exported, compiled):
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, outputs, strict=True))


@every_backbone
def test_no_weight_decay_names_parameters(config):
    """Names in `no_weight_decay()` exist, and every vector that is neither a bias nor of a norm is among them."""
    model = build(config)
    ruled = [(prefix, module) for prefix, module in model.named_modules() if hasattr(module, "no_weight_decay")]
    listed = {f"{prefix}.{name}".removeprefix(".") for prefix, module in ruled for name in module.no_weight_decay()}
    assert listed <= {name for name, _ in model.named_parameters()}
    for prefix, module in model.named_modules():
        if not isinstance(module, BIASED_OR_NORM):
            own = module.named_parameters(recurse=False)
            assert {f"{prefix}.{name}".removeprefix(".") for name, p in own if p.ndim < 2} <= listed


@every_backbone
def test_reference_backend_equals_the_default(config):
    """Outputs and all gradients in float64: what the operators' specifications give, the fast backends give."""
    model = build(config).double().eval()
    results = []
    for backend in ("auto", "reference"):
        x = image(2, 3, 33, 40, dtype=torch.float64).requires_grad_()
        with use_backend(backend):
            outputs = model(x)
            gradients = torch.autograd.grad(loss(outputs), [x, *model.parameters()])
        results.append([*outputs, *gradients])
    for value, reference in zip(*results, strict=True):
        assert (value - reference).norm() <= 1e-9 * reference.norm()
