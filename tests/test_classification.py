"""Classification in parts: batches, classifier, metric, averaged weights, pictures."""

import json

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.structures import BaseDataElement
from PIL import Image
from timm.data import Mixup
from torch import nn

import linescan.backbones  # noqa: F401  (registers the backbones)
from linescan.classification import (
    ClassificationPreprocessor,
    ImageClassifier,
    ImageFolderDataset,
    ModelEmaHook,
    PackClassInputs,
    TopKAccuracy,
    draw_sheet,
)

BACKBONE = dict(type="linescan.HybridBackbone", arch="test", out_indices=(3,))


def sample(label=None, **fields):
    made = BaseDataElement(metainfo=dict(img_path="a.png"), **fields)
    if label is not None:
        made.gt_label = torch.tensor(label)
    return made


# --- batches


def batch(count=4, classes=3, label=None):
    images = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()
    return dict(inputs=list(images), data_samples=[sample(i % classes if label is None else label) for i in range(count)])


def test_batches_are_stacked_and_left_alone_in_evaluation():
    preprocess = ClassificationPreprocessor(3, mixup=dict(mixup_alpha=1.0))
    out = preprocess(batch(5), training=False)
    assert out["inputs"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4] and out["targets"].tolist() == [0, 1, 2, 0, 1]
    assert preprocess(dict(inputs=torch.zeros(2, 3, 4, 4)))["targets"] is None


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_mixes_images_and_labels_alike(mode):
    """Constant images: the mixed value and the target give the same weight of the same partner."""
    preprocess = ClassificationPreprocessor(4, mixup=dict(mixup_alpha=0.8, mode=mode))
    out = preprocess(batch(4, classes=4), training=True)
    expected = out["targets"] @ torch.arange(4.0)
    assert torch.allclose(out["inputs"][:, 0, 0, 0], expected) and torch.allclose(
        out["inputs"].std(dim=(1, 2, 3)), torch.zeros(4), atol=1e-6
    )
    assert (out["targets"] > 0).sum(1).tolist() == [2, 2, 2, 2] and torch.allclose(out["targets"].sum(1), torch.ones(4))


def test_cutmix_mixes_by_area():
    out = ClassificationPreprocessor(4, mixup=dict(mixup_alpha=0.0, cutmix_alpha=1.0))(batch(4, classes=4), training=True)
    for i, (image, target) in enumerate(zip(out["inputs"], out["targets"], strict=True)):
        assert set(image.unique().tolist()) == {float(i), float((i + 2) % 4)}
        assert float((image[0] == i).float().mean()) == pytest.approx(float(target[i]))


def test_mixing_in_batch_mode_does_not_depend_on_the_number_of_processes():
    """Four images in one process, and the same four in two processes, which get every second one."""
    preprocess = ClassificationPreprocessor(4, mixup=dict(mixup_alpha=0.8, cutmix_alpha=1.0))
    for seed in range(4):
        whole, images = batch(4, classes=4), torch.rand(4, 3, 8, 8)
        outs = []
        for rows in ([0, 1, 2, 3], [0, 2], [1, 3]):
            np.random.seed(seed)
            part = dict(inputs=images[rows], data_samples=[whole["data_samples"][i] for i in rows])
            outs.append((rows, preprocess(part, training=True)))
        for rows, out in outs[1:]:
            assert torch.equal(out["inputs"], outs[0][1]["inputs"][rows]) and torch.equal(out["targets"], outs[0][1]["targets"][rows])


