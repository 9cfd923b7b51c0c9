"""MHD's loss and gradient against NumPy computations written from the equations alone."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax import exchange
from mhd_jax.clients import ClientGroup
from mhd_jax.core.client_axis import Execution, under
from mhd_jax.core.random import Purpose
from mhd_jax.training import groups
from tests.builders import (
    NUM_CLASSES,
    Dropping,
    Linear,
    assert_trees_close,
    dropped,
    of_client,
    short,
    softmax,
    take_steps,
    tiny_batch,
    tiny_clients,
)

K = 4
GRAPH = np.array([[0, 1, 1, 0], [1, 0, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], np.float32)


def cross_entropy(z, target):
    return -(target * np.log(softmax(z))).sum(axis=-1)


def outputs_of(params, x, factors=1.0):
    """Embedding [N, D] and logits [N, H, C] of one client, sample by sample and head by head.

    `factors` of the embedding are dropout's, in training mode.
    """
    embedding = factors * (x @ params["backbone"]["Dense_0"]["kernel"])
    kernel, bias = params["heads"]["kernel"], params["heads"]["bias"]
    return embedding, np.stack([embedding @ k + b for k, b in zip(kernel, bias, strict=True)], 1)


def as_it_arrives(values, compression):
    """One sample's numbers [C] after their journey, by the definition of each compression."""
    if compression == "float16":
        return values.astype(np.float16).astype(np.float64)
    if compression == "int8":
        step = np.abs(values).max() / 127
        return np.rint(values / step) * step
    if compression.startswith("top_"):
        count = int(compression[4:])
        p = softmax(values)
        best = np.argsort(p)[-count:]
        kept = np.full(len(p), (1 - p[best].sum()) / (len(p) - count))
        kept[best] = p[best]
        return np.log(kept)
    return values


def spread_out(probabilities, known):
    """Probabilities over the classes that a client knows as ones over all."""
    whole = np.zeros(NUM_CLASSES)
    whole[known] = probabilities
    return whole


def densities_of(params, embedding):
    """d [N, H] of one client."""
    return embedding @ params["density"]["kernel"].T + params["density"]["bias"]


def as_it_is_read(density, settings, most=np.inf):
    """d [P, H] of one sender: clipped, divided by its mean over the samples, capped."""
    ratio = np.exp(np.clip(density, -settings["density_clip"], settings["density_clip"]))
    if settings["density_divides"]:
        ratio /= np.maximum(ratio.mean(axis=0), 1)
    return np.log(np.minimum(ratio, most))


def known_by(i, params, xs, neighbours, settings):
    """c exp d and c of client j's head, as client i takes them: functions of (j, rank)."""

    def ratios(j, rank):
        density = densities_of(params[j], outputs_of(params[j], xs)[0])
        if j != i:
            heads = max(settings["num_aux_heads"], 1)
            coded = [as_it_arrives(d, settings["compression"]) for d in density[:, :heads]]
            density = np.stack(coded)
        return np.exp(as_it_is_read(density, settings, settings["most"][j]))[:, rank]

    def counts(j, rank):
        drawn = settings["num_targets"] != "all" and j != i
        times = GRAPH[i].sum() / len(neighbours) if drawn else 1
        return times * settings["counts"][j, rank]

    return ratios, counts


def candidates_of(i, neighbours, head, rank, settings):
    """The candidates (j, rank) from which a head of client i learns."""
    found = [(j, rank) for j in neighbours]
    if settings["include_self"] and head:
        found.append((i, 0 if settings["own_candidate"] == "main" else rank))
    if settings["same_level"] and head:
        found += [(j, head) for j in neighbours]
    return found


def reference_mixtures(i, params, xs, neighbours, settings):
    """log(Σ c exp d / Σ c) [P] over the candidates of each head of client i that learns from some."""
    ratios, counts = known_by(i, params, xs, neighbours, settings)
    found = {}
    for head in range(settings["num_aux_heads"] + 1):
        candidates = candidates_of(i, neighbours, head, max(head - 1, 0), settings)
        total = sum(counts(*one) for one in candidates)
        if total > 0:
            found[head] = np.log(sum(counts(*one) * ratios(*one) for one in candidates) / total)
    return found


