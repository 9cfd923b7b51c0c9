"""The questions of `experiments.paper`, and the cases that answer them: each is some flags' values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mhd_jax.cli import cases
from mhd_jax.cli.settings import RunSettings
from mhd_jax.cli.study import Case
from mhd_jax.data.partition import PrimaryLabels
from mhd_jax.studies.folder import folder_name

Flags = Mapping[str, str]
Group = Mapping[str, Flags]  # what is compared with each other: flags by the case's name

_ALL = {"num_targets": "all"}
_MHD = {"algorithm": "mhd", "num_aux_heads": "3", "target_selection": "most_confident"}
ISOLATED: Flags = {"algorithm": "isolated"}
NAIVE: Flags = {"algorithm": "naive", **_ALL, "target_selection": "mean"}
MHD: Flags = {**_MHD, "num_targets": "1"}  # the paper's
MHD_ALL: Flags = {**_MHD, **_ALL}
MHD_MEAN: Flags = {**_MHD, **_ALL, "target_selection": "mean"}  # as naive, with auxiliary heads
DENSITY: Flags = {**_MHD, **_ALL, "target_selection": "density_ratio"}

_METHODS: Group = {"isolated": ISOLATED, "naive": NAIVE, "mhd": MHD, "mhd_density": DENSITY}
_REFERENCES: Group = {"isolated": ISOLATED, "naive": NAIVE}
_WEIGHTS = ("0.1", "0.3", "1", "3")
_GRAPHS: dict[str, Flags] = {
    "complete": {"topology": "complete"},
    "ring": {"topology": "ring"},
    "islands": {"topology": "islands", "num_islands": "2"},
    "chain": {"topology": "chain"},
}

ASKED = {
    "main": "What do clients gain from each other, and at what price on their own classes?",
    "weights": "How much should naive distillation weigh, and the distillation of auxiliary heads (ν_aux) "
    "and of embeddings (ν_emb)? 3 and 1 are the paper's on ImageNet, by memory.",
    "heads": "How many auxiliary heads are of use?",
    "others": "What do other algorithms reach with as many private samples?",
    "labels": "Does it matter how primary labels are dealt: at random, or the same to all clients, which "
    "deals all samples alike (skew 0)?",
    "graphs": "How far does knowledge travel, where classes are held by few clients and by nobody else "
    "(skew inf)?",
    "models": "What do clients gain from one of another model, and what does it gain from them?",
    "pools": "Do teachers from pools of N_P earlier models, of which one is renewed every S_P steps, "
    "differ from the neighbours as they are?",
    "gossip": "Who averages parameters best: local momentum, quasi-global momentum, or that with cross features?",
    "pilots": "Which learning rates and weights are best on validation data, after few steps?",
}

# What the settings of some questions must be, in words.
NEEDED = {
    "labels": "--partition=primary_labels",
    "graphs": "--partition=primary_labels",
    "models": "one model of this library, by its name, in each of --model and --other_model",
}


def questions(
    settings: RunSettings, other_model: str, pilot_steps: int
) -> dict[str, dict[str, dict[str, Case]]]:
    """Returns the cases by question, group and name; equal ones are the first's.

    Questions whose needs, see `NEEDED`, the settings do not meet are left out.

    Args:
      settings: the settings that all cases share.
      other_model: the second model of the question about two.
      pilot_steps: the steps of a pilot.
    """
    asked: dict[str, dict[str, Group]] = {
        "main": {
            "": {
                **_REFERENCES,
                "mhd": MHD,
                "mhd_density": DENSITY,
                "mhd_all": MHD_ALL,
                "mhd_mean": MHD_MEAN,
                "supervised": {"algorithm": "supervised"},
            }
        },
        "weights": {"": {**_REFERENCES, "mhd": MHD, **_weights()}},
        "heads": {
            "": {
                **_REFERENCES,
                **{f"mhd_m={m}": {**MHD, "num_aux_heads": str(m)} for m in (1, 2, 3, 4)},
            }
        },
        "others": {
            "": {
                **_METHODS,
                "mhd_mean": MHD_MEAN,
                **{
                    name: {"algorithm": name} for name in ("fedmd", "idkd", "selective_fd", "ds_fl")
                },
            }
        },
        **(_of_primary_labels() if isinstance(settings.partition, PrimaryLabels) else {}),
        **_of_two_models(settings, other_model),
        "pools": {
            "": {
                **_REFERENCES,
                "mhd": MHD,
                **{
                    f"mhd_N_P=8_S_P={steps}": {**MHD, "pool_size": "8", "pool_refresh": str(steps)}
                    for steps in (200, 50)
                },
            }
        },
        "gossip": {"": {name: {"algorithm": name} for name in ("dsgd", "qg_dsgd", "ccl")}},
        "pilots": {"": _pilots(pilot_steps)},
    }
    distinct: dict[str, Case] = {}
    return {
        question: {
            group: {
                name: _first_of_its_content(distinct, name, given) for name, given in each.items()
            }
            for group, each in groups.items()
        }
        for question, groups in asked.items()
    }


def _first_of_its_content(distinct: dict[str, Case], name: str, given: Flags) -> Case:
    read = cases.read_one(tuple(given.items()))
    settings = read.settings.of_equal_budget(read.algorithm)
    case = dataclasses.replace(read, name=name, folder=folder_name(name), settings=settings)
    return distinct.setdefault(cases.content(case), case)


def _weights() -> Group:
    naive = {f"naive_nu={nu}": {**NAIVE, "nu_naive": nu} for nu in _WEIGHTS}
    aux = {f"mhd_nu_aux={nu}": {**MHD, "nu_aux": nu} for nu in _WEIGHTS}
    emb = {f"mhd_nu_emb={nu}": {**MHD, "nu_emb": nu} for nu in ("0", "0.1", "1")}
    return {**naive, **aux, **emb, "mhd_nu_aux=3_nu_emb=1": {**MHD, "nu_aux": "3", "nu_emb": "1"}}


def _of_primary_labels() -> dict[str, dict[str, Group]]:
    return {
        "labels": {
            "random": _in_setting("random", {"assignment": "random"}),
            "same for all": _in_setting("iid", {"skew": "0"}),
        },
        "graphs": {name: _on_graph(name) for name in _GRAPHS},
    }


def _in_setting(name: str, changes: Flags, methods: Group = _METHODS) -> Group:
    """Returns methods in a setting of its own."""
    return {f"{name}_{method}": {**given, **changes} for method, given in methods.items()}


def _on_graph(name: str) -> Group:
    """Returns methods on a graph, where classes have few holders; isolated clients have no graph."""
    few = {"skew": "inf"}
    learning = {method: given for method, given in _METHODS.items() if method != "isolated"}
    return {
        "skew=inf_isolated": {**ISOLATED, **few},
        **_in_setting(name, {**few, **_GRAPHS[name]}, learning),
    }


def _of_two_models(settings: RunSettings, other_model: str) -> dict[str, dict[str, Group]]:
    """Returns one client of a model among those of another; widths of embeddings may differ."""
    models, rest = (settings.model, other_model), settings.num_clients - 1
    if any(":" in model for model in models):  # several with their numbers, or users' own code
        return {}
    return {
        "models": {
            f"one {single}": _in_setting(
                f"one_{single}", {"model": f"{many}:{rest},{single}:1", "nu_emb": "0"}
            )
            for many, single in (models, models[::-1])
        }
    }


def _pilots(steps: int) -> Group:
    """Returns short runs that vary one number each, with samples set aside for validation."""
    short = {"validation_fraction": "0.1", "steps": str(steps), "eval_every": str(steps)}
    rates = {
        f"{method}_learning_rate={rate}": {**given, "learning_rate": rate}
        for rate in ("0.01", "0.03", "0.1")
        for method, given in _METHODS.items()
    }
    naive = {f"naive_nu={nu}": {**NAIVE, "nu_naive": nu} for nu in _WEIGHTS}
    aux = {
        f"{method}_nu_aux={nu}": {**given, "nu_aux": nu}
        for nu in _WEIGHTS
        for method, given in _METHODS.items()
        if method.startswith("mhd")
    }
    return {
        f"pilot_{name}": {**given, **short} for name, given in {**rates, **naive, **aux}.items()
    }