def test_mixing_is_timms():
    """The same weight and the same box as timm draws from the same random numbers."""
    images = torch.rand(2, 3, 8, 8)
    options = dict(mixup_alpha=0.8, cutmix_alpha=1.0)
    for seed in range(4):
        np.random.seed(seed)
        out = ClassificationPreprocessor(2, mixup=options)(dict(inputs=images, data_samples=[sample(0), sample(1)]), training=True)
        np.random.seed(seed)
        expected, targets = Mixup(**options, label_smoothing=0.0, num_classes=2)(images.clone(), torch.tensor([0, 1]))
        assert torch.equal(out["inputs"], expected) and torch.equal(out["targets"], targets)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (batch(3), ValueError, r"even size, got 3: .*drop_last"),
        (batch(2, label=3), ValueError, r"a\.png has label 3, but the model has num_classes=3"),
        (batch(2, label=-1), ValueError, r"label -1"),
        (dict(inputs=[torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)]), ValueError, r"one shape, got \(3, 4, 4\), \(3, 4, 5\)"),
        (dict(inputs=[torch.zeros(3, 4, 4, dtype=torch.uint8)]), TypeError, r"normalised float images .* got torch.uint8"),
    ],
)
def test_a_faulty_batch_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        ClassificationPreprocessor(3, mixup=dict(mixup_alpha=0.8))(data, training=True)


@pytest.mark.parametrize(
    ("mixup", "error", "message"),
    [
        (dict(alpha=0.8), TypeError, r"no option alpha; expected some of .*mixup_alpha"),
        (dict(mixup_alpha=1.0, label_smoothing=0.1), TypeError, "no option label_smoothing"),
        (dict(mixup_alpha=0.0), ValueError, "must be positive; for no mixing set mixup=None"),
        (dict(mixup_alpha=1.0, mode="half"), ValueError, "expected batch, pair or elem, got 'half'"),
    ],
)
def test_faulty_mixing_is_refused(mixup, error, message):
    with pytest.raises(error, match=message):
        ClassificationPreprocessor(3, mixup=mixup)


# --- classifier


def test_logits_loss_and_prediction():
    model = MODELS.build(dict(type="ImageClassifier", backbone=BACKBONE, num_classes=5, label_smoothing=0.1, head_norm=True))
    model.init_weights()
    assert float(model.head.weight.detach().std()) == pytest.approx(0.02, rel=0.2) and not model.head.bias.any()
    model.eval().requires_grad_(False)
    nn.init.normal_(model.head.weight)
    images, labels = torch.randn(3, 3, 33, 47), torch.tensor([0, 4, 2])
    logits = model(images)
    pooled = model.backbone(images)[-1].flatten(2).mean(2)
    normed = (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(logits, normed @ model.head.weight.T, atol=1e-5)

    onehot = torch.eye(5)[labels]
    expected = -((0.9 * onehot + 0.1 / 5) * logits.log_softmax(1)).sum(1).mean()
    assert model(images, targets=labels, mode="loss")["loss"] == pytest.approx(float(expected), rel=1e-5)
    # timm smooths before it mixes, we after it: the same.
    mixed = 0.3 * onehot + 0.7 * onehot.flip(0)
    smooth = Mixup(num_classes=5, label_smoothing=0.1)
    smoothed = 0.9 * mixed + smooth.label_smoothing / 5
    expected = -(smoothed * logits.log_softmax(1)).sum(1).mean()
    assert model(images, targets=mixed, mode="loss")["loss"] == pytest.approx(float(expected), rel=1e-5)

    samples = model(images, [sample(int(label)) for label in labels], mode="predict")
    assert [int(s.pred_label) for s in samples] == logits.argmax(1).tolist()
    assert torch.allclose(torch.stack([s.pred_score for s in samples]), logits.softmax(1)) and int(samples[1].gt_label) == 4
    assert len(model(images, mode="predict")) == 3


@pytest.mark.parametrize("backbone", [dict(type="linescan.Vim", arch="test"), dict(type="linescan.VRWKV6", arch="test_class_token")])
def test_the_class_token_can_be_classified(backbone):
    """The logits are the head's on the one token that is no patch."""
    model = ImageClassifier(backbone, 3, pool="class_token").eval().requires_grad_(False)
    images = torch.randn(2, 3, 48, 64)
    levels, grid = model.backbone.level_tokens(images)
    middle = grid[0] * grid[1] // 2 if "Vim" in backbone["type"] else -1
    assert torch.allclose(model(images), model.head(levels[-1][:, middle].float()), atol=1e-6)
    token, model.pool = model(images), "mean"
    assert not torch.allclose(model(images), token)


def test_a_class_token_has_to_be_there():
    model = ImageClassifier(dict(type="linescan.VRWKV6", arch="test"), 3, pool="class_token")
    with pytest.raises(ValueError, match="expected one class token, VRWKV6 has 0"):
        model(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="HybridBackbone has no class token"):
        ImageClassifier(BACKBONE, 3, pool="class_token")


def test_the_loss_is_float32_in_any_precision_and_reaches_every_parameter():
    model = ImageClassifier(BACKBONE, 3, data_preprocessor=dict(mixup=dict(mixup_alpha=0.8)))
    data = model.data_preprocessor(dict(inputs=torch.randn(2, 3, 32, 32), data_samples=[sample(0), sample(2)]), training=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**data, mode="loss")["loss"]
    assert loss.dtype == torch.float32
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    half = model.bfloat16()(data["inputs"].bfloat16(), targets=torch.tensor([0, 2]), mode="loss")["loss"]
    assert half.dtype == torch.float32 and half.isfinite()


def test_dropout_acts_in_training_only():
    model = ImageClassifier(BACKBONE, 3, dropout=0.5)
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_classes=1), "num_classes must be an int >= 2, got 1"),
        (dict(label_smoothing=1.0), r"label_smoothing must lie in \[0, 1\), got 1.0"),
        (dict(dropout=-0.1), "dropout must lie in"),
        (dict(pool="max"), "pool: expected mean or class_token, got 'max'"),
        (dict(backbone=dict(type="BaseDataPreprocessor")), "BaseDataPreprocessor has no out_channels"),
    ],
)
def test_faulty_arguments_of_the_classifier(options, message):
    with pytest.raises(ValueError, match=message):
        ImageClassifier(**{"backbone": BACKBONE, "num_classes": 3, **options})


