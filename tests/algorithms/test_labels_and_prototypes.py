"""What IDKD's labels and FedProto's prototypes are, who gets them, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mhd_jax as mhd
from mhd_jax.core.types import Presence
from mhd_jax.engine.prepare import prepare
from tests.builders import (
    NUM_CLASSES,
    Linear,
    assert_trees_close,
    assert_trees_equal,
    public_outputs,
    short,
    softmax,
    take_steps,
    tiny_batch,
    tiny_clients,
    tiny_dataset,
    with_params,
)

K = 4
RING = jnp.asarray(np.roll(np.eye(K), 1, axis=0) + np.roll(np.eye(K), -1, axis=0), jnp.float32)
MOMENTUM = mhd.optim.SGD(0.1, schedule="constant").build(10)
ROWS = [np.array([0, 1, 2, 3, 4]), np.array([5, 6, 0, 1, 7]), np.array([8, 8, 2, 0, 9])]
SETTINGS = {"batch_size": 4, "public_batch_size": 5, "eval_every": 100}


def clients(**kwargs):
    return tiny_clients(K, optimizer=MOMENTUM, public_fraction=0.3, **kwargs)


def batches(who, presence=None):
    """Steps that draw ten public samples, one of them twice in a step."""
    everything = who.data.inputs[who.public]
    return [
        tiny_batch(K, seed=step).replace(
            public_inputs=jnp.asarray(everything[rows]),
            public_indices=jnp.asarray(rows, jnp.int32),
            presence=presence,
        )
        for step, rows in enumerate(ROWS)
    ]


def unlike(state):
    """The state with clients that differ, and are sure of what they predict."""
    noise = np.random.default_rng(0)
    return with_params(state, lambda a: a + noise.normal(size=a.shape).astype(np.float32))


def steps_of(algorithm, who=None, presence=None, graph=RING):
    who = who or clients()
    seen = batches(who, presence)
    start = unlike(algorithm.init(jax.random.key(0), who, seen[0]))
    states, metrics = take_steps(algorithm, who, graph, seen, start)
    return states, metrics, seen


def test_idkd_is_gossip_until_it_starts():
    gossip, _, _ = steps_of(mhd.algorithms.qg_dsgd())
    late, metrics, _ = steps_of(mhd.algorithms.idkd(start_step=2, threshold=0.0))
    for one, other in zip(late[:3], gossip[:3], strict=True):
        assert_trees_equal(
            [one.groups[0].params, one.groups[0].opt_state],
            [other.groups[0].params, other.groups[0].opt_state],
        )
    np.testing.assert_array_equal(
        [m["labelled"] for m in metrics], np.repeat([[0], [0], [1]], K, 1)
    )
    with pytest.raises(AssertionError):
        assert_trees_close(late[3].groups[0].params, gossip[3].groups[0].params, rtol=1e-3)


def test_idkd_without_a_label_is_gossip():
    """Nobody is surer than 1; from the first step on, private and public samples make one pass."""
    gossip, _, _ = steps_of(mhd.algorithms.qg_dsgd())
    silent, metrics, _ = steps_of(mhd.algorithms.idkd(start_step=0, threshold=1.0))
    for one, other in zip(silent, gossip, strict=True):
        assert_trees_close(one.groups[0].params, other.groups[0].params, rtol=1e-5, atol=1e-6)
    assert not any(m["messages"]["labels"].any() for m in metrics)
    assert silent[-1].extra["asked"][:, :10].all() and not silent[-1].extra["labels"].any()


def test_idkd_keeps_what_other_optimizers_remember():
    """Adam's quasi-global moments stand beside the labels."""
    who = tiny_clients(K, optimizer=optax.adam(0.01), public_fraction=0.3)
    late, _, _ = steps_of(mhd.algorithms.idkd(start_step=1, threshold=0.0), who)
    gossip, _, _ = steps_of(mhd.algorithms.qg_dsgd(), who)
    assert {"mixed", "buffer", "second", "labels"} <= late[-1].extra.keys()
    assert_trees_equal(late[1].extra["buffer"], gossip[1].extra["buffer"])
    assert late[-1].extra["labels"].any()


def test_labels_are_those_of_the_models_of_the_first_step():
    """Though later ones draw the samples; and a label crosses each edge once."""
    states, metrics, seen = steps_of(mhd.algorithms.idkd(start_step=0, threshold=0.0))
    near = np.asarray(RING) + np.eye(K)
    for batch in seen:
        said = softmax(public_outputs(states[0], batch).logits[:, :, 0])
        expected = np.einsum("ij,jpc->ipc", near / 3, said)
        stored = states[-1].extra["labels"][:, batch.public_indices]
        np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-6)
    counts = [np.asarray(m["messages"]["labels"]) for m in metrics]
    np.testing.assert_array_equal(counts, np.array([5, 3, 2])[:, None, None] * np.asarray(RING))