def reference_targets(i, params, xs, neighbours, settings):
    """Targets [P, C] of each of client i's heads that learns: a loop over samples and candidates."""
    m, t, sets = (settings[name] for name in ("num_aux_heads", "temperature", "sets"))
    ranks = {head: head - 1 for head in range(1, m + 1)}  # whose teachers are the heads before
    if not m or i in settings["unlabelled"]:
        ranks[0] = 0
    by_density = settings["target_selection"] in ("density_ratio", "densest")
    if by_density:
        ratios, counts = known_by(i, params, xs, neighbours, settings)
    targets = {}
    for (head, rank), (p, x) in itertools.product(ranks.items(), enumerate(xs)):
        candidates = candidates_of(i, neighbours, head, rank, settings)
        if not candidates:
            continue
        logits = [
            as_it_arrives(
                outputs_of(params[j], x[None])[1][0, h, sets[j]],
                "none" if j == i else settings["compression"],
            )
            for j, h in candidates
        ]
        said = [
            spread_out(softmax(z / t), sets[j])
            for z, (j, _) in zip(logits, candidates, strict=True)
        ]
        if settings["target_selection"] == "mean":
            target = np.mean(said, axis=0)
        elif by_density:
            weights = np.array([counts(*one) * ratios(*one)[p] for one in candidates])
            if settings["target_selection"] == "densest":
                weights = (weights == weights.max()) * weights
            target = weights @ np.array(said) / max(weights.sum(), 1e-300)
        else:
            target = said[int(np.argmax([softmax(z).max() for z in logits]))]
        targets.setdefault(head, []).append(target)
    return {head: np.stack(found) for head, found in targets.items()}


def unit(e):
    return e / np.sqrt((e**2).sum(-1, keepdims=True) + 1e-6)


def density_loss(own, frozen, batch, i, xs, mixtures, settings):
    """The loss of client i's density ratios, whose embeddings are those of `frozen` parameters."""
    softplus = lambda a: np.logaddexp(0, a)
    of_samples = lambda x: densities_of(own, outputs_of(frozen, x)[0])
    public, mask = of_samples(xs), batch.mask[i]
    if settings["num_targets"] == "all":
        towards = lambda d, mixture: 0.1 * ((d - mixture) ** 2).mean()
    else:
        towards = lambda d, mixture: (np.exp(mixture) * softplus(-d) + softplus(d)).mean()
    loss = sum(towards(public[:, head], mixture) for head, mixture in mixtures.items() if head)
    if i in settings["unlabelled"]:
        return loss + (towards(public[:, 0], mixtures[0]) if 0 in mixtures else 0)
    private = of_samples(batch.inputs[i])[:, 0]
    return loss + softplus(public[:, 0]).mean() + (softplus(-private) * mask).sum() / mask.sum()


def reference_loss(own, batch, i, xs, targets, teacher_embeddings, settings, factors):
    """L_i as a function of the client's own parameters, everything else constant.

    `factors` are dropout's on private and on public samples.
    """
    smoothing, t = settings["label_smoothing"], settings["temperature"]
    known, mask = settings["sets"][i], batch.mask[i]
    loss = 0.0
    if mask.any():
        _, logits = outputs_of(own, batch.inputs[i], factors[0])
        hard = np.eye(NUM_CLASSES)[batch.labels[i]][:, known]
        soft = (1 - smoothing) * hard + smoothing / known.sum()
        loss += (cross_entropy(logits[:, 0, known], soft) * mask).sum() / mask.sum()

    embedding, logits = outputs_of(own, xs, factors[1])
    for head, target in targets.items():  # which is not renormalised
        each = cross_entropy(logits[:, head, known] / t, target[:, known])
        loss += settings["nu_aux"] * t**2 * each.mean()
    if teacher_embeddings:
        distances = [((unit(embedding) - unit(e)) ** 2).sum(-1).mean() for e in teacher_embeddings]
        loss += settings["nu_emb"] * np.mean(distances)
    return loss


def numeric_gradient(function, tree, step=1e-6):
    """Central differences over every entry of a nested dict of arrays."""
    if isinstance(tree, dict):
        return {key: numeric_gradient(function, value, step) for key, value in tree.items()}
    gradient = np.zeros_like(tree)
    for index in np.ndindex(tree.shape):
        kept = tree[index]
        for sign in (1, -1):
            tree[index] = kept + sign * step
            gradient[index] += sign * function() / (2 * step)
        tree[index] = kept
    return gradient


