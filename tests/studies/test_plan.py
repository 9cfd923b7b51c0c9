"""Plans: how the text of a compiled program is read, and what plans say of runs whose needs are known."""

import importlib.util
import json
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mhd_jax as mhd
from experiments import plan as binary
from mhd_jax.core.client_axis import Execution, over_clients, under
from mhd_jax.core.machine import Machine, prepared_for
from mhd_jax.core.trees import num_bytes
from mhd_jax.engine import memory
from mhd_jax.studies.compiled_text import Crossing, crossings, executed
from tests.builders import ROOT, Linear, python, tiny_clients

# In the form of a TPU's compiler: two loops of 3 and of 5 trips, one of as many trips as an argument says.
PROGRAM = textwrap.dedent("""\
    HloModule jit_f, entry_computation_layout={(f32[8,4]{1,0:T(8,128)})->f32[8,4]{1,0:T(8,128)}}

    %fused (p: f32[8,4]) -> f32[8,4] {
      %p = f32[8,4]{1,0:T(8,128)} parameter(0)
      ROOT %add.9 = f32[8,4]{1,0:T(8,128)} add(%p, %p), backend_config={"flag_configs":[]}
    }

    %five (p.1: (s32[], f32[8,4])) -> pred[] {
      %p.1 = (s32[]{:T(128)}, /*index=1*/f32[8,4]{1,0:T(8,128)}) parameter(0)
      %i = s32[]{:T(128)} get-tuple-element(%p.1), index=0
      %n = s32[]{:T(128)} constant(5)
      ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
    }

    %inner (p.2: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
      %p.2 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
      %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%p.2), index=1
      %norm = f32[8,4]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/vmap(Net)/GroupNorm_3/sub"}, backend_config={"window_config":{"estimated_cycles":"100"}}
      ROOT %t = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) tuple(%i, %norm)
    }

    %outer (p.3: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
      %p.3 = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) parameter(0)
      %w = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%p.3), condition=%five, body=%inner
      %g = f32[8,4]{1,0:T(8,128)} all-gather(%y), channel_id=1, replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={0}
      ROOT %c = f32[8,4]{1,0:T(8,128)} copy(%g), backend_config={"window_config":{"estimated_cycles":"7"}}
    }

    %by_argument (p.4: (s32[], s32[])) -> pred[] {
      %p.4 = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
      %a = s32[]{:T(128)} get-tuple-element(%p.4), index=0
      %b = s32[]{:T(128)} get-tuple-element(%p.4), index=1
      ROOT %lt.1 = pred[]{:T(512)} compare(%a, %b), direction=LT
    }

    %short (p.5: f32[8,4]) -> f32[8,4] {
      %s = f32[8,4]{1,0:T(8,128)} copy(%p.5), backend_config={"window_config":{"estimated_cycles":"1"}}
    }

    %long (p.6: f32[8,4]) -> f32[8,4] {
      %l = f32[8,4]{1,0:T(8,128)} copy(%p.6), backend_config={"window_config":{"estimated_cycles":"50"}}
    }

    %steps (p.7: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
      %loop = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%p.7), condition=%never, body=%outer, backend_config={"known_trip_count":{"n":"3"}}
      %if = f32[8,4]{1,0:T(8,128)} conditional(%which, %x.1, %x.2), branch_computations={%short, %long}
    }

    %never (p.8: (s32[], f32[8,4])) -> pred[] {
      ROOT %no = pred[]{:T(512)} constant(false)
    }

    ENTRY %main (arg: f32[8,4]) -> f32[8,4] {
      %arg = f32[8,4]{1,0:T(8,128)} parameter(0)
      ROOT %run = (s32[]{:T(128)}, f32[8,4]{1,0:T(8,128)}) while(%arg), condition=%by_argument, body=%steps
    }
    """)


def test_loops_multiply_and_branches_compete():
    found = {each.name: each for each in executed(PROGRAM)}
    assert found["norm"].times == 15
    assert found["add.9"].times == 15
    assert found["norm"].cycles == 15 * 100
    assert found["norm"].source == "jit(f)/vmap(Net)/GroupNorm_3/sub"
    assert found["c"].cycles == 3 * 7
    assert "l" in found and "s" not in found
    assert sum(each.cycles for each in found.values()) == 15 * 100 + 3 * 7 + 50
    assert {each.loops_of_unknown_length for each in found.values()} == {(), ("run",)}
    gathered = 3 * (3 / 4) * 8 * 4 * 4  # each of 4 chips has a quarter already
    assert crossings([*found.values()], 8) == [Crossing("all-gather", "f32", (8, 4), 3, gathered)]