def test_a_loss_without_labels_and_an_unknown_mode_are_refused():
    model = ImageClassifier(BACKBONE, 3)
    with pytest.raises(ValueError, match="targets: a loss needs them"):
        model(torch.zeros(1, 3, 32, 32), mode="loss")
    with pytest.raises(ValueError, match="mode: expected tensor, loss or predict, got 'train'"):
        model(torch.zeros(1, 3, 32, 32), mode="train")


# --- metric


def scored(label, scores, name):
    return dict(gt_label=torch.tensor(label), pred_score=torch.tensor(scores), name=name)


def test_accuracy_counts_and_writes_the_predictions(tmp_path):
    metric = TopKAccuracy(topk=(1, 2), output_dir=tmp_path / "out")
    metric.dataset_meta = dict(classes=("a", "b", "c"))
    rows = [
        scored(0, [0.7, 0.2, 0.1], "x"),
        scored(2, [0.1, 0.5, 0.4], "y"),
        scored(0, [0.1, 0.5, 0.4], "z"),
        scored(1, [0.1, 0.8, 0.1], "w"),
    ]
    metric.process({}, rows)
    assert metric.evaluate(4) == {"accuracy/top1": 50.0, "accuracy/top2": 75.0}
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert written["classes"] == ["a", "b", "c"] and len(written["predictions"]) == 4
    assert written["predictions"][1] == dict(image="y", label=2, predicted=[1, 2], scores=[0.5, 0.4])


def test_faulty_k():
    for topk in ((), (0,), ("1",)):
        with pytest.raises(ValueError, match="topk must be positive ints"):
            TopKAccuracy(topk=topk)
    with pytest.raises(ValueError, match=r"topk=\(1, 5\), but the model has 3 classes"):
        TopKAccuracy().process({}, [scored(0, [0.2, 0.3, 0.5], "x")])


