"""Settings that make no sense are told before a run trains, with what to do; sound ones are not."""

import re
import warnings

import flax.linen as nn
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.engine.prepare import prepare
from tests.builders import Linear, thinned, tiny_dataset


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))


def clients(model=None, num_clients=3, **kwargs):
    kwargs = {"partition": "iid", "public_fraction": 0.25, **kwargs}
    return mhd.make_clients(tiny_dataset(150), num_clients, model or Linear(), **kwargs)


def told(who=None, algorithm="mhd", **settings):
    """The sentences of a run that is prepared, of 120 training samples: 30 public, 30 a client."""
    settings = {"steps": 100, "batch_size": 30, "public_batch_size": 30, **settings}
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        prepare("complete", who or clients(), algorithm, **settings)
    return [str(warning.message) for warning in found]


def one_sample_for_the_last(labels, num_clients, num_classes, rng):
    owner = np.arange(len(labels)) % (num_clients - 1)
    owner[-1] = num_clients - 1
    return owner


A = mhd.algorithms
TWO = ((0, 1),)


@pytest.mark.slow
def test_the_largest_sound_settings_are_told_nothing_of():
    assert told() == []
    assert told(clients(Normed()), batch_size=2, public_batch_size=2) == []
    assert told(algorithm=A.mhd(pool_size=2, pool_refresh=99)) == []
    assert told(algorithm=A.mhd(ensembles=TWO, average_every=100, teacher_delay=98)) == []
    assert told(algorithm=A.fedavg(local_steps=100)) == []
    assert told(algorithm=A.fedavg(local_epochs=100.0)) == []
    assert told(algorithm=A.idkd(start_step=99)) == []
    assert told(algorithm=A.fedavg(local_epochs=5.0), steps=5) == []
    assert told(optimizer=mhd.optim.SGD(warmup_steps=99)) == []
    assert told(algorithm="supervised", batch_size=30) == []  # 90 of all 90
    assert told(algorithm="isolated", public_batch_size=64) == []  # draws none


@pytest.mark.parametrize(
    ("settings", "sentence"),
    thinned(
        [
            ({"batch_size": 31}, "no client has more than 30, .* batch_size to at most 30"),
            (
                {"algorithm": "supervised", "batch_size": 31},
                "has 93 samples, but no client .* than 90, .* batch_size to at most 30",
            ),
            ({"public_batch_size": 31}, "is 31, but there are 30 public .* to at most 30"),
            ({"who": clients(Normed()), "batch_size": 1}, "but batch_size is 1, .* another norm"),
            ({"who": clients(Normed()), "public_batch_size": 1}, "but public_batch_size is 1"),
            (
                {"who": clients(Normed(), partition=one_sample_for_the_last)},
                "client 2 has a single private one",
            ),
            (
                {"algorithm": A.mhd(pool_size=2, pool_refresh=100)},
                "pool_refresh is 100, .* lower it",
            ),
            # At the last of 100 steps, a teacher of 99 steps ago is the first one, still.
            ({"algorithm": A.mhd(teacher_delay=99)}, "teacher_delay is 99, .* teachers never"),
            ({"algorithm": A.mhd(ensembles=TWO, average_every=101)}, "average_every is 101"),
            ({"algorithm": A.fedavg(local_steps=101)}, "local_steps is 101, .* nobody averages"),
            (
                {"algorithm": A.fedproto(local_steps=101)},
                "local_steps is 101, .* no prototypes are exchanged",
            ),
            (
                {"algorithm": A.fedavg(local_epochs=101.0)},
                "local_epochs is 101, .* nobody averages",
            ),
            ({"algorithm": A.idkd(start_step=100)}, "start_step is 100, .* nobody labels samples"),
            (
                {"optimizer": mhd.optim.SGD(warmup_steps=100)},
                "warmup_steps is 100, .* never begins",
            ),
            (
                {"who": clients(optimizers={"linear": mhd.optim.SGD(warmup_steps=100)})},
                "warmup_steps is 100, .* never begins",
            ),
            ({"algorithm": A.mhd(pool_refresh=50)}, "pool_refresh is 50, which has no effect: it"),
            ({"algorithm": A.mhd(density_cap=2.0)}, "density_cap is 2.0, .* by density ratios"),
            ({"algorithm": A.mhd(average_every=5)}, "average_every is 5, .* only with ensembles"),
            (
                {"algorithm": A.mhd(own_candidate="main", include_self=False)},
                "own_candidate is 'main', .* include_self",
            ),
            (
                {"algorithm": A.ds_fl(aggregation="mean", era_exponent=3.0)},
                "era_exponent is 3.0, .* only with enhanced_era",
            ),
            (
                {"algorithm": A.mhd(nu_aux=0.0, target_selection="median")},
                "target_selection is 'median', .* where the distillation has a weight",
            ),
            (
                {
                    "who": clients(validation_fraction=0.2),
                    "algorithm": A.naive(calibrate_every=5, target_selection="mean"),
                    "batch_size": 10,
                    "public_batch_size": 10,
                },
                "calibrate_every is 5, .* that compares confidence",
            ),
            (
                {"algorithm": A.fedproto(lambda_p=0.0, weighting="clients")},
                "weighting is 'clients', .* lambda_p above 0",
            ),
        ],
        2,
    ),
)
def test_what_makes_no_sense_is_told_once(settings, sentence):
    (found,) = told(**settings)
    assert re.search(sentence, found)


def test_what_no_client_uses_is_not_told():
    own = {"linear": mhd.optim.SGD(warmup_steps=99)}
    assert told(clients(optimizers=own), optimizer=mhd.optim.SGD(warmup_steps=100)) == []
    assert told(algorithm=A.fedproto(lambda_p=0.0, local_steps=101)) == []
    weighted = A.mhd(target_selection="density_ratio", num_targets="all", density_cap=2.0)
    assert told(algorithm=weighted) == told(algorithm=A.mhd(pool_size=1, pool_refresh=5)) == []
    assert told(algorithm=A.ds_fl(era_temperature=0.2)) == []
