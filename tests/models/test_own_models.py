"""Users' own modules: of Flax NNX, with random streams of their own, and those that cannot serve."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import mhd_jax as mhd
from mhd_jax.core.random import Purpose
from mhd_jax.models import ClientModel, from_nnx
from mhd_jax.training.groups import all_params, all_stats, forward
from tests.builders import (
    FEATURES,
    NUM_CLASSES,
    Net,
    Streams,
    assert_trees_equal,
    tiny_clients,
    tiny_dataset,
)


def tower(width, *, rngs):
    return nnx.Sequential(nnx.Linear(FEATURES, width, rngs=rngs), nnx.relu)


def test_an_nnx_module_computes_trains_and_draws_as_it_says():
    model = ClientModel(from_nnx(Net, 6), 1, NUM_CLASSES)
    x = jax.random.normal(jax.random.key(0), (40, FEATURES))
    keys = jax.random.split(jax.random.key(1), 2)

    @jax.jit
    def everything(keys, x):
        params, stats = jax.vmap(model.init, in_axes=(0, None))(keys, x)
        run = jax.vmap(model.apply, in_axes=(0, 0, None, 0))
        evaluated, kept = jax.vmap(model.apply, in_axes=(0, 0, None))(params, stats, x)
        trained, updated = run(params, stats, x, keys)
        again, _ = run(params, stats, x, keys[::-1])
        return params, stats, kept, updated, [o.embeddings for o in (evaluated, trained, again)]

    params, stats, kept, updated, (evaluated, trained, again) = everything(keys, x)
    assert_trees_equal(kept, stats)
    masks = []
    for i in range(2):
        first, second = (params["backbone"]["layers"][n] for n in (0, 1))
        h = (x @ first["kernel"][i] + first["bias"][i]) @ second["kernel"][i] + second["bias"][i]
        plain = np.maximum(h / np.sqrt(1 + 1e-5), 0)
        np.testing.assert_allclose(evaluated[i], np.hstack([plain] * 2), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            updated["batch_stats"]["norm"]["mean"][i], 0.01 * h.mean(0), rtol=1e-3, atol=1e-6
        )
        alive = np.asarray((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) > 1e-3)
        kept_by = [np.asarray(said[i]) != 0 for said in (trained, again)]
        masks += [m[:, part][alive] for m in kept_by for part in (slice(6), slice(6, None))]
    assert not np.allclose(*params["backbone"]["layers"][0]["kernel"])
    # Two clients, two steps' keys, two layers: no two masks agree in more than chance.
    for i, one in enumerate(masks):
        assert 0.3 < one.mean() < 0.7
        for other in masks[:i]:
            size = min(len(one), len(other))
            assert (one[:size] == other[:size]).mean() < 0.75


class Told(nnx.Module):
    """Is told its mode by arguments, and given its stream in the call."""

    def __init__(self, *, rngs):
        self.scale = nnx.Param(jnp.ones(FEATURES))

    def __call__(self, x, *, train, deterministic, rngs):
        assert train != deterministic
        return x * self.scale + (rngs.noise.normal(x.shape) if train else 0)


def test_arguments_tell_an_nnx_module_its_mode_and_bring_its_stream():
    model, x = ClientModel(from_nnx(Told), 1, NUM_CLASSES), jnp.ones((3, FEATURES))
    params, stats = model.init(jax.random.key(0), x)
    evaluated = model.apply(params, stats, x)[0].embeddings
    np.testing.assert_array_equal(evaluated, x)
    one, two = (model.apply(params, stats, x, jax.random.key(i))[0].embeddings for i in (1, 2))
    assert (one != two).all() and (one != x).all()
    assert model.has_modes(params, stats, x)
    quiet = ClientModel(from_nnx(tower, 6), 1, NUM_CLASSES)
    assert not quiet.has_modes(*jax.eval_shape(quiet.init, jax.random.key(0), x), x)


def test_an_nnx_module_computes_in_bfloat16_and_keeps_its_parameters():
    model = ClientModel(from_nnx(Net, 6), 1, NUM_CLASSES, "bfloat16")
    key, x = jax.random.key(0), jnp.ones((3, FEATURES))
    params, stats = jax.eval_shape(model.init, key, x)
    (outputs, updated) = jax.eval_shape(model.apply, params, stats, x, key)
    for tree in (params, outputs, updated):
        assert {a.dtype for a in jax.tree.leaves(tree)} == {jnp.dtype("float32")}
    equations = jax.make_jaxpr(model.apply)(params, stats, x, key).eqns
    dots = [e for e in equations if e.primitive.name == "dot_general"]
    assert [e.outvars[0].aval.dtype.name for e in dots] == ["bfloat16"] * 2 + ["float32"]


def test_nnx_models_are_what_they_are_made_of():
    one, same = (from_nnx(Net, 6, act=nnx.gelu) for _ in range(2))
    other = from_nnx(Net, 6)
    assert one == same and hash(one) == hash(same) and one != other
    clients = tiny_clients(4, model=[one, other, same, from_nnx(tower, 7)])
    found = [(group.name, group.members) for group in clients.groups]
    assert found == [("net", (0, 2)), ("net", (1,)), ("tower", (3,))]
    assert clients.settings["backbones"] == ["Net(6, act=gelu)", "Net(6)", "tower(7)"]


def test_a_class_that_needs_rngs_alone_is_a_model():
    clients = tiny_clients(3, model=[Told, from_nnx(Told), from_nnx(tower, 6)])
    assert [group.members for group in clients.groups] == [(0, 1), (2,)]
    weights = {"scale": np.full(FEATURES, 2.0, np.float32)}
    assert mhd.pretrained(Told, weights).model == from_nnx(Told)


class Noise(nn.Module):
    """Nothing but what three streams bring."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        names = ("dropout", "noise", "droppath") if train else ()
        draws = [jax.random.normal(self.make_rng(name), x.shape) for name in names]
        return jnp.hstack(draws or [jnp.tanh(x)] * 3)