@pytest.mark.parametrize(
    ("line", "shape", "received"),
    [
        ("bf16[6]{0} all-reduce(%a), replica_groups={{0,1,2},{3,4,5}}", (6,), 2 * 2 / 3 * 12),
        ("(f32[2]{0}, f32[2]{0}) all-reduce-start(%a, %b), replica_groups=[1,8]<=[8]", (2,), 28),
        ("(f32[1]{0}, u8[8]{0}) all-gather-start(%a), replica_groups=[1,8]<=[8]", (8,), 7),
        ("f32[3]{0} reduce-scatter(%a), replica_groups={{0,1}}", (3,), 12),
        ("(s8[5]{0}, s8[5]{0}, u32[], u32[]) collective-permute-start(%a)", (5,), 5),
        ("pred[16]{0} all-to-all(%a), replica_groups={}", (16,), 14),
    ],
)
def test_bytes_that_each_of_eight_devices_receives(line, shape, received):
    text = f"ENTRY %main (a: f32[1]) -> f32[1] {{\n  %x = {line}, dimensions={{0}}\n}}\n"
    (found,) = crossings(executed(text), 8)
    assert (found.shape, found.received) == (shape, received)


def test_an_exchange_that_fusions_take_up_counts_once():
    fused, line = (
        "",
        "%g{0} = f32[8]{{0}} all-gather(%a), channel_id={1}, replica_groups=[1,8]<=[8]",
    )
    main = "ENTRY %main (a: f32[1]) -> f32[8] {\n"
    for number, channel in enumerate((4, 4, 5)):
        fused += f"%part{number} (a: f32[1]) -> f32[8] {{\n  {line.format(number, channel)}\n}}\n"
        main += f"  %f{number} = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%part{number}\n"
    found = crossings(executed(f"{fused}{main}}}\n"), 8)
    assert found == [Crossing("all-gather", "f32", (8,), 2, 2 * 28)]
    apart = "".join(f"  {line.format(number, 1)}\n" for number in range(2))
    found = crossings(executed(f"ENTRY %main (a: f32[1]) -> f32[8] {{\n{apart}}}\n"), 8)
    assert found == [Crossing("all-gather", "f32", (8,), 2, 2 * 28)]


EIGHT = """
import json
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 8)
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from mhd_jax.studies.compiled_text import crossings, executed

mesh = Mesh(jax.devices(), ("i",), axis_types=(AxisType.Auto,))
split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("i",), ()))

def f(x, n):
    def shift(_, x):
        return jax.lax.ppermute(x, "i", [(k, (k + 1) % 8) for k in range(8)])
    def body(_, x):
        x = jax.lax.fori_loop(0, 3, shift, x)
        return x + jax.lax.psum(x[:, :5], "i").sum()
    return jax.lax.fori_loop(0, n, body, x)

mapped = jax.shard_map(f, mesh=mesh, in_specs=(PartitionSpec("i"), PartitionSpec()), out_specs=PartitionSpec("i"))
x = jax.ShapeDtypeStruct((8, 10), jnp.float32, sharding=split)
text = jax.jit(mapped).lower(x, jnp.int32(1)).compile().as_text()
print(json.dumps([[c.kind, c.shape, c.times, c.received] for c in crossings(executed(text), 8)]))
"""
MHD_ON_EIGHT = """
import json
import jax
jax.config.update("jax_num_cpu_devices", 8)
import mhd_jax as mhd

clients = mhd.make_clients("digits", 16, "mlp_small")
plan = mhd.plan("ring", clients, "mhd", "cpu", public_batch_size=48)
crossing = [[c.kind, c.shape, c.times] for c in plan.crossings if c.received > 1024]
print(json.dumps([crossing, plan.num_shards, plan.chunk, plan.fits]))
"""


def test_what_eight_devices_exchange():
    found = json.loads(python("-c", EIGHT).stdout)
    assert sorted(found) == [
        ["all-reduce", [1, 5], 1, 2 * 7 / 8 * 20],
        ["collective-permute", [1, 10], 3, 3 * 40],
    ]