DEFAULTS = {
    "own_candidate": "same_rank",
    "density_weight": None,
    "density_weights": "clients",
    "density_clip": 8.0,
    "density_divides": True,
    "density_cap": "none",
    "density_gradient": "stopped",
    "num_aux_heads": 2,
    "num_targets": "all",
    "nu_aux": 0.7,
    "nu_emb": 0.4,
    "label_smoothing": 0.1,
    "temperature": 1.0,
    "include_self": True,
    "same_level": False,
    "target_selection": "most_confident",
    "compression": "none",
    "public_batch": "shared",
    "teacher_delay": 0,
}
NOT_OF_MHD = {"sets": np.ones((K, NUM_CLASSES), bool), "unlabelled": [], "chunk": None}
INDEPENDENT = {"public_batch": "independent"}
SETS = {
    "sets": np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1]], bool),
    "temperature": 2.0,
    "nu_emb": 0.0,
}
DENSITY = {"target_selection": "density_ratio", "density_weight": 0.6}
# Every case compiles a program of its own, so most bring two options that do not meet elsewhere.
CASES = {
    "defaults": {},
    "one teacher, plain cross-entropy": {"num_targets": 1, "label_smoothing": 0.0},
    "two teachers": {"num_targets": 2, "num_aux_heads": 3},
    "one head, more targets than neighbours": {"num_aux_heads": 1, "num_targets": 9},
    "naive": {"num_aux_heads": 0, "nu_emb": 0.0},
    "own head not a candidate, temperature": {"include_self": False, "temperature": 2.5},
    "same level, one teacher, own head out": {
        "same_level": True,
        "include_self": False,
        "num_targets": 1,
    },
    "mean of candidates, temperature": {"target_selection": "mean", "temperature": 2.5},
    "half precision": {"compression": "float16"},
    "eight bits, same level": {"compression": "int8", "same_level": True},
    "two classes, no embeddings": {"compression": "top_2", "nu_emb": 0.0},
    "one class, naive with embeddings": {"compression": "top_1", "num_aux_heads": 0},
    "embeddings alone, independent public batches": {"nu_aux": 0.0, **INDEPENDENT},
    "eight bits, independent public batches": {"compression": "int8", **INDEPENDENT},
    "two teachers, independent public batches": {"num_targets": 2, **INDEPENDENT},
    "label sets": SETS,
    "label sets, mean, in chunks, of snapshots": {
        **SETS,
        **{"target_selection": "mean", "chunk": 3, "teacher_delay": 1},
    },
    "label sets, independent public batches": {**SETS, **INDEPENDENT, "num_targets": 2},
    "label sets, unlabelled": {**SETS, "num_aux_heads": 1, "unlabelled": [1]},
    "own main head a candidate": {"own_candidate": "main"},
    "density ratio": {**DENSITY, "num_aux_heads": 3},
    "density ratio, label sets, unlabelled": {**SETS, **DENSITY, "unlabelled": [1]},
    "density ratio, own main head, flowing, eight bits": {
        **DENSITY,
        **{"own_candidate": "main", "density_gradient": "flowing", "compression": "int8"},
    },
    "density ratio, two teachers, independent public batches, capped": {
        **{**DENSITY, **INDEPENDENT, "num_targets": 2, "density_cap": 1.3},
        **{"density_divides": False, "density_clip": 0.7},
    },
    "densest, of snapshots, by samples": {
        **{"target_selection": "densest", "density_weights": "samples", "teacher_delay": 1},
        "density_cap": "shares",
    },
    "naive, weighted by density": {**DENSITY, "num_aux_heads": 0, "nu_emb": 0.0, "unlabelled": [2]},
}
SHORT = (
    "defaults",
    "one teacher, plain cross-entropy",
    "mean of candidates, temperature",
    "eight bits, same level",
    "embeddings alone, independent public batches",
    "label sets, mean, in chunks, of snapshots",
    "density ratio, label sets, unlabelled",
    "density ratio, two teachers, independent public batches, capped",
    "densest, of snapshots, by samples",
    "naive, weighted by density",
)


