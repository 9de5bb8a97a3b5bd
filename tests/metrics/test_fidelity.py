"""FidelityMetric: the fidelity command's figures, whatever the order and batches that images come in."""

import math
import warnings
from dataclasses import asdict

import pytest
import torch
from torch_fidelity.defaults import DEFAULTS
from torch_fidelity.metric_prc import prc_features_to_metric
from torchvision.transforms.functional import to_pil_image

from lightning_vfs.core.errors import ConfigError, EvaluationError
from lightning_vfs.metrics import (
    FIGURES,
    METRICS,
    FewShotAccuracy,
    FidelityMetric,
    FidelityOptions,
    ImageFeatures,
    check_classes,
    check_enough,
)
from tests.simulated_gpu import simulated_gpu

pytestmark = pytest.mark.numeric

FEW = {"kid_subset_size": 4, "isc_splits": 2}
"""Options with which a handful of images is enough."""


def figure(metric):
    return metric.compute()["fid"].item()


def figures(metric):
    return {name: value.item() for name, value in metric.compute().items()}


def filled(name, generated, real, batch_size=1000, order=None, metrics=("fid",), **options):
    metric = FidelityMetric(ImageFeatures(name, metrics), options=FidelityOptions(**options))
    for images, is_real in ((generated, False), (real, True)):
        rows = torch.arange(len(images)) if order is None else order(len(images))
        for batch in rows.split(batch_size):
            metric.update(images[batch], real=is_real, index=batch)
    return metric


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("num", [40, 4])
def test_equals_the_fidelity_command_on_the_same_pngs(tiny, images, tmp_path, command, channels, num):
    generated, real = images(num, channels, seed=1), images(30, channels, seed=2)
    for folder, batch in (("generated", generated), ("real", real)):
        (tmp_path / folder).mkdir()
        for i, image in enumerate(batch):
            to_pil_image(image).save(tmp_path / folder / f"{i:04d}.png")
    # As the command is by default: less memory for precision and recall would be another computation.
    expected = command(tmp_path / "generated", tmp_path / "real", METRICS, tiny, save_cpu_ram=False, **FEW)
    assert list(expected) == [name for metric in METRICS for name in FIGURES[metric]]
    assert 0 < expected["precision"] != expected["recall"]
    assert figures(filled(tiny, generated, real, metrics=METRICS, **FEW)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("metric", "option", "value"),
    [
        ("kid", "kid_subsets", 7),
        ("kid", "kid_subset_size", 12),
        ("kid", "kid_kernel_poly_degree", 2),
        ("kid", "kid_kernel_poly_gamma", 0.5),
        ("kid", "kid_kernel_poly_coef0", 2.0),
        ("kid", "rng_seed", 1),
        ("isc", "isc_splits", 3),
        ("isc", "samples_shuffle", False),
        ("isc", "rng_seed", 1),
        ("prc", "prc_neighborhood", 1),
    ],
)
def test_options_do_what_they_do_in_the_command(tiny, images, command, metric, option, value):
    generated, real = images(40, seed=1), images(30, seed=2)
    usual = figures(filled(tiny, generated, real, metrics=[metric], **FEW))
    found = figures(filled(tiny, generated, real, metrics=[metric], **FEW | {option: value}))
    assert tuple(found) == FIGURES[metric]
    assert found == pytest.approx(command(generated, real, [metric], tiny, **FEW | {option: value}), rel=1e-6)
    assert found != pytest.approx(usual, rel=1e-4)


def test_large_samples_are_compared_in_batches(tiny, images):
    generated, real = images(40, seed=1), images(30, seed=2)
    expected = figures(filled(tiny, generated, real, metrics=["prc"]))
    assert figures(filled(tiny, generated, real, metrics=["prc"], prc_batch_size=7)) == pytest.approx(expected)


def test_more_images_than_memory_has_distances_for_have_the_same_figures(tiny, images, monkeypatch):
    generated, real = images(40, seed=1), images(30, seed=2)
    expected = figures(filled(tiny, generated, real, metrics=["prc"]))
    asked = []

    def noting(*features, **options):
        asked.append((options["save_cpu_ram"], options["prc_batch_size"]))
        return prc_features_to_metric(*features, **options)

    monkeypatch.setattr("lightning_vfs.metrics.fidelity.prc_features_to_metric", noting)
    monkeypatch.setattr("lightning_vfs.metrics.fidelity.PRC_DISTANCES", 200)
    assert figures(filled(tiny, generated, real, metrics=["prc"])) == expected
    assert asked == [(True, 5)]


