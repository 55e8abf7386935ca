"""`divergence` beside the obvious NumPy; kernels are tested by tests/kernels/test_statistics.py."""

import ml_dtypes
import numpy as np
import pytest
from files import write_llama_file

import cyce


@pytest.fixture
def logits(rng):
    return (rng.standard_normal((400, 30)) * 3).astype(np.float32)


@pytest.fixture
def reference(rng, logits):
    return (logits + rng.standard_normal(logits.shape) * 0.3).astype(np.float16)


@pytest.fixture
def target(rng):
    return rng.integers(30, size=400)


def log_softmax(logits):
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def obvious(logits, reference, target, weight):
    """Statistics of positions that all count."""
    log_p, log_q = log_softmax(logits), log_softmax(reference)
    p, q, log_m = np.exp(log_p), np.exp(log_q), np.log((np.exp(log_p) + np.exp(log_q)) / 2)
    kl = (q * (log_q - log_p)).sum(axis=1)
    rows = np.arange(len(target))
    loss, reference_loss = -log_p[rows, target], -log_q[rows, target]
    change = p[rows, target] - q[rows, target]
    tops = [np.argsort(-x.astype(float), axis=1, kind="stable") for x in (logits, reference)]
    n = len(target)

    def mean(values):
        return np.average(values, weights=weight)

    def error(values):
        return np.sqrt(((weight * (values - mean(values))) ** 2).sum() * n / (n - 1)) / weight.sum()

    ratio = np.exp(mean(loss - reference_loss))
    return (
        {
            "n_positions": n,
            "kl": mean(kl),
            "kl_standard_error": error(kl),
            "max_kl": kl.max(),
            "reverse_kl": mean((p * (log_p - log_q)).sum(axis=1)),
            "js": mean((q * (log_q - log_m) + p * (log_p - log_m)).sum(axis=1) / 2),
            "agreement": {k: mean((tops[0][:, :k] == tops[1][:, :k]).all(axis=1)) for k in (1, 5, 10)},
            "perplexity": np.exp(mean(loss)),
            "perplexity_standard_error": np.exp(mean(loss)) * error(loss),
            "reference_perplexity": np.exp(mean(reference_loss)),
            "perplexity_ratio": ratio,
            "perplexity_ratio_standard_error": ratio * error(loss - reference_loss),
            "probability_change": mean(change),
            "probability_change_standard_error": error(change),
            "probability_change_rms": np.sqrt(mean(change**2)),
        },
        kl,
        change,
    )


def assert_is(result, expected, rel=1e-6):
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(value, rel=rel), name


@pytest.mark.parametrize("weighted", [False, True])
def test_beside_numpy(logits, reference, target, rng, weighted, monkeypatch):
    monkeypatch.setattr("cyce.evaluation.sources.PIECE_POSITIONS", 128)
    weight = rng.uniform(0.1, 2, 400) if weighted else None
    result = cyce.divergence(logits, reference, target, sample_weight=weight)
    expected, kl, change = obvious(logits, reference, target, np.ones(400) if weight is None else weight)
    assert_is(result, expected)
    if not weighted:
        for share in (0.01, 0.5, 0.9):
            exact = np.quantile(kl, share, method="inverted_cdf")
            assert result.kl_quantiles[share] == pytest.approx(exact, rel=2.0**-8 + 1e-6)
            exact = np.quantile(change, share, method="inverted_cdf")
            assert result.probability_change_quantiles[share] == pytest.approx(exact, rel=2.0**-8 + 1e-6)
        assert result.probability_change_quantiles[0] == pytest.approx(change.min(), rel=1e-6)
    without = cyce.divergence(logits, reference, sample_weight=weight)
    assert without.kl == result.kl
    assert without.perplexity is without.probability_change is without.probability_change_quantiles is None
    assert "perplexity" in str(result)
    assert "perplexity" not in str(without)
    assert without.to_dict()["kl"] == without.kl


def test_ignored_positions(logits, reference, target, rng):
    logits, reference = logits.copy(), reference.copy()
    ignored = rng.random(400) < 0.3
    expected = cyce.divergence(logits[~ignored], reference[~ignored], target[~ignored])
    logits[ignored], reference[ignored] = np.nan, np.inf
    result = cyce.divergence(logits, reference, np.where(ignored, -100, target))
    assert result.n_ignored == np.count_nonzero(ignored)
    assert result.nan_positions == 0
    assert result.kl == pytest.approx(expected.kl, rel=1e-12)
    assert result.max_kl == expected.max_kl
    by_weight = cyce.divergence(logits, reference, target, sample_weight=~ignored * 1.0)
    assert by_weight.kl == pytest.approx(expected.kl, rel=1e-12)
    logits[0] = np.nan
    result = cyce.divergence(logits, reference, np.where(ignored, -100, target) * 0)
    assert np.isnan(result.kl)
    assert result.nan_positions > 0