def assert_step_is_of_the_equations(state, batch, new_state, metrics, settings, factors=None):
    """A step of gradient descent at rate 1 against the loss and gradient of each client.

    `factors` [K, N, D] are dropout's on private and on public samples; None is without.
    """
    shared, most = batch.public_is_shared, settings["num_targets"]
    teachers = exchange.draw_teachers(state, jnp.asarray(GRAPH), jnp.ones(K, bool), most)
    batch, positions, valid = jax.device_get((batch, teachers.positions, teachers.valid))
    params = [jax.tree.map(np.array, of_client(state, i)) for i in range(K)]
    compression = settings["compression"]
    of_embeddings = "none" if compression.startswith("top_") else compression
    for i, own in enumerate(params):
        neighbours = positions[i][valid[i]]
        wanted = min(GRAPH[i].sum(), np.inf if most == "all" else most)
        assert len(set(neighbours)) == wanted and all(GRAPH[i, j] > 0 for j in neighbours)
        xs = batch.public_inputs if shared else batch.public_inputs[i]
        teacher_embeddings = [
            np.stack([as_it_arrives(e, of_embeddings) for e in outputs_of(params[j], xs)[0]])
            for j in neighbours
        ]
        loss = functools.partial(
            *(reference_loss, own, batch, i, xs),
            targets=reference_targets(i, params, xs, neighbours, settings),
            teacher_embeddings=teacher_embeddings,
            settings=settings,
            factors=(1.0, 1.0) if factors is None else [of_all[i] for of_all in factors],
        )
        if "density" in own:
            loss = with_density(loss, own, params, batch, i, xs, neighbours, settings)
        np.testing.assert_allclose(metrics["loss"][i], loss(), rtol=1e-9)
        moved = jax.tree.map(np.subtract, own, of_client(new_state, i))
        assert not moved["heads"]["kernel"][..., ~settings["sets"][i]].any()
        assert_trees_close(moved, numeric_gradient(loss, own), atol=2e-8)
    assert int(metrics["messages"]["predictions"].sum()) == int(valid.sum())


def with_density(loss, own, params, batch, i, xs, neighbours, settings):
    """The loss and that of the density ratios, whose gradient may stop at the embedding."""
    mixtures = reference_mixtures(i, params, xs, neighbours, settings)
    stops = settings["density_gradient"] == "stopped"
    frozen = jax.tree.map(np.copy, own) if stops else own
    weight = 1.0 if settings["density_weight"] is None else settings["density_weight"]
    of_density = functools.partial(density_loss, own, frozen, batch, i, xs, mixtures, settings)
    return lambda: loss() + weight * of_density()


def with_knowledge(state, clients, settings):
    """A state with density ratios and counts that differ, and settings that tell them."""
    rng = np.random.default_rng(2)
    (group,) = state.groups
    density = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), group.params["density"])
    group = dataclasses.replace(group, params={**group.params, "density": density})
    if settings["teacher_delay"]:  # whose snapshots are the clients as they are
        kept = jax.tree.map(lambda a: a[:, None], group.params)
        group = dataclasses.replace(group, snapshots=(kept, group.snapshots[1]))
    counts = np.array(state.extra["counts"])
    samples = clients.labelled_counts().sum(axis=1)
    np.testing.assert_array_equal(
        counts[:, 0], samples if settings["density_weights"] == "samples" else samples > 0
    )
    counts[:, 1:] = rng.integers(1, 9, counts[:, 1:].shape)
    cap = settings["density_cap"]
    most = {"none": np.full(K, np.inf), "shares": samples.sum() / np.maximum(samples, 1)}
    settings |= {"counts": counts, "most": most[cap] if cap in most else np.full(K, cap)}
    state = state.replace(
        groups=(group,), extra={**state.extra, "counts": jnp.asarray(counts, jnp.float64)}
    )
    return state, settings


def started(case, model=None):
    """MHD with plain gradient descent at rate 1, whose step is minus the gradient; state, batch.

    And settings that tell all.
    """
    settings = {**DEFAULTS, **NOT_OF_MHD, **case}
    algorithm = mhd.algorithms.mhd(**{name: settings[name] for name in DEFAULTS})
    without = settings["unlabelled"]
    objectives = dict.fromkeys(without, "unlabelled")
    clients = tiny_clients(K, model, optax.sgd(1.0), objectives=objectives)
    clients = dataclasses.replace(clients, label_sets=case.get("sets"))
    batch = tiny_batch(K, dtype=jnp.float64, shared=settings["public_batch"] == "shared")
    rng = np.random.default_rng(1)
    labels = [rng.choice(np.flatnonzero(known), 6) for known in settings["sets"]]
    mask = batch.mask.at[jnp.array(without, int)].set(0)
    batch = batch.replace(labels=jnp.asarray(np.stack(labels)), mask=mask)
    state = algorithm.init(jax.random.key(3), clients, batch)
    if "sets" in case:  # heads that are sure of something tell candidates apart
        state = jax.tree.map(lambda a: 3 * a if a.dtype == jnp.float64 else a, state)
    if "counts" in state.extra:
        state, settings = with_knowledge(state, clients, settings)
    return algorithm, state, batch, settings