# --- averaged weights


class FakeRunner:
    """What the hook asks a runner for."""

    def __init__(self, steps_every=1):
        self.model, self.iter, self._resume, self.steps_every = nn.BatchNorm1d(1), 0, False, steps_every
        self.optim_wrapper = self

    def should_update(self):
        return (self.iter + 1) % self.steps_every == 0

    def train_to(self, hook, value):
        with torch.no_grad():
            self.model.weight.fill_(value)
        hook.after_train_iter(self, 0)
        self.iter += 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(decay=0.5), [1, 1.5, 2.25, 3.125]),
        (dict(decay=0.0), [1, 2, 3, 4]),
        (dict(decay=0.5, begin=2), [1, 2, 3, 3.5]),
        # d_n = min(.9, 1 - n^-1) from the second step: the mean of all weights since then.
        (dict(decay=0.9, warmup=True, warmup_power=1.0), [1, 1.5, 2.0, 2.5]),
    ],
)
def test_the_average_follows_its_formula(options, expected):
    runner, hook = FakeRunner(), ModelEmaHook(**options)
    hook.before_train(runner)
    seen = []
    for value in (1.0, 2.0, 3.0, 4.0):
        runner.train_to(hook, value)
        seen.append(hook.ema.module.weight.item())
    assert seen == pytest.approx(expected)


def test_the_average_counts_optimizer_steps():
    runner, hook = FakeRunner(steps_every=2), ModelEmaHook(decay=0.5)
    hook.before_train(runner)
    for value in (1.0, 2.0, 3.0, 4.0):
        runner.train_to(hook, value)
    assert hook.updates == 2 and hook.ema.module.weight.item() == 0.5 * 2 + 0.5 * 4


def test_validation_sees_the_average_and_training_goes_on_with_its_own_tensors():
    runner, hook = FakeRunner(), ModelEmaHook(decay=0.5)
    hook.before_train(runner)
    runner.train_to(hook, 1.0), runner.train_to(hook, 3.0)
    address = runner.model.weight.data_ptr()
    hook.before_val_epoch(runner)
    assert runner.model.weight.item() == 2.0
    hook.after_val_epoch(runner)
    assert (runner.model.weight.item(), hook.ema.module.weight.item()) == (3.0, 2.0) and runner.model.weight.data_ptr() == address


@pytest.mark.parametrize("options", [dict(decay=1.0), dict(warmup_power=0.0), dict(warmup_gamma=-1.0), dict(begin=-1)])
def test_faulty_arguments_of_the_average(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ModelEmaHook(**options)


# --- pictures


def test_the_sheet_marks_right_and_wrong():
    images = [Image.new("RGB", (50, 20), (0, 0, 255)), Image.new("RGB", (300, 100), (0, 0, 255))]
    sheet = draw_sheet(images, ["cat", "dog"], {"model": ["cat", "cat"]}, columns=2, side=64)
    colors = {tuple(c) for c in sheet.reshape(-1, 3).tolist()}
    assert {(30, 120, 50), (190, 40, 30), (0, 0, 255)} <= colors
    assert (sheet == (0, 0, 255)).all(-1).sum() == 50 * 20 + 64 * 21
    with pytest.raises(ValueError, match=r"got 2 images and \{'truths': 2, 'model': 1\}"):
        draw_sheet(images, ["cat", "dog"], {"model": ["cat"]})


def test_everything_is_found_by_name_in_mmengines_scope():
    init_default_scope("mmengine")
    packed = PackClassInputs()(dict(inputs=torch.zeros(3, 2, 2), img_path="a.png", gt_label=1))
    assert pseudo_collate([packed, packed])["data_samples"][1].gt_label == 1
    assert MODELS.get("ImageClassifier") is ImageClassifier and DATASETS.get("ImageFolderDataset") is ImageFolderDataset