@pytest.mark.slow
def test_what_a_step_of_mhd_exchanges():
    """The predictions of three heads and the embeddings, and nothing of parameters' size."""
    crossing, shards, chunk, fits = json.loads(python("-c", MHD_ON_EIGHT).stdout)
    to_each_side = [
        ["collective-permute", [2, 48, 3, 10], 2],
        ["collective-permute", [2, 48, 64], 2],
    ]
    assert sorted(crossing) == to_each_side
    assert (shards, chunk, fits) == (8, 2, True)


def wide_clients(num_clients=4, features=256, width=256):
    """Clients with one matrix [features, width] and one head, without normalisation."""
    inputs = np.random.default_rng(0).normal(size=(600, features)).astype(np.float32)
    data = mhd.data.arrays(inputs, np.arange(600) % 3)
    return mhd.make_clients(data, num_clients, Linear(width), partition="iid")


def test_the_arithmetic_and_the_memory_of_a_matrix():
    features = width = 256
    clients, batch = wide_clients(4, features, width), 64
    found = mhd.plan(
        *("empty", clients, "isolated", "cpu"), batch_size=batch, num_devices=1, steps=1
    )
    # Forward and kernel gradients; the head's input has a gradient, too.
    products = 4 * batch * 2 * (2 * features * width + 3 * width * 3)
    assert products < found.flops < 1.1 * products
    assert found.memory["parameters"] == 4 * 4 * (features * width + width * 3 + 3)
    samples = memory.on_each_device(mhd.prepare("empty", clients, "isolated").samples.data_shapes)
    assert found.memory["training data"] == samples
    # Clients this large take their steps one after the other: the gradients of one, not of all four.
    assert 4 * features * width < found.memory["temporaries"] < 4 * 4 * features * width
    assert found.fits and sum(found.memory.values()) < found.capacity
    assert found.crossings == () and found.step_seconds is None


@pytest.mark.slow
def test_flops_are_without_what_chunks_compute_again():
    settings = {"batch_size": 32, "num_devices": 1, "steps": 1}
    whole, parts = (
        mhd.plan("empty", wide_clients(), "isolated", "cpu", client_chunk=chunk, **settings)
        for chunk in (None, 2)
    )
    assert whole.flops == parts.flops
    assert (whole.chunk, parts.chunk, parts.recompute) == (4, 2, True)


def test_a_machine_that_is_too_small():
    here = Machine(jax.default_backend(), tuple(jax.devices()), bytes_each=10**5)
    with prepared_for(here):
        found = mhd.plan("empty", wide_clients(), "isolated", "cpu", num_devices=1, steps=1)
    assert not found.fits and found.capacity == 10**5
    assert found.chunk == 1 and found.memory["parameters"] > 10**5


def test_what_the_compiler_would_have_used():
    said = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (96.00G) exceeds available HBM (15.75G)."
    assert memory._wanted_bytes(said) == 96 * 2**30
    said = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.50M of 15.75G hbm."
    assert memory._wanted_bytes(said) == int(512.5 * 2**20)
    assert memory._wanted_bytes("RESOURCE_EXHAUSTED: out of memory") is None


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("quantum", "a target is cpu, gpu, or chips"),
        ("cpu:8", "a target is cpu, gpu, or chips"),
        ("tpu:v9:2x2", "none of the TPUs that can be planned for, which are tpu:v5e:4x4"),
        ("tpu:v5e", "none of the TPUs"),
    ],
)
def test_unknown_targets(target, sentence):
    with pytest.raises(mhd.ConfigError, match=sentence):
        mhd.plan("ring", tiny_clients(), "isolated", target)


def test_without_the_compiler_of_tpus(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(mhd.ConfigError, match=r'not installed: pip install "jax\[tpu\]"\.$'):
        mhd.plan("ring", tiny_clients(), "isolated", "tpu:v5e:2x2")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu():
    with pytest.raises(mhd.ConfigError, match="there is no GPU here"):
        mhd.plan("ring", tiny_clients(), "isolated", "gpu")


without_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: make tpu"
)


