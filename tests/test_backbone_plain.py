"""What plain backbones share: position embeddings at any size, also in an exported graph, and the steps that an adapter takes."""

import pytest
import torch

from linescan.backbones import BACKBONES
from linescan.backbones.layers import to_map, to_tokens
from linescan.backbones.scans import resize_pos_embed

every_plain = pytest.mark.parametrize("name", ["vrwkv:test", "vrwkv6:test", "vim:test", "timm:test"])


@every_plain
def test_one_exported_graph_for_all_sizes(name):
    """Also for the size that the position embedding was made for: the graph must not depend on whether the two agree."""
    model = BACKBONES.build(BACKBONES.named_config(name)).eval()
    rows, columns = (16 * torch.export.Dim(axis, min=2, max=256) for axis in ("rows", "columns"))
    x = torch.randn(1, 3, 64, 64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({2: rows, 3: columns},), strict=False).module()
    for shape in ((1, 3, 64, 64), (1, 3, 96, 64), (1, 3, 80, 48)):
        x = torch.randn(*shape)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(exported(x), model(x), strict=True))


def test_resizing_to_the_same_grid_changes_nothing():
    embed = torch.randn(1, 8, 5, 7)
    assert resize_pos_embed(embed, (5, 7)) is embed
    assert torch.equal(torch.nn.functional.interpolate(embed, size=(5, 7), mode="bicubic", align_corners=False), embed)


@every_plain
def test_the_steps_are_the_forward_pass(name):
    model = BACKBONES.build(BACKBONES.named_config(name)).eval()
    x = torch.randn(2, 3, 50, 33)
    tokens, grid = model.embed(x)
    assert grid == (4, 3)
    for i in range(len(model.layers)):
        tokens = model.run_layer(i, tokens, grid)
    before, patches, after = model.split_tokens(tokens, grid)
    assert patches.shape == (2, 12, model.dim)
    assert torch.equal(model.join_tokens(before, patches, after), tokens)
    assert torch.equal(model.to_map(model.final(tokens), grid), model(x)[-1])


@pytest.mark.parametrize("batch", [1, 2])
def test_a_map_of_tokens_has_a_right_gradient_through_batch_norm(batch):
    """Reshaped transposed tokens have strides, for one image, with which PyTorch 2.11's CPU batch norm is 129 % wrong in its gradient."""
    tokens, weights = torch.randn(batch, 12, 8, dtype=torch.float64), torch.randn(batch, 8, 3, 4, dtype=torch.float64)
    gradients = []
    for as_map in (lambda x: to_map(x, (3, 4)), lambda x: to_map(x, (3, 4)).contiguous()):
        x = tokens.clone().requires_grad_()
        (torch.nn.BatchNorm2d(8).double()(as_map(x)) * weights).sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-12)


def test_tokens_are_a_view_of_a_map():
    tokens = torch.randn(1, 12, 8)
    assert to_tokens(to_map(tokens, (3, 4))).data_ptr() == tokens.data_ptr()
    assert torch.equal(to_map(tokens, (3, 4)), tokens.transpose(1, 2).reshape(1, 8, 3, 4))