def test_every_stream_is_served_by_client_and_step():
    clients = tiny_clients(2, model=Noise())
    x = jnp.zeros((5, FEATURES))
    algorithm = mhd.algorithms.isolated()
    batch = mhd.Batch(jnp.stack([x, x]), jnp.zeros((2, 5), int), jnp.ones((2, 5)), x, jnp.zeros(5))
    state = algorithm.init(jax.random.key(0), clients, batch)

    @jax.vmap
    def at(step):
        now = state.replace(step=step)
        said, _ = forward(
            now, all_params(now), all_stats(now), x, train=Purpose.DROPOUT, shared_inputs=True
        )
        return said.embeddings

    drawn = np.asarray(jax.jit(at)(jnp.arange(2)))  # [steps, K, N, 3 · F]
    assert len(np.unique(drawn)) == drawn.size
    key = jax.random.fold_in(
        jax.random.fold_in(jax.random.fold_in(jax.random.key(0), Purpose.DROPOUT), 1), 1
    )  # of step 1, client 1
    alone = Noise().apply({}, x, train=True, rngs=dict.fromkeys(("dropout", "params"), key))
    np.testing.assert_array_equal(drawn[1, 1, :, :FEATURES], alone[:, :FEATURES])


class Linen(nn.Module):
    """Ends as it is told."""

    end: str = "linear"
    width: int = NUM_CLASSES

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(self.width)(nn.relu(nn.Dense(8)(x)))
        return {
            "linear": lambda: x,
            "shaped": lambda: x[:, None].reshape(x.shape).astype(jnp.bfloat16),
            "relu": lambda: nn.relu(x),
            "norm": lambda: nn.LayerNorm()(x),
            "softmax": lambda: nn.softmax(x),
            "residual": lambda: x + nn.Dense(self.width)(x),
            "tuple in training": lambda: (x,) if train else x,
            "maps": lambda: x[:, None, None],
            "one sample": lambda: x[:1],
            "integers": lambda: x.astype(int),
            "noise": lambda: x + jax.random.normal(self.make_rng("noise"), x.shape),
            "wrong shapes": lambda: x + jnp.ones(77),
        }[self.end]()


def ended(width, *, rngs):
    return nnx.Sequential(nnx.Linear(FEATURES, width, rngs=rngs))


def listed(*, rngs):
    return [nnx.Linear(FEATURES, 3, rngs=rngs)]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Linen(), "Linen ends in a linear layer of width 3, the number of classes"),
        (Linen("shaped"), "Linen ends in a linear layer of width 3"),
        (from_nnx(ended, 3), "ended ends in a linear layer of width 3"),
        (Linen("tuple in training", 5), "Linen must map .* returned tuple"),
        (Linen("maps", 5), r"returned shape \[3, 1, 1, 5\]; leave the classifier to the heads"),
        (Linen("one sample", 5), r"here N = 3\) .* returned shape \[1, 5\]"),
        (Linen("integers", 5), "floating-point numbers, but it returned int32"),
        (Linen("noise", 5), "asks for random numbers with train=False"),
        (from_nnx(listed), "listed must build an NNX module .* built list"),
    ],
)
def test_backbones_that_cannot_serve_are_refused_by_name(model, sentence):
    with pytest.raises(mhd.ConfigError, match=f"^clients 1, 2: .*{sentence}"):
        mhd.make_clients(tiny_dataset(), 3, ["mlp", model, model])


def test_an_error_of_the_models_own_names_its_clients():
    with pytest.raises(ValueError, match="77") as error:
        mhd.make_clients(tiny_dataset(), 2, Linen("wrong shapes"))
    assert "clients 0, 1, whose samples are float32 of shape [" in error.value.__notes__[-1]


class Reader(nn.Module):
    """Embeds integers, of one part or all there is; or computes with numbers of a type."""

    part: str | None = None
    embeds: bool = True

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = x if self.part is None else x[self.part]
        if self.embeds:
            return nn.relu(nn.Dense(4)(nn.Embed(300, 4)(x).mean(axis=1)))
        return nn.relu(nn.Dense(4)(jax.lax.add(x, jnp.ones(x.shape))))