def test_options_are_the_commands_by_default():
    options = asdict(FidelityOptions())
    assert options == {name: DEFAULTS[name] for name in options}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("kid_subsets", 0),
        ("kid_subset_size", 1),
        ("kid_kernel_poly_degree", 0),
        ("isc_splits", 0),
        ("prc_neighborhood", 0),
        ("prc_batch_size", 0),
        ("rng_seed", -1),
        ("rng_seed", 2**32),
    ],
)
def test_options_out_of_range_are_refused_by_name(option, value):
    with pytest.raises(ConfigError, match=f"{option} is {value}; it must be"):
        FidelityOptions(**{option: value})


def test_one_pass_of_the_extractor_gives_all_figures(tiny, images, monkeypatch):
    features = ImageFeatures(tiny, METRICS)
    passed, forward = [], features._extractor.forward
    monkeypatch.setattr(features._extractor, "forward", lambda batch: passed.append(len(batch)) or forward(batch))
    metric = FidelityMetric(features, options=FidelityOptions(**FEW))
    metric.update(images(20, seed=1), real=False, index=torch.arange(20))
    metric.update(images(10, seed=2), real=True, index=torch.arange(10))
    assert set(metric.compute()) == {name for names in FIGURES.values() for name in names}
    metric.per_class(torch.arange(20) % 2, torch.arange(10) % 2, [0, 1])
    assert passed == [20, 10]


def test_does_not_depend_on_order_batches_or_repetition(tiny, images):
    generated, real = images(40, seed=1), images(30, seed=2)
    expected = figures(filled(tiny, generated, real, metrics=METRICS, **FEW))
    for order in (lambda n: torch.arange(n).flip(0), lambda n: 7 * torch.arange(n) % n):  # 7 divides neither 40 nor 30
        shuffled = filled(tiny, generated, real, batch_size=6, order=order, metrics=METRICS, **FEW)
        shuffled.update(generated[:5], real=False, index=torch.arange(5))
        assert figures(shuffled) == pytest.approx(expected, rel=1e-6)


def test_an_empty_batch_changes_nothing(tiny, images):
    metric = filled(tiny, images(40, seed=1), images(30, seed=2))
    expected = figure(metric)
    metric.update(images(0), real=False, index=torch.empty(0, dtype=torch.int64))
    assert figure(metric) == expected


@pytest.mark.parametrize(("generated", "real"), [(1, 5), (5, 1), (0, 5)])
def test_needs_two_images_of_each_kind(tiny, images, generated, real):
    metric = filled(tiny, images(generated, seed=1), images(real, seed=2))
    with pytest.raises(EvaluationError, match=f"at least 2 .* {generated} generated and {real} real"):
        metric.compute()


def test_reset_can_keep_the_real_images(tiny, images):
    real, first, second = images(30, seed=2), images(20, seed=1), images(20, seed=3)
    metric = FidelityMetric(ImageFeatures(tiny), reset_real=False)
    metric.update(real, real=True, index=torch.arange(30))
    for generated in (first, second):
        metric.reset()
        metric.update(generated, real=False, index=torch.arange(20))
        assert figure(metric) == pytest.approx(figure(filled(tiny, generated, real)), rel=1e-12)
    metric = filled(tiny, first, real)
    metric.reset()
    assert len(metric.real_features()["6"]) == 0


def test_takes_features_for_images(tiny, images):
    generated, real = images(40, seed=1), images(30, seed=2)
    features = ImageFeatures(tiny)
    metric = FidelityMetric(features)
    metric.update(features(generated), real=False, index=torch.arange(40))
    metric.update(features(real), real=True, index=torch.arange(30))
    assert figure(metric) == figure(filled(tiny, generated, real))