@pytest.mark.parametrize("case", short(CASES, *SHORT))
def test_loss_and_gradient_equal_the_equations(case, float64):
    algorithm, state, batch, settings = started(CASES[case])
    chunk = settings["chunk"]
    with under(Execution(chunk, recompute=chunk is not None)):
        (_, after), (metrics,) = take_steps(algorithm, None, jnp.asarray(GRAPH), [batch], state)
    assert_step_is_of_the_equations(state, batch, after, metrics, settings)


@pytest.mark.parametrize("public_batch", ["shared", "independent"])
def test_students_drop_out_and_teachers_do_not(public_batch, float64):
    """Two steps: private and public passes draw masks of their own, anew in each step."""
    algorithm, state, batch, settings = started({"public_batch": public_batch}, Dropping())
    states, metrics = take_steps(algorithm, None, jnp.asarray(GRAPH), [batch] * 2, state)
    for step in range(2):
        factors = [
            dropped(purpose, step, samples, seed=3)
            for purpose, samples in ((Purpose.DROPOUT, 6), (Purpose.PUBLIC_DROPOUT, 7))
        ]
        before, after = states[step : step + 2]
        assert_step_is_of_the_equations(before, batch, after, metrics[step], settings, factors)


def test_candidates_are_chosen_at_temperature_one():
    """A broad winner and a narrow one swap places when tempered."""
    z = jnp.array([[4.0, 3.5, *[-9.0] * 8], [3.0, *[0.0] * 9]])[:, None, None]
    at = lambda t: jax.nn.softmax(z / t)
    assert at(1).max(-1).ravel().argmax() == 1 and at(4).max(-1).ravel().argmax() == 0
    candidates = exchange.Candidates(z, at(4), None, jnp.ones(2, bool))
    np.testing.assert_array_equal(exchange.most_confident(None, candidates), at(4)[1])


def test_random_selection_takes_one_candidate_for_each_sample_and_head():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(4, 200, 2, NUM_CLASSES)))
    valid = jnp.array([True, False, True, True])
    candidates = exchange.Candidates(logits, jax.nn.softmax(logits), None, valid)
    chosen = exchange.random_candidate(jax.random.key(0), candidates)
    said = softmax(np.asarray(logits))
    is_from = np.isclose(said, np.asarray(chosen)[None], atol=1e-6).all(axis=-1)  # [N, P, R]
    assert (is_from.sum(axis=0) == 1).all()
    counts = is_from.sum(axis=(1, 2))
    assert counts[1] == 0
    # 400 draws over 3 candidates: each near 133, with a standard deviation of 9.4.
    assert (np.abs(counts[[0, 2, 3]] - 400 / 3) < 5 * 9.43).all()


@pytest.mark.slow
def test_a_selection_rule_of_ones_own():
    def least_confident(key, candidates):
        assert candidates.embeddings.shape == (*candidates.logits.shape[:2], 5)
        score = -jax.nn.softmax(candidates.logits).max(-1)
        score = jnp.where(candidates.valid[:, None, None], score, -jnp.inf)
        best = score.argmax(axis=0)[None, ..., None]
        return jnp.take_along_axis(candidates.probabilities, best, axis=0)[0]

    clients, batch = tiny_clients(K), tiny_batch(K)
    losses = {}
    for rule in (least_confident, "most_confident"):
        algorithm = mhd.algorithms.mhd(target_selection=rule, num_targets="all")
        _, (metrics,) = take_steps(algorithm, clients, jnp.asarray(GRAPH), [batch])
        losses[rule] = metrics["aux_loss"]
    assert np.isfinite(losses[least_confident]).all()
    # Client 3 has no teacher, and only its own head to choose from.
    differs = np.asarray(losses[least_confident] != losses["most_confident"])
    np.testing.assert_array_equal(differs, [True, True, True, False])


