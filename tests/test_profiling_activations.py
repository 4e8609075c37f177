"""Bytes kept for the backward pass, against closed forms."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from linescan.backbones import BACKBONES, HybridBackbone
from linescan.profiling.activations import activations_by_stage


def test_linear_gelu_linear():
    """Each keeps its argument; the input counts because the first weight needs it."""
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    assert activations_by_stage(model, (5, 8)) == {"0": 4 * 5 * 8, "1": 4 * 5 * 32, "2": 4 * 5 * 32}


def test_convolution_and_norm_at_an_odd_size():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    pixels = 2 * 19 * 26  # (37, 51) halved, rounded up
    # A ReLU keeps its result; a batch norm its argument, mean and deviation.
    assert activations_by_stage(model, (2, 3, 37, 51)) == {"0": 4 * 2 * 3 * 37 * 51, "1": 4 * (8 * pixels + 16), "2": 4 * 8 * pixels}


class _Calls(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.function(x * self.weight)


@pytest.mark.parametrize(
    ("function", "floats"),
    [
        (lambda y: y + 1, 0),
        (lambda y: y * y, 96),  # one block, kept twice
        (lambda y: y.view(-1)[:8] * y.view(-1)[8:16], 96),  # views of one block
        (lambda y: y.detach() ** 2, 0),
        (lambda y: y.exp(), 96),
        # Query, key, value, result, and a number per query: no matrix of weights.
        (lambda y: nn.functional.scaled_dot_product_attention(y * 2, y * 3, y * 4), 4 * 96 + 12),
        (lambda y: nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True, scale=0.3), 2 * 96 + 12),
        (lambda y: nn.functional.scaled_dot_product_attention(y, y, value=y, attn_mask=y.new_zeros(6, 6)), 2 * 96 + 12 + 36),
    ],
)
def test_what_is_kept(function, floats):
    """Beside the input, which the product with the weight keeps."""
    assert activations_by_stage(_Calls(function), (2, 6, 8)) == {"": 4 * (96 + floats)}


def test_attention_under_autocast_keeps_what_it_casts():
    attention = _Calls(lambda y: nn.functional.scaled_dot_product_attention(y, y * 2, y * 3))
    assert activations_by_stage(attention, (2, 6, 8), "fp16") == {"": 4 * 96 + 2 * 4 * 96 + 4 * 12}


@pytest.mark.parametrize("config", [dict(arch="test"), dict(arch="test", mixer="gated_conv"), dict(arch="test", with_cp=True)])
def test_as_much_as_a_real_forward_pass_keeps(config):
    model = HybridBackbone(**config).train()
    seen, kept = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}, []

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(torch.ones(2, 3, 65, 96))
    assert len(outputs) == 4
    assert sum(activations_by_stage(model, (2, 3, 65, 96)).values()) == sum(t.untyped_storage().nbytes() for t in kept) > 0


def test_attention_in_a_backbone_grows_with_its_tokens_only():
    small, large = (sum(activations_by_stage(HybridBackbone("test", "attention"), (1, 3, 64 * f, 64)).values()) for f in (1, 4))
    assert large == pytest.approx(4 * small, rel=0.01)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_keeps_its_argument_only(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.body = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))

        def forward(self, x):
            return checkpoint(self.body, self.before(x), use_reentrant=reentrant)

    assert activations_by_stage(Checkpointed(), (5, 8)) in ({"before": 160, "": 160}, {"before": 160, "body": 160})


@pytest.mark.parametrize("name", ["HybridBackbone", "VMamba", "Vim", "VRWKV"])
def test_with_cp_keeps_less_at_odd_sizes(name):
    sizes = {}
    for with_cp in (False, True):
        model = BACKBONES.build(dict(type=f"linescan.{name}", arch="test", with_cp=with_cp))
        sizes[with_cp] = activations_by_stage(model, (2, 3, 63, 97))
        assert model.training and next(model.parameters()).grad is None
    assert sum(sizes[True].values()) < 0.6 * sum(sizes[False].values())


def test_a_frozen_model_keeps_nothing():
    model = HybridBackbone("test").requires_grad_(False)
    assert activations_by_stage(model, (1, 3, 64, 64)) == {}
    whole, frozen = (activations_by_stage(HybridBackbone("test", frozen_stages=n), (1, 3, 64, 64)) for n in (-1, 1))
    assert "stem" in whole and "stem" not in frozen and sum(frozen.values()) < sum(whole.values())


def test_half_precision_keeps_half_and_the_cast_weights():
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
    kept = activations_by_stage(model, (5, 8), "bf16")
    # The cast input; the second weight is needed for the gradient of its argument, the first is not.
    assert kept == {"0": 2 * 5 * 8, "1": 2 * 5 * 32, "2": 2 * 5 * 32 + 2 * 32 * 4}
    fp32, fp16 = (sum(activations_by_stage(HybridBackbone("test", "attention"), (2, 3, 64, 96), d).values()) for d in ("fp32", "fp16"))
    assert fp16 < fp32


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [((), "fp32", ValueError, "input_shape"), (224, "fp32", TypeError, "input_shape"), ((1, 8), "fp64", ValueError, "dtype")],
)
def test_bad_input(shape, dtype, error, message):
    with pytest.raises(error, match=message):
        activations_by_stage(nn.Linear(8, 8), shape, dtype)


def test_one_image_with_a_pooled_norm():
    """PyTorch refuses to train it, a user may still ask what it keeps: the image, and a norm's argument, mean and deviation."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    assert activations_by_stage(model, (1, 3, 5, 7)) == {"0": 4 * 105, "2": 4 * (4 + 8)}
    assert activations_by_stage(model[2], (2, 4, 5, 7)) == {"": 4 * (280 + 8)}