def test_who_is_away_asks_when_it_is_back():
    away = Presence(*[jnp.arange(K) != 2] * 2)
    graph = RING.at[2].set(0).at[:, 2].set(0)
    algorithm = mhd.algorithms.idkd(start_step=0, threshold=0.0, mixing="metropolis_hastings")
    states, metrics, _ = steps_of(algorithm, presence=away, graph=graph)
    asked, labels = (np.asarray(states[-1].extra[name]) for name in ("asked", "labels"))
    np.testing.assert_array_equal(asked[:, :10].all(axis=1), [True, True, False, True])
    assert not asked[2].any() and not labels[2].any() and labels[[0, 1, 3], :10].any(axis=2).all()
    assert not metrics[0]["messages"]["labels"][2].any()
    (first, *_) = batches(clients(), Presence(*[jnp.ones(K, bool)] * 2))
    (_, back), (told,) = take_steps(algorithm, None, RING, [first], states[-1])
    np.testing.assert_array_equal(np.asarray(back.extra["asked"])[2, :10], np.arange(10) < 5)
    np.testing.assert_array_equal(
        told["messages"]["labels"], 5 * np.asarray(RING.at[jnp.array([0, 1, 3])].set(0))
    )


def test_liars_send_false_labels_and_keep_their_own():
    """Client 1 says class 0 of every sample, client 3 nothing that is a number."""
    liars = clients(adversaries={1: "constant", 3: "nan"})
    algorithm = mhd.algorithms.idkd(start_step=0, threshold=0.0)
    (first, second, *_), metrics, (batch, *_) = steps_of(algorithm, liars)
    np.testing.assert_array_equal(
        metrics[0]["messages"]["labels"], 5 * np.asarray(RING) * np.array([1, 1, 1, 0])
    )
    said = softmax(public_outputs(first, batch).logits[:, :, 0])
    stored = np.asarray(second.extra["labels"][:, batch.public_indices])
    false = np.eye(NUM_CLASSES)[[0] * 5]
    np.testing.assert_allclose(stored[0], (said[0] + false) / 2, atol=1e-6)
    np.testing.assert_allclose(stored[1], said[:3].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(stored[3], (said[0] + said[2] + said[3]) / 3, atol=1e-6)


@pytest.mark.slow
def test_who_replays_remembers_alike_in_company():
    """Of two joined runs one may ask in a step and the other not."""
    data = tiny_dataset(90)
    who = [
        mhd.make_clients(
            data,
            K,
            Linear(),
            partition="iid",
            public_fraction=0.1,
            seed=seed,
            adversaries={3: "replay"},
        )
        for seed in (0, 1)
    ]
    algorithm = mhd.algorithms.idkd(start_step=0, threshold=0.0, mixing="metropolis_hastings")
    how = {"batch_size": 4, "public_batch_size": 4, "steps": 9, "eval_every": 9}
    how |= {"faults": mhd.Faults(offline=0.5, offline_steps=3)}
    found = mhd.simulate_seeds(["complete"] * 2, who, algorithm, seeds=[3, 20], **how)
    for own, seed, joined in zip(who, (3, 20), found, strict=True):
        alone = mhd.simulate("complete", own, algorithm, seed=seed, **how)
        one, other = (result.state.extra["adversaries"].earlier for result in (alone, joined))
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)


@pytest.mark.parametrize("choice", short(["mean", "most_samples"], "mean"))
def test_every_label_is_counted_in_bytes(choice):
    """14 public samples, drawn 5 at a time, so that batches may hold one twice; 8 edges."""
    who = clients()
    algorithm = mhd.algorithms.idkd(start_step=1, threshold=0.0, label_choice=choice)
    result = mhd.simulate("ring", who, algorithm, steps=9, progress=False, **SETTINGS)
    sent = dict(result.summary["communication"]["by_type"])
    model = 4 * sum(a[0].size for a in jax.tree.leaves(result.state.groups[0].params))
    labels = 8 * who.num_public
    expected = {"weights": 9 * 8 * model, "soft labels": labels * NUM_CLASSES * 4}
    expected |= {"indices": labels * 4}
    assert sent == expected | ({"private samples": labels * 4} if choice != "mean" else {})


# FedProto.


def test_prototypes_without_neighbours_are_the_own_class_means():
    algorithm = mhd.algorithms.fedproto(local_steps=1)
    (first, second, *_), metrics, (batch, *_) = steps_of(algorithm, graph=jnp.zeros((K, K)))
    kernel = np.asarray(first.groups[0].params["backbone"]["Dense_0"]["kernel"])
    features = np.einsum("kbf,kfd->kbd", np.asarray(batch.inputs), kernel)
    for i in range(K):
        for c in range(NUM_CLASSES):
            has = (np.asarray(batch.labels[i]) == c) & (np.asarray(batch.mask[i]) > 0)
            mean = features[i, has].mean(axis=0) if has.any() else np.zeros(5)
            np.testing.assert_allclose(second.extra["prototypes"][i, c], mean, rtol=1e-4, atol=1e-5)
            assert second.extra["known"][i, c] == has.any()
    assert not any(m["messages"]["prototypes"].any() for m in metrics)