class Deep(nn.Module):
    """Another architecture, of the same embedding width."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.tanh(nn.Dense(5)(nn.relu(nn.Dense(6)(x))))


CLIPPED_ADAM = optax.chain(optax.clip_by_global_norm(0.05), optax.adam(0.01))


def test_step_equals_a_loop_over_clients():
    """The stacked step against one client at a time, each with its own model call and optimizer.

    The clip would couple the three clients of a stack, were the optimizer given it whole.
    """
    kinds = [(Deep(), (1,), optax.sgd(0.1, momentum=0.9)), (Linear(), (0, 2, 3), CLIPPED_ADAM)]
    algorithm = mhd.algorithms.mhd(num_targets=2, nu_emb=0.2)
    clients, batch = tiny_clients(K), tiny_batch(K)
    members = tuple(
        ClientGroup(type(backbone).__name__, backbone, members, tx)
        for backbone, members, tx in kinds
    )
    clients = dataclasses.replace(clients, groups=members)
    state = algorithm.init(jax.random.key(1), clients, batch)
    new_state, _ = jax.jit(algorithm.train_step)(state, batch, jnp.asarray(GRAPH))
    teachers = exchange.draw_teachers(state, jnp.asarray(GRAPH), jnp.ones(K, bool), 2)
    homes = {i: group for group in state.groups for i in group.members}
    each = [of_client(state, i) for i in range(K)]
    said = [homes[i].model.apply(each[i], {}, batch.public_inputs)[0] for i in range(K)]
    for i in range(K):
        model, tx = homes[i].model, homes[i].optimizer
        chosen = [
            int(j) for j, v in zip(teachers.positions[i], teachers.valid[i], strict=True) if v
        ]
        candidates = [jax.nn.softmax(said[j].logits[:, :-1]) for j in (*chosen, i)]
        confidence = jnp.stack([c.max(-1) for c in candidates])
        best = confidence.argmax(0)

        def loss(p, i=i, model=model, candidates=candidates, best=best, chosen=chosen):
            private = model.apply(p, {}, batch.inputs[i])[0].logits[:, 0]
            labels = optax.smooth_labels(jax.nn.one_hot(batch.labels[i], NUM_CLASSES), 0.1)
            ce = optax.softmax_cross_entropy(private, labels)
            total = jnp.average(ce, weights=batch.mask[i])
            public = model.apply(p, {}, batch.public_inputs)[0]
            for k in range(1, 4):
                stacked_targets = jnp.stack([c[:, k - 1] for c in candidates])
                target = jnp.take_along_axis(stacked_targets, best[None, :, k - 1, None], 0)[0]
                total += 0.3 * optax.softmax_cross_entropy(public.logits[:, k], target).mean()
            unit = lambda e: e / jnp.sqrt((e**2).sum(-1, keepdims=True) + 1e-6)
            for j in chosen:
                gap = unit(public.embeddings) - unit(said[j].embeddings)
                total += 0.2 / len(chosen) * (gap**2).sum(-1).mean()
            return total

        @jax.jit
        def learned(p, tx=tx, loss=loss):
            return optax.apply_updates(p, tx.update(jax.grad(loss)(p), tx.init(p), p)[0])

        assert_trees_close(of_client(new_state, i), learned(each[i]), rtol=2e-4, atol=2e-6)


def test_fresh_teachers_equal_a_second_forward_pass():
    """Gathered student outputs against teachers that run again on the same samples."""
    shared = tiny_batch(K)
    copies = jnp.broadcast_to(shared.public_inputs, (K, *shared.public_inputs.shape))
    own = shared.replace(public_inputs=copies, public_indices=jnp.zeros((K, 7), jnp.int32))
    algorithm = mhd.algorithms.mhd(num_targets=2)
    gathered, recomputed = (
        groups.all_params(take_steps(algorithm, tiny_clients(K), jnp.asarray(GRAPH), [seen])[0][1])
        for seen in (shared, own)
    )
    assert_trees_close(gathered, recomputed, rtol=1e-5, atol=1e-7)


def test_fresh_teachers_add_no_forward_pass():
    """The compiled cost of MHD on a graph is that of MHD without one: teachers cost no matmul."""
    batch = tiny_batch(K)

    def matmuls(algorithm):
        state = algorithm.init(jax.random.key(0), tiny_clients(K), batch)
        jaxpr = str(jax.make_jaxpr(algorithm.train_step)(state, batch, jnp.asarray(GRAPH)))
        return jaxpr.count("dot_general")

    all_teachers = matmuls(mhd.algorithms.mhd(num_targets="all", nu_emb=0.0))
    # The same terms with a rule that looks at no teacher at all.
    uniform = mhd.algorithms.mhd(
        nu_emb=0.0,
        target_selection=lambda key, candidates: jnp.full(candidates.logits.shape[1:], 1 / 3),
    )
    assert all_teachers == matmuls(uniform)
