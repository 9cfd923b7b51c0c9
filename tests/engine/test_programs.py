"""A run's folder is of its code: what was edited is refused and named, what only moved is taken."""

import dataclasses
import importlib.util
import json
import shutil
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mhd_jax as mhd
from mhd_jax.algorithms.base import factory
from mhd_jax.core.digests import program_digest
from mhd_jax.engine.prepare import prepare
from mhd_jax.training import groups
from tests.builders import contents, interrupt, short, simulate_in, thinned, tiny_dataset

SETTINGS = {"steps": 4, "eval_every": 2, "batch_size": 6, "public_batch_size": 6}


def clients(model=None, **kwargs):
    data = tiny_dataset(100)
    return mhd.make_clients(
        data, 4, model or network(), partition="iid", public_fraction=0.3, **kwargs
    )


def network(act=nn.relu, at_evaluation=lambda h: h, scale=1.0):
    class Mine(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool = False):
            kernel_init = nn.initializers.variance_scaling(scale, "fan_in", "normal")
            h = act(nn.Dense(5, kernel_init=kernel_init)(x))
            return h if train else at_evaluation(h)

    return Mine()


def algorithm(
    step=lambda gradients: gradients,
    answer=lambda logits: logits,
    start=lambda state: state,
):
    """Training alone, with an edit in one place."""

    @factory
    def own() -> mhd.Algorithm:
        def init(key, clients, sample_batch):
            return start(groups.init_state(key, clients, sample_batch, num_heads=1))

        def train_step(state, batch, graph):
            gradients, stats, losses = groups.private_gradients(state, batch, 0.0)
            metrics = {"loss": losses, "messages": {}}
            return groups.apply_gradients(state, step(gradients), stats), metrics

        def predict(state, inputs):
            return answer(groups.predict(state, inputs))

        return mhd.Algorithm(init, train_step, predict, lambda *_: {})

    return own()


def halved(tree):
    return jax.tree.map(lambda a: a / 2, tree)


def with_halved_params(state):
    own = [dataclasses.replace(g, params=halved(g.params)) for g in state.groups]
    return dataclasses.replace(state, groups=tuple(own))


def simulate(folder, who=None, own=None, **settings):
    own = own or algorithm()
    return simulate_in(folder, "ring", who or clients(), own, **SETTINGS | settings)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A finished run and one that was cut, which no test changes."""
    folder = tmp_path_factory.mktemp("begun")
    simulate(folder / "finished")
    with pytest.raises(KeyboardInterrupt):
        simulate(folder / "cut", callbacks=interrupt)
    return folder


@pytest.mark.parametrize("which", thinned(["finished", "cut"], 3))
@pytest.mark.parametrize(
    ("edit", "what"),
    [
        ({"who": clients(network(nn.tanh))}, "model mine"),
        ({"who": clients(network(at_evaluation=jnp.tanh))}, "predictions and their evaluation"),
        ({"who": clients(network(scale=2.0))}, "initial parameters"),
        ({"own": algorithm(step=halved)}, "train step"),
        ({"own": algorithm(answer=jnp.negative)}, "predictions and their evaluation"),
        ({"own": algorithm(start=with_halved_params)}, "initial parameters"),
    ],
)
def test_edited_code_is_refused_and_named(edit, what, which, begun):
    before = contents(begun / which)
    with pytest.raises(mhd.ConfigError, match=f"of other code: its {what} computed something else"):
        simulate(begun / which, **edit)
    assert contents(begun / which) == before


def test_the_same_code_made_anew_is_taken(begun, tmp_path):
    assert simulate(begun / "finished").started_at == 4
    shutil.copytree(begun / "cut", tmp_path / "cut")
    assert simulate(tmp_path / "cut").started_at == 2


def test_augmentations_are_told_apart():
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1)).astype(np.uint8)
    who = mhd.make_clients(mhd.data.arrays(images, np.arange(60) % 3), 2, "mlp_small")

    class Brighter(mhd.data.Augmentation):
        def __call__(self, key, image, preparation):
            return 1.1 * super().__call__(key, image, preparation)

    small = {"steps": 4, "batch_size": 4, "public_batch_size": 4}
    plain, brighter = (
        prepare("complete", who, "mhd", augmentation=kind(flip=True), **small).programs
        for kind in (mhd.data.Augmentation, Brighter)
    )
    differing = [what for what in plain if plain[what] != brighter[what]]
    assert differing == ["preparation of samples"]


def test_where_the_library_has_changed_the_difference_is_told(begun, tmp_path):
    shutil.copytree(begun / "finished", tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    config = json.loads(path.read_text())
    config["environment"]["versions"]["jax"] = "0.1"
    path.write_text(json.dumps(config))
    assert simulate(tmp_path / "run").started_at == 4  # programs are the same all the same
    with pytest.warns(UserWarning, match=r"cannot be told: its model mine differ.*jax 0\.1 there"):
        simulate(tmp_path / "run", clients(network(nn.tanh)))


FILE = """
import jax.numpy as jnp
from flax import linen as nn


class {name}(nn.Module):
    @nn.compact
    def __call__(self, {argument}, train: bool = False):
        return jnp.tanh(nn.Dense(5)({argument}))
"""


def test_names_and_places_of_code_make_no_difference(tmp_path):
    def digests(file, **names):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(FILE.format(**names)))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        run = prepare("ring", clients(getattr(module, names["name"])()), "mhd", **SETTINGS)
        return list(run.programs.values())

    assert digests("a.py", name="A", argument="x") == digests("b/c.py", name="B", argument="images")


@pytest.mark.parametrize("name", short(["mhd", "ccl"], "mhd"))
def test_devices_chunks_and_streams_make_no_difference(name):
    def programs(**how):
        return prepare("ring", clients(), name, **SETTINGS, **how).programs

    alone = programs()
    assert programs(client_chunk=2) == programs(data_placement="host") == alone
    assert programs(seed=3) == alone  # seeds are settings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x + 1, lambda x: 1 + x + 1e-6),
        (lambda x: jnp.where(x > 0, x, 0), lambda x: jnp.where(x >= 0, x, 0)),
        (lambda x: x @ np.eye(3), lambda x: x @ (2 * np.eye(3))),
        (jax.jit(lambda x: x * 2), jax.jit(lambda x: x * 3)),
        (
            lambda x: jax.lax.scan(lambda c, a: (c + a, None), x[0], x)[0],
            lambda x: jax.lax.scan(lambda c, a: (c - a, None), x[0], x)[0],
        ),
        (
            lambda x: jax.random.normal(jax.random.key(0), x.shape),
            lambda x: jax.random.normal(jax.random.key(1), x.shape),
        ),
    ],
)
def test_what_is_computed_makes_the_digest(one, other):
    x = jax.ShapeDtypeStruct((3, 3), jnp.float32)
    assert program_digest(one, x) == program_digest(one, x) != program_digest(other, x)
