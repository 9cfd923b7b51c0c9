"""Samples that are tokens: their vocabulary, and the model that embeds them."""

import jax
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.models import build_backbone
from mhd_jax.models.norms import normalise
from tests.builders import simulate_in

rng = np.random.default_rng(0)
LABELS = np.arange(60) % 3
TOKENS = rng.integers(0, 20, (60, 5)) + 20 * LABELS[:, None]  # a class has words of its own


@pytest.mark.filterwarnings("error:.*taken for pixels")
def test_the_vocabulary_is_known(tmp_path):
    np.savez(tmp_path / "t.npz", images=TOKENS, labels=LABELS)
    for data in (
        mhd.data.arrays(TOKENS.astype(np.uint8), LABELS, tokens=True),
        mhd.data.load((TOKENS, LABELS), tokens=True),
        mhd.data.load(tmp_path / "t.npz", tokens=True),
        mhd.data.arrays({"t": TOKENS, "weight": TOKENS / 2}, LABELS, tokens=True),
    ):
        assert data.vocabulary_size == TOKENS.max() + 1
        assert jax.tree.leaves(data.inputs)[0].dtype == np.int32
        assert f"(tokens below {TOKENS.max() + 1})" in repr(data)
    more = mhd.data.arrays(TOKENS, LABELS, TOKENS[:3] + 7, LABELS[:3], tokens=True)
    assert more.vocabulary_size == max(TOKENS.max(), TOKENS[:3].max() + 7) + 1
    assert mhd.data.arrays(TOKENS, LABELS, tokens=True, vocabulary_size=99).vocabulary_size == 99


@pytest.mark.parametrize(
    ("inputs", "options", "sentence"),
    [
        (TOKENS / 2, {}, r"tokens=True is for integers, but samples hold float32 of shape \[5\]"),
        (TOKENS - 1, {}, "tokens must be numbers from 0, but they span -1 … 58; number them anew"),
        (TOKENS, {"vocabulary_size": 9}, r"from 0 … 8 \(vocabulary_size is 9\), but they span 0 …"),
        (
            TOKENS,
            {"vocabulary_size": 0},
            "vocabulary_size must be an integer and at least 1, not 0",
        ),
        (TOKENS, {"pixels": True}, "integers are either pixels or tokens"),
        (TOKENS, {"tokens": None}, "tokens must be True or False"),
        (TOKENS, {"tokens": False, "vocabulary_size": 99}, "give tokens=True, or leave it out"),
    ],
)
def test_what_are_no_tokens_is_refused(inputs, options, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.data.arrays(inputs, LABELS, **{"tokens": True} | options)


def test_models_embed_tokens_or_refuse_them():
    data = mhd.data.arrays(TOKENS, LABELS, tokens=True)
    with pytest.raises(mhd.ConfigError, match="mlp would take tokens for quantities; use bag_of_t"):
        mhd.make_clients(data, 2, "mlp")
    with pytest.raises(mhd.ConfigError, match=r"shape \[5\] and are not said to be tokens; give"):
        mhd.make_clients(mhd.data.arrays(TOKENS / 2, LABELS), 2, "bag_of_tokens")
    foreign = mhd.data.arrays(TOKENS + 1, LABELS, tokens=True, name="others")
    with pytest.raises(mhd.ConfigError, match=r"from 0 … 59 .*, but they span 1 … 60"):
        mhd.make_clients(data, 2, "bag_of_tokens", public=foreign)


def test_a_bag_of_tokens_is_the_mean_of_their_embeddings():
    model = build_backbone("bag_of_tokens", "none", (5,), 60)
    params = model.init(jax.random.key(0), TOKENS)
    of_tokens, dense = (params["params"][name] for name in ("Embed_0", "Dense_0"))
    mean = np.asarray(of_tokens["embedding"])[TOKENS].mean(axis=1)
    expected = normalise("none", False)(mean @ dense["kernel"] + dense["bias"])
    np.testing.assert_allclose(model.apply(params, TOKENS), expected, atol=1e-5)


@pytest.mark.parametrize("beyond", [60, -1])
def test_tokens_beyond_the_vocabulary_are_not_answered(beyond, tmp_path):
    clients = mhd.make_clients(
        mhd.data.arrays(TOKENS, LABELS, tokens=True), 2, "bag_of_tokens", partition="iid"
    )
    simulate_in(tmp_path, "complete", clients, "isolated", steps=1, batch_size=4)
    result = mhd.load(tmp_path)
    client, wrong = result.client(0), np.append(TOKENS, [[beyond] * 5], axis=0)
    for ask in (result.predict, client.prepared, client.apply, client.predict):
        assert len(ask(TOKENS)) and ask(TOKENS[:0]).size == 0
        with pytest.raises(mhd.ConfigError, match=r"from 0 … 59 \(vocabulary_size is 60\)"):
            ask(wrong)


@pytest.mark.slow
def test_clients_learn_from_tokens():
    data = mhd.data.arrays(TOKENS, LABELS, tokens=True)
    clients = mhd.make_clients(data, 2, "bag_of_tokens", partition="iid")
    result = mhd.simulate("complete", clients, "isolated", steps=60, batch_size=16)
    assert result.summary["beta_sh"]["main"] == 1