SMALL = np.arange(240).reshape(40, 6) % 90
PART = r"takes integers, but samples\['t'\] are float32, as pixels are; give that part as int32, or all of them by"


@pytest.mark.parametrize(
    ("samples", "model", "remedy"),
    [
        (SMALL, Reader(), r"takes integers, but samples are float32, .*pixels=False\) keeps"),
        (SMALL / 2, Reader(), "takes integers, but samples are float32"),
        ({"t": SMALL.astype(np.uint8)}, Reader("t"), PART),
        ({"t": SMALL.astype(np.uint8), "u": SMALL / 2}, Reader("t"), PART),
        (SMALL + 300, Reader(embeds=False), "takes floating-point numbers, but samples are int32"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*are taken for pixels")
def test_a_model_that_wants_another_type_says_how_to_keep_it(samples, model, remedy):
    with pytest.raises(mhd.ConfigError, match=f"^clients 0, 1: Reader {remedy}"):
        mhd.make_clients(mhd.data.arrays(samples, np.arange(40) % 2), 2, model)


@pytest.mark.parametrize("samples", [SMALL, {"t": SMALL.astype(np.uint8)}, SMALL + 200])
@pytest.mark.filterwarnings("error:.*are taken for pixels")
def test_integers_come_to_a_model_as_they_are(samples):
    data = mhd.data.arrays(samples, np.arange(40) % 2, pixels=False)
    model = Reader("t" if isinstance(samples, dict) else None)
    assert mhd.make_clients(data, 2, model).model_names == ["reader"] * 2
    (inputs,) = jax.tree.leaves(data.inputs)
    assert inputs.dtype == np.int32
    assert {*map(tuple, inputs)} <= {*map(tuple, np.asarray(jax.tree.leaves(samples)[0]))}


class Convolves(nn.Module):
    turns: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = jnp.moveaxis(x, 1, -1) if self.turns else x
        return nn.relu(nn.jit(nn.Conv)(4, (3, 3))(x).mean(axis=(1, 2)))


def test_a_convolution_over_channels_that_come_first_is_warned_of():
    images = np.random.default_rng(0).random((20, 3, 8, 8))
    data = mhd.data.arrays(images, np.arange(20) % 2)
    with pytest.warns(UserWarning, match=r"Convolves .* shape \[3, 8, 8\], channels first; numpy"):
        mhd.make_clients(data, 2, Convolves())
    with warnings.catch_warnings(action="error"):
        mhd.make_clients(data, 2, Convolves(turns=True))
        last = mhd.data.arrays(np.moveaxis(images, 1, -1), np.arange(20) % 2)
        mhd.make_clients(last, 2, Convolves())
    with pytest.raises(mhd.ConfigError, match=r"CNN cannot take these samples \(.*channels first"):
        mhd.make_clients(data, 2, mhd.models.CNN())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("end", ["relu", "norm", "residual"])
def test_an_embedding_may_be_as_wide_as_there_are_classes(end):
    assert mhd.make_clients(tiny_dataset(), 2, Linen(end)).model_names == ["linen"] * 2


def test_probabilities_of_as_many_classes_are_warned_of():
    with pytest.warns(UserWarning, match=r"Linen returns 3 numbers.*ends in a softmax\?"):
        mhd.make_clients(tiny_dataset(), 2, Linen("softmax"))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "this Linear has drawn its parameters"),
        (lambda: Linen, "a model is a name, a Flax module .* or mhd_jax.models.from_nnx"),
        (lambda: Net, r"give what it needs, as in mhd_jax.models.from_nnx\(Net, \.\.\.\)"),
        (lambda: from_nnx(lambda rngs: tower(6, rngs=rngs)), "a function with a name"),
        (lambda: from_nnx(Net), "Net cannot be built from these arguments and `rngs`: missing"),
        (lambda: from_nnx(len, []), "len cannot be built"),
        (lambda: from_nnx(Net, [6]), "client 0: Net cannot be hashed"),
    ],
)
def test_nnx_models_that_cannot_be_are_refused(make, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.make_clients(tiny_dataset(), 2, make())


@pytest.mark.slow
def test_embeddings_of_unlike_modules_weigh_what_they_are_wide():
    models = [from_nnx(Net, 4), Streams(), from_nnx(Net, 4)]
    clients = tiny_clients(3, model=models, public_fraction=0.3)
    algorithm = mhd.algorithms.mhd(num_aux_heads=0, embedding_projection="linear")
    sizes = {"steps": 6, "batch_size": 4, "public_batch_size": 8}
    result = mhd.simulate("complete", clients, algorithm, **sizes)
    sent = result.summary["communication"]
    edges = np.array(sent["by_edge"]["predictions"])
    # P = 8 samples, and embeddings of 8, 6 and 8 numbers, whoever they are sent by.
    assert sent["by_type"]["embeddings"] == (edges.sum(axis=0) * [8, 6, 8]).sum() * 8 * 4
    assert result.history[-1]["bytes"] == sent["total_bytes"]