def test_adds_no_weights_to_a_module_that_holds_it(tiny):
    module = torch.nn.Module()
    module.fid = FidelityMetric(ImageFeatures(tiny))
    assert list(module.parameters()) == []
    assert module.state_dict() == {}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_figures_are_nan_when_a_generated_feature_is_not_finite(tiny, images, value):
    # One subset of two images, so that KID does not meet the broken one by itself.
    metric = filled(tiny, images(39, seed=1), images(30, seed=2), metrics=METRICS, kid_subsets=1, kid_subset_size=2)
    broken = {layer: torch.full((1, dim), value) for layer, dim in metric.features.dims.items()}
    metric.update(broken, real=False, index=torch.tensor([39]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = figures(metric)
    assert set(found) == {"fid", "kid", "kid_std", "isc", "isc_std", "precision", "recall"}
    assert all(math.isnan(figure) for figure in found.values())


def test_inception_score_does_not_look_at_real_images(tiny, images):
    metric = filled(tiny, images(30, seed=1), images(0), metrics=["isc"])
    expected = figures(metric)
    metric.update({"logits": torch.full((1, 5), math.nan)}, real=True, index=torch.tensor([0]))
    assert figures(metric) == expected


@pytest.mark.parametrize(
    ("metric", "generated", "real", "message"),
    [
        ("fid", 1, 9, "FID needs at least 2 generated and 2 real images; {}there are 1 generated and 9 real. "
         "Take more images, or leave 'fid' out of the metrics."),
        ("fid", 9, 1, "FID needs at least 2 generated and 2 real images; {}there are 9 generated and 1 real. "
         "Take more images, or leave 'fid' out of the metrics."),
        ("kid", 1200, 999, "KID needs at least 1,000 generated and 1,000 real images (kid_subset_size is 1,000); "
         "{}there are 1,200 generated and 999 real. Take more images, set kid_subset_size to at most 999, or leave "
         "'kid' out of the metrics."),
        ("kid", 999, 1200, "KID needs at least 1,000 generated and 1,000 real images (kid_subset_size is 1,000); "
         "{}there are 999 generated and 1,200 real. Take more images, set kid_subset_size to at most 999, or leave "
         "'kid' out of the metrics."),
        ("kid", 1, 1200, "KID needs at least 1,000 generated and 1,000 real images (kid_subset_size is 1,000); "
         "{}there are 1 generated and 1,200 real. Take more images, or leave 'kid' out of the metrics."),
        ("isc", 9, 0, "ISC needs at least 10 generated images (isc_splits is 10); {}there are 9 generated. "
         "Take more images, set isc_splits to at most 9, or leave 'isc' out of the metrics."),
        ("prc", 3, 9, "PRC needs at least 4 generated and 4 real images (prc_neighborhood is 3); {}there are 3 "
         "generated and 9 real. Take more images, set prc_neighborhood to at most 2, or leave 'prc' out of the "
         "metrics."),
        ("prc", 9, 1, "PRC needs at least 4 generated and 4 real images (prc_neighborhood is 3); {}there are 9 "
         "generated and 1 real. Take more images, or leave 'prc' out of the metrics."),
    ],
)  # fmt: skip
def test_too_few_images_are_refused_with_what_is_needed(metric, generated, real, message):
    for where in (None, "split 'out'"):
        with pytest.raises(EvaluationError) as error:
            check_enough([metric], generated, real, where=where)
        assert str(error.value) == message.format(f"in {where} " if where else "")


def test_all_metrics_with_too_few_images_are_named():
    with pytest.raises(EvaluationError, match=r"^KID .*\nPRC .*$"):
        check_enough(METRICS, 10, 3, FidelityOptions(kid_subset_size=4))


def test_as_many_images_as_needed_are_enough(tiny, images):
    for metric, generated, real in (("fid", 2, 2), ("kid", 4, 4), ("isc", 2, 0), ("prc", 4, 4)):
        check_enough([metric], generated, real, FidelityOptions(**FEW))
        found = figures(filled(tiny, images(generated, seed=1), images(real, seed=2), metrics=[metric], **FEW))
        assert all(math.isfinite(value) for value in found.values())


def test_unknown_metrics_are_refused_before_any_image_is_counted():
    with pytest.raises(EvaluationError, match="no metric 'precision'; known: fid, kid, isc, prc"):
        check_enough(["precision"], 100, 100)


@pytest.mark.parametrize(("generated", "real", "low_rank"), [(6, 30, True), (30, 6, True), (7, 30, False)])
def test_notes_say_when_the_distance_is_of_rank_deficient_covariances(tiny, images, generated, real, low_rank):
    metric = filled(tiny, images(generated, seed=1), images(real, seed=2), metrics=("fid", "prc"))
    assert metric.notes() == {}
    metric.compute()
    images_and_features = f"{generated} generated and {real} real images, 6 features"
    note = f"exact low-rank form, for a rank-deficient covariance: {images_and_features}"
    assert metric.notes() == ({"fid": note} if low_rank else {})
    metric.reset()
    assert metric.notes() == {}


def test_figures_of_a_class_are_those_of_its_images_alone(tiny, images):
    generated, real = images(40, seed=1), images(30, seed=2)
    of_generated, of_real = torch.arange(40) % 3, torch.arange(30).flip(0) % 4
    metric = filled(tiny, generated, real, batch_size=7, order=lambda n: torch.arange(n).flip(0))
    found = metric.per_class(of_generated, of_real, [2, 0])
    assert list(found) == [2, 0]
    for label, class_figures in found.items():
        alone = filled(tiny, generated[of_generated == label], real[of_real == label])
        assert class_figures == pytest.approx(figures(alone), rel=1e-6)
    assert figures(metric) == pytest.approx(figures(filled(tiny, generated, real)), rel=1e-6)
    assert metric.per_class(of_generated, of_real, [2, 0]) == found


def test_labels_of_a_class_are_found_by_index(tiny, images):
    generated, real = images(20, seed=1), images(20, seed=2)
    metric = FidelityMetric(ImageFeatures(tiny))
    labels, kept = torch.arange(20) % 2, torch.arange(20) != 7
    metric.update(generated[kept], real=False, index=torch.arange(20)[kept])
    metric.update(real, real=True, index=torch.arange(20))
    alone = filled(tiny, generated[kept & (labels == 1)], real[labels == 1])
    assert metric.per_class(labels, labels, [1])[1] == pytest.approx(figures(alone), rel=1e-6)


def test_only_the_class_of_a_broken_image_is_nan(tiny, images):
    metric = filled(tiny, images(19, seed=1), images(20, seed=2))
    metric.update({"6": torch.full((1, 6), math.nan)}, real=False, index=torch.tensor([19]))
    found = metric.per_class(torch.arange(20) % 2, torch.arange(20) % 2, [0, 1])
    assert found[0]["fid"] > 0
    assert math.isnan(found[1]["fid"])


def test_classes_with_too_few_images_are_named():
    generated, real = torch.tensor([0, 0, 1, 1, 2, 3]), torch.tensor([0, 0, 1, 2, 2, 3, 3, 5, 5])
    check_classes(generated, real, [0])
    with pytest.raises(EvaluationError, match=r"2 generated and 2 real .* of class 1 \(2 generated, 1 real\)\. Take"):
        check_classes(generated, real, [0, 1])
    with pytest.raises(EvaluationError) as error:
        check_classes(generated, real, range(7), names="abcdefg")
    assert "class 'b' (2 generated, 1 real), 'c' (1 generated, 2 real), 'd' (1 generated, 2 real) and 3 more." in str(
        error.value
    )


def test_classes_with_too_few_images_have_no_figures(tiny, images):
    metric = filled(tiny, images(6, seed=1), images(6, seed=2))
    with pytest.raises(EvaluationError, match=r"too few of class 2 \(1 generated, 0 real\)"):
        metric.per_class(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([0, 0, 0, 1, 1, 1]), [0, 1, 2])


def test_figures_of_classes_are_those_of_fid_only(tiny, images):
    metric = filled(tiny, images(6, seed=1), images(6, seed=2), metrics=["prc"])
    with pytest.raises(EvaluationError, match=r"the metrics are prc: add 'fid'"):
        metric.per_class(torch.zeros(6), torch.zeros(6), [0])


@pytest.mark.parametrize(("float64", "dtype"), [(True, torch.float64), (False, torch.float32)])
def test_figures_are_where_the_metric_is(tiny, images, float64, dtype):
    """NCCL reduces tensors of the GPU alone; MPS, for one, has no float64."""
    with simulated_gpu(float64=float64):
        fidelity = FidelityMetric(ImageFeatures(tiny)).to("cuda")
        for real in (False, True):
            fidelity.update(images(4, seed=int(real)), real=real, index=torch.arange(4))
        labels = torch.arange(8) // 4
        accuracy = FewShotAccuracy(torch.eye(8), labels, way=2).to("cuda")
        accuracy.update(torch.eye(8, device="cuda"), labels, torch.arange(8))
        for figure in (fidelity.compute()["fid"], accuracy.compute()):
            assert (figure.device.type, figure.dtype) == ("cuda", dtype)
        assert accuracy.compute().item() == 1
