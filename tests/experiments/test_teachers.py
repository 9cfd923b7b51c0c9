"""The cases of the study of teachers: what flags say of graphs and labels, each graph and skew has."""

import math

import numpy as np
import pytest

import mhd_jax as mhd
from experiments import teachers
from mhd_jax.cli import study
from mhd_jax.data.partition import PrimaryLabels


@pytest.fixture
def cases(monkeypatch, refused):
    """Gives the settings of the cases that flags ask for, by graph and skew, without running any."""

    def run(*arguments):
        found = {}

        def seen(asked, *_):
            for case in asked:
                assert not case.folder.startswith("/") and ".." not in case.folder.split("/")
                settings = case.settings
                found[settings.topology, settings.partition.skew] = settings
            raise mhd.ConfigError("seen.")

        monkeypatch.setattr(study, "explore", seen)
        assert "seen." in refused(teachers, "--rules=isolated", "--reference=isolated", *arguments)
        return found

    return run


def test_each_graph_has_its_own_options(cases, refused):
    graphs = ("--topologies=random_regular,islands,ring", "--skews=100")
    found = cases(*graphs, "--degree=4", "--num_islands=4")
    options = {graph: dict(settings.topology_options) for (graph, _), settings in found.items()}
    assert options["random_regular"]["degree"] == 4 and options["islands"]["num_islands"] == 4
    assert options["ring"] == {"directed": False}
    said = refused(teachers, "--topologies=ring", "--degree=4")
    assert "--degree is not used by any of the graphs" in said
    assert "give --topologies, not --topology" in refused(teachers, "--topology=ring")


def test_a_graph_of_ones_own_stays_in_the_folder_of_the_study(cases, refused, tmp_path):
    np.save(tmp_path / "all.npy", 1 - np.eye(8))
    (tmp_path / "below").mkdir()
    graphs = (f"{tmp_path}/all.npy", "below/../all.npy")
    assert [graph for graph, _ in cases(f"--topologies={','.join(graphs)}")] == [*graphs]
    said = refused(teachers, "--topologies=below/all.npy,below_all.npy")
    assert "--topologies: 'below/all.npy' and 'below_all.npy' would share a folder" in said


@pytest.mark.parametrize("flag", ["topologies", "skews"])
def test_there_is_something_to_compare(flag, refused):
    assert f"--{flag} must name each of them once, and at least one" in refused(
        teachers, f"--{flag}="
    )


def test_flags_do_not_make_rules_other_than_their_names_say(cases, refused):
    chosen = ("--rules=mean;densest", "--reference=mean", "--target_selection=mean")
    said = refused(teachers, *chosen, "--num_targets=2", "--nu_aux=0.1")
    assert "--num_targets, --target_selection: the study sets these itself" in said
    calibrated = "--calibrate_every=20"
    said = refused(teachers, "--rules=confident;confident, calibrated", calibrated)
    assert "--calibrate_every: the study sets these itself" in said
    assert cases("--nu_naive=0.3", "--nu_emb=0.1", calibrated)


def test_classes_that_few_hold_are_known_however_infinity_is_written():
    accuracies = {metric: {"main": 0.5} for metric in ("beta_sh", "beta_priv")}
    summary = {**accuracies, "by_hops": [{"hops": 1, "accuracy": {"main": 0.25}}]}
    for skew, hops in (("inf", [1]), ("INF", [1]), ("Infinity", [1]), ("100", [])):
        row = teachers._row(("ring", skew), "isolated", [summary], [summary])
        assert list(row["by_hops"]) == hops


def test_labels_are_dealt_as_the_flags_say(cases, refused):
    found = cases(
        "--topologies=ring", "--skews=10,inf", "--assignment=random", "--labels_per_client=3"
    )
    assert {settings.partition for settings in found.values()} == {
        PrimaryLabels(3, skew, "random") for skew in (10, math.inf)
    }
    for other in ("--partition=dirichlet", "--partition=split.npz"):
        assert "leave --partition and --owners out" in refused(teachers, other)