def test_images(logits, reference, target):
    expected = cyce.divergence(logits, reference, target)
    images = [x.reshape(4, 10, 10, 30).transpose(0, 3, 1, 2) for x in (logits, reference)]
    result = cyce.divergence(*images, target.reshape(4, 10, 10))
    assert_is(result, {name: getattr(expected, name) for name in ("kl", "js", "agreement")}, 1e-7)


def test_files(logits, reference, target, tmp_path, save_file):
    expected = cyce.divergence(logits, reference.astype(ml_dtypes.bfloat16), target)
    np.save(tmp_path / "a.npy", logits)
    np.save(tmp_path / "b.npy", reference.astype(ml_dtypes.bfloat16))
    result = cyce.divergence(
        tmp_path / "a.npy", tmp_path / "b.npy", target, dtype=np.dtype(ml_dtypes.bfloat16)
    )
    assert result.kl == expected.kl
    save_file({"logits": logits, "reference_logits": reference}, tmp_path / "c.safetensors")
    result = cyce.divergence(tmp_path / "c.safetensors", tmp_path / "c.safetensors", target)
    for name, array in (("d", logits), ("e", reference)):
        save_file({"logits": array, "target": target}, tmp_path / f"{name}.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in "dee"]
    assert cyce.divergence(*files).kl == result.kl
    assert result.kl == cyce.divergence(logits, reference, target).kl


def test_a_llama_file_as_reference(rng, tmp_path):
    n_context, n_vocabulary = 16, 50
    all_logits = rng.standard_normal((5, n_context, n_vocabulary)) * 2
    tokens = rng.integers(n_vocabulary, size=(5, n_context))
    kept = write_llama_file(tmp_path / "base.kld", all_logits, tokens, n_context)
    # A model whose vocabulary is padded, of other logits.
    model = kept + rng.standard_normal(kept.shape).astype(np.float32) * 0.1
    padded = np.hstack([model, np.zeros((len(model), 14), np.float32)])
    result = cyce.divergence(padded, tmp_path / "base.kld", n_classes=n_vocabulary)
    target = tokens[:, n_context // 2 + 1 :].ravel()
    expected, _, _ = obvious(model, kept, target, np.ones(len(target)))
    assert_is(result, expected, 1e-5)
    with pytest.raises(
        ValueError, match="has 50 classes, logits 64; if the others are padding, pass n_classes=50"
    ):
        cyce.divergence(padded, tmp_path / "base.kld")


def test_without_targets_all_positions_count(logits, reference):
    expected = cyce.divergence(logits, reference)
    assert cyce.divergence(logits, reference, ignore_index=0).kl == expected.kl
    assert cyce.divergence(np.zeros((3, 0)), np.zeros((3, 0))).n_positions == 3


def test_llama_files_of_two_texts(rng, tmp_path):
    for name in "ab":
        write_llama_file(tmp_path / name, rng.standard_normal((2, 8, 5)), rng.integers(5, size=(2, 8)), 8)
    with pytest.raises(ValueError, match="the files are not of the same text"):
        cyce.divergence(tmp_path / "a", tmp_path / "b")
    assert cyce.divergence(tmp_path / "a", tmp_path / "a").kl == 0


def test_the_same_twice(logits, target):
    result = cyce.divergence(logits, logits, target)
    assert result.kl == result.reverse_kl == result.js == result.max_kl == 0
    assert result.perplexity_ratio == 1
    assert result.agreement == {1: 1.0, 5: 1.0, 10: 1.0}


def test_nothing():
    result = cyce.divergence(np.zeros((0, 3)), np.zeros((0, 3)))
    assert result.n_positions == 0
    assert np.isnan(result.kl)
    assert np.isnan(result.max_kl)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ([[1.0, 2.0]], [[1.0, 2.0]] * 2),
            ValueError,
            r"must have the positions of logits.*\[1, 2\], got shape \[2",
        ),
        (([[1.0, 2.0]], [[1, 2]]), TypeError, "reference_logits: logits must be floating point"),
        (([[1.0, 2.0]], [[1.0, 2.0]], [2]), IndexError, r"Target 2 is out of bounds. target\[0\]"),
        (([[1.0, 2.0]], "none.npy"), FileNotFoundError, r"none\.npy"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        cyce.divergence(*arguments)