@without_compiler
def test_a_step_of_mhd_on_eight_chips():
    clients = mhd.make_clients("digits", 8, "mlp_small")
    found = mhd.plan("ring", clients, "mhd", "tpu:v5e:2x4", public_batch_size=48)
    assert (found.num_devices, found.num_shards, found.chunk) == (8, 8, 1)
    predictions = [each for each in found.crossings if each.shape[1:2] == (48,)]
    assert {each.kind for each in predictions} == {
        "collective-permute"
    }  # from either side of the ring
    assert {each.shape: each.times for each in predictions} == {(1, 48, 3, 10): 2, (1, 48, 64): 2}
    others = sum(each.received for each in found.crossings if each not in predictions)
    assert others <= 2048  # whose predictions are finite, which all must know
    assert 0 < found.floor_seconds < found.step_seconds < 0.01
    (group,) = mhd.prepare("ring", clients, "mhd", num_devices=1).carry.state.groups
    assert found.memory["parameters"] == num_bytes(group.params) / 8
    assert sum(found.shares.values()) == pytest.approx(1)


@without_compiler
@pytest.mark.slow
def test_the_notebook_for_colab_fits_eight_chips():
    """The clients that its cell makes there, and the settings of its run."""
    text = (ROOT / "experiments/notebooks/colab_accelerator.ipynb").read_text()
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
    (cell,) = [cell for cell in cells if "make_clients" in cell]
    names = {"mhd": mhd, "devices": range(8), "backend": "tpu", "TOY": False}
    exec(cell, names)
    found = mhd.plan("complete", names["clients"], "mhd", "tpu:v5e:2x4", compute_dtype="bfloat16")
    assert (found.num_clients, found.num_devices, found.fits) == (32, 8, True)
    assert all(each.shape[:2] == (32, 64) for each in found.crossings)  # predictions alone
    assert found.floor_seconds < found.step_seconds < 0.01


def test_one_client_on_a_tpu_is_computed_without_a_map():
    x, shared = jnp.arange(6.0).reshape(1, 2, 3), jnp.ones(3)

    def of_one(a, b):
        assert a["x"].shape == (2, 3)
        return {"sum": a["x"] @ b, "x": a["x"]}

    def mapped(platform):
        with under(Execution(platform=platform)):
            call = lambda x: over_clients(of_one, (0, None))({"x": x}, shared)
            return call(x), str(jax.make_jaxpr(call)(x))

    (alone, program), (vmapped, other) = mapped("tpu"), mapped("cpu")
    for name, value in vmapped.items():
        np.testing.assert_array_equal(alone[name], value)
    assert program != other


@pytest.mark.slow
def test_the_binary_plans_for_made_images(call):
    small = ["--steps=2", "--batch_size=4", "--num_devices=1", "--model=mlp_small"]
    made = ["--num_classes=5", "--image_size=6", "--samples_per_client=200", "--sizes=3,6"]
    status, out, _ = call(binary, "--target=cpu", *small, *made)
    assert status == 0 and "6 clients" in out and "estimated" in out
    status, out, _ = call(binary, "--target=cpu", *small, *made, "--json")
    few, many = map(json.loads, out.splitlines())
    assert (few["num_clients"], many["num_clients"]) == (3, 6)
    assert many["memory"]["parameters"] == 2 * few["memory"]["parameters"]
    status, out, _ = call(binary, "--target=cpu", *small, *made, "--json", "--crop_size=4")
    cropped = json.loads(out.splitlines()[0])
    assert cropped["memory"]["parameters"] < few["memory"]["parameters"]  # models see 4 × 4 pixels
    status, _, err = call(binary, "--sizes=3,many")
    assert status == 2 and "--sizes takes positive integers" in err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--dataset=digits", "leave it or --dataset out"),
        ("--regression", "leave it or --regression out"),
        ("--test_fraction=7", "leave it or --test_fraction out"),
        ("--image_size=0", "image_size must be an integer and at least 1"),
        ("--image_size=-4", "image_size must be an integer and at least 1"),
    ],
)
def test_what_made_images_cannot_be_is_refused(refused, given, said):
    assert said in refused(binary, "--target=cpu", "--num_classes=5", given)


def test_a_plan_makes_as_many_images_as_are_set_aside_and_private(refused, monkeypatch):
    def count(images, shape, num_classes):
        raise mhd.ConfigError(f"{images} images.")

    monkeypatch.setattr("mhd_jax.cli.commands.plan.made_images", count)
    given = ["--num_clients=3", "--samples_per_client=6", "--algorithm=isolated"]
    said = "--samples_per_client is of made images; give --num_classes too"
    assert said in refused(binary, *given)
    for shares, images in (
        ([], 20),  # a tenth is public
        (["--public_fraction=0"], 18),
        (["--public_fraction=0.25", "--validation_fraction=0.25"], 36),
    ):
        assert f" {images} images" in refused(binary, *given, "--num_classes=4", *shares)