def test_a_class_keeps_its_prototype_until_it_is_drawn_again():
    algorithm, who = mhd.algorithms.fedproto(local_steps=1), clients()
    both, none = tiny_batch(K), tiny_batch(K, seed=1)
    both = both.replace(labels=jnp.asarray(np.tile([0, 1, 0, 1, 2, 2], (K, 1))))
    none = none.replace(labels=jnp.zeros_like(none.labels))
    (_, one, two), metrics = take_steps(algorithm, who, RING, [both, none])
    before, after = (np.asarray(state.extra["prototypes"]) for state in (one, two))
    np.testing.assert_array_equal(after[:, 1:], before[:, 1:])
    assert (abs(after[:, 0] - before[:, 0]).max(axis=1) > 1e-3).all()
    counts = [np.asarray(m["messages"]["prototypes"]) for m in metrics]
    np.testing.assert_array_equal(counts, np.array([3, 1])[:, None, None] * np.asarray(RING))


def test_samples_that_are_no_numbers_reach_no_prototype():
    algorithm, who = mhd.algorithms.fedproto(local_steps=1), clients()
    batch = tiny_batch(K)
    broken = batch.replace(inputs=batch.inputs.at[1].set(jnp.nan))
    (_, after), (told,) = take_steps(algorithm, who, RING, [broken])
    (_, without), _ = take_steps(algorithm, who, RING.at[:, 1].set(0), [batch])
    assert np.isfinite(after.extra["prototypes"]).all()
    for i in (0, 2, 3):
        assert_trees_equal(after.extra["prototypes"][i], without.extra["prototypes"][i])
    assert not told["messages"]["prototypes"][:, 1].any()


@pytest.mark.parametrize("weighting", ["samples", "clients"])
def test_every_class_mean_is_counted_in_bytes(weighting):
    """Each client has one class, and client 3 no labels; D = 5, two rounds."""
    partition = lambda labels, *_: np.where(np.arange(len(labels)) < 30, labels, 3)
    who = tiny_clients(K, partition=partition, objectives={3: "unlabelled"})
    algorithm = mhd.algorithms.fedproto(local_steps=3, weighting=weighting)
    result = mhd.simulate("ring", who, algorithm, steps=7, progress=False, **SETTINGS)
    means = 2 * 3 * 2  # rounds, clients that have a class, their neighbours
    expected = {"prototypes": means * 5 * 4, "classes": means * 4}
    expected |= {"samples": means * 4} if weighting == "samples" else {}
    assert result.summary["communication"]["by_type"] == expected


def test_prototypes_join_unlike_architectures_of_one_width():
    class Other(Linear):
        """Another module with embeddings of the same width."""

    mixed = tiny_clients(K, groups=[(Linear(5), (0, 2)), (Other(5), (1, 3))])
    states, metrics = take_steps(
        mhd.algorithms.fedproto(local_steps=1), mixed, RING, [tiny_batch(K)] * 3
    )
    assert len(states[-1].groups) == 2 and (metrics[-1]["prototype_loss"] > 0).all()
    apart = tiny_clients(K, groups=[(Linear(5), (0, 2)), (Linear(3), (1, 3))])
    with pytest.raises(
        mhd.ConfigError, match=r"fedproto compares .* clients 0, 2: 5; clients 1, 3: 3"
    ):
        prepare("ring", apart, "fedproto")


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: mhd.algorithms.idkd(start_step=-1), "start_step must be at least 0"),
        (lambda: mhd.algorithms.idkd(threshold=1.1), r"threshold must be in \[0, 1\], not 1.1"),
        (lambda: mhd.algorithms.idkd(temperature=0.0), "temperature must be positive"),
        (
            lambda: mhd.algorithms.idkd(label_choice="best"),
            "label_choice must be one of mean, most",
        ),
        (lambda: mhd.algorithms.idkd(averaging_rate=0.0), "averaging_rate must be in"),
        (lambda: mhd.algorithms.fedproto(lambda_p=-1.0), "lambda_p must be at least 0"),
        (lambda: mhd.algorithms.fedproto(local_steps=0), "local_steps must be at least 1"),
        (lambda: mhd.algorithms.fedproto(weighting="all"), "weighting must be one of samples, cl"),
    ],
)
def test_bad_hyperparameters_are_refused(build, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        build()


def test_clients_with_a_pretext_task_are_refused():
    some = mhd.make_clients("digits", 3, "cnn", objectives={1: "rotation"})
    with pytest.raises(mhd.ConfigError, match="client 1 has the objective rotation; make it"):
        prepare("ring", some, "fedproto")
