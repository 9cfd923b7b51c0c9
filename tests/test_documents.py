"""The documents' programs run as they stand."""

import re

import jax
import numpy as np
import pytest

import mhd_jax as mhd
from mhd_jax.algorithms import ALGORITHMS, hyperparameters
from mhd_jax.engine import prepare as preparing
from tests.builders import ROOT, assert_trees_equal


def programs(document):
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def run(document, number, names=None):
    names = {} if names is None else names
    exec(compile(programs(document)[number], f"{document}, program {number}", "exec"), names)
    return names


def run_all(document):
    """Runs a document's programs, each after those before it."""
    names = {}
    for number in range(len(programs(document))):
        run(document, number, names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_readme(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preparing, "DEFAULT_STEPS", 500)
    betas = run("README.md", number)["result"].summary["beta_sh"]
    assert list(betas) == ["main", "aux_1", "aux_2", "aux_3"]
    if number == 0:
        assert betas["aux_3"] > betas["main"] + 0.1
        assert (tmp_path / "accuracy.png").exists()


@pytest.mark.slow
def test_adding_an_algorithm():
    names = run("docs/adding_an_algorithm.md", 0)
    summary = names["result"].summary
    alone = mhd.simulate("ring", names["clients"], "isolated", steps=200).summary
    assert summary["beta_sh"]["main"] > alone["beta_sh"]["main"] + 0.1
    sent = summary["communication"]
    assert sent["total_bytes"] == 200 * 8 * 64 * 10 * 4 and sent["by_type"].keys() == {
        "probabilities"
    }
    whole = programs("docs/adding_an_algorithm.md")[0]
    assert len(whole.splitlines()) < 60


def test_tables_and_data_sets_of_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("docs/bringing_data.md", 0)
    data, clients = found["data"], found["clients"]
    assert f"{data}".endswith("of float32 of shape [30], 2 classes: benign, malignant")
    assert clients.num_clients == 3 and data.owners.names == ("A", "B", "C")
    images = np.random.default_rng(0).random((30, 5))
    dataset = [(image, i % 3) for i, image in enumerate(images)]
    bridged = run("docs/bringing_data.md", 3, found | {"dataset": dataset})["data"]
    assert bridged.num_classes == 3 and bridged.inputs.shape == (24, 5)


@pytest.mark.slow
def test_texts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = run("docs/bringing_data.md", 1)
    assert capsys.readouterr().out.endswith("['travel', 'money']\n")
    alone = mhd.simulate("complete", names["clients"], "isolated", **names["settings"]).summary
    found = names["result"].summary["beta_sh"]
    assert max(found.values()) > alone["beta_sh"]["main"] + 0.05


@pytest.mark.slow
def test_numbers_to_predict():
    names = run("docs/bringing_data.md", 2)
    clients = names["clients"]
    alone = mhd.simulate(
        "complete", clients, "isolated", steps=400, metrics=names["metrics"]
    ).summary
    found = names["result"].summary
    assert found["beta_sh"]["aux_1"] > alone["beta_sh"]["main"] + 0.02
    assert found["metrics"]["rmse"]["aux_1"] < 0.95 * alone["metrics"]["rmse"]["main"]


@pytest.mark.slow
def test_bringing_data():
    found = run("docs/bringing_data.md", 4)
    assert found["data"].inputs.dtype == np.int32 and found["data"].vocabulary_size == 17
    assert found["result"].summary["beta_sh"]["main"] > 0.5


@pytest.mark.slow
def test_bringing_a_model():
    found = run("docs/bringing_a_model.md", 0)
    assert [group.members for group in found["clients"].groups] == [(0, 1), (2, 3)]
    assert found["result"].summary["beta_sh"]["main"] > 0.25
    run("docs/bringing_a_model.md", 1, found)
    assert [found["mixed"].client(k).name for k in (1, 2)] == ["Wide", "WideLinen"]
    run("docs/bringing_a_model.md", 2, found)
    start = mhd.prepare("ring", found["clients"], "isolated").init().groups[0].params
    trained = found["result"].state.groups[0].params
    assert_trees_equal(trained["backbone"], start["backbone"])
    assert not np.allclose(trained["heads"]["kernel"], start["heads"]["kernel"])


@pytest.mark.slow
def test_by_hand():
    names = run_all("docs/by_hand.md")
    assert names["losses"].shape == (100, 4) and names["logits"].shape == (4, 5, 4, 10)
    assert int(names["metrics"]["messages"]["predictions"].sum()) == 4


@pytest.mark.slow
def test_watching():
    names = run_all("docs/watching.md")
    summary = names["result"].summary
    assert 0 < summary["metrics"]["macro_f1"]["main"] < summary["metrics"]["top2"]["main"] <= 1
    assert names["logits"].shape == (5, 10) and len(names["rows"]) == 4 * 4 * 10


@pytest.mark.slow
def test_continuing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_all("docs/continuing.md")
    assert names["more"].summary["steps"] == 1000
    assert names["fedmd"].summary["beta_sh"]["main"] > 0.5
    frozen = names["tuned"].client(3).params["backbone"]["Dense_0"]["kernel"]
    assert (frozen == names["one"].params["backbone"]["Dense_0"]["kernel"]).all()
    before, after = (dict(names[name].params["backbone"]) for name in ("before", "after"))
    for layer in ("first", "second"):
        lora = after[layer].pop("lora")
        assert_trees_equal(after[layer], before[layer])
        assert lora["lora_b"].any()  # which begins as 0


@pytest.mark.slow
def test_comparing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_all("docs/comparing.md")
    assert names["difference"].verdict == "ahead" and len(names["difference"].seeds) == 3
    assert (tmp_path / "table.tex").read_text().count("mathbf") == 1
    assert (tmp_path / "comparison.pdf").exists()


@pytest.mark.slow
def test_cookbook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_all("docs/cookbook.md")
    assert names["result"].summary["status"] == "stopped"
    labels, logits = names["clients"].data.test_labels, names["measured"].client(0).apply
    losses = -jax.nn.log_softmax(logits(names["clients"].data.test_inputs))[
        np.arange(len(labels)), labels
    ]
    first = names["measured"].history[-1]["per_client"]["metrics"]["log_loss"]["main"][0]
    assert first == pytest.approx(float(losses.mean()), rel=1e-3)
    assert names["taught"].summary["beta_sh"]["main"] > names["alone"].summary["beta_sh"]["main"]
    assert names["losses"].shape == (50, 4)
    with np.load("client_3.npz") as saved:
        np.testing.assert_array_equal(saved["backbone/Dense_0/kernel"], names["kernel"])
    sent = np.array(names["directed"].summary["communication"]["by_edge"]["predictions"])
    assert sent.sum() == 400 and not sent.diagonal().any()
    assert names["table"].test("mhd", "isolated").verdict == "ahead"
    assert (tmp_path / "comparison.pdf").exists() and (tmp_path / "curves.pdf").exists()


@pytest.mark.slow
def test_coming_from():
    names = {}
    for number in range(3):
        run("docs/coming_from.md", number, names)
    assert names["fedavg"].summary["beta_sh"]["main"] > 0.7
    own, shared = (
        names["table"].test("local", "fedavg", metric=metric) for metric in ("beta_own", "beta_sh")
    )
    assert (own.verdict, shared.verdict) == ("ahead", "behind")
    test = mhd.data.load("digits").test_labels
    one = names["one"].summary["beta_sh"]["main"]
    four = names["four"].summary["beta_sh"]
    assert one > four["aux_3"] > four["main"] > 0.85
    assert (names["classes"] == test).mean() == pytest.approx(one, abs=0.02)


def test_every_program_is_run():
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/api/**/*.md")]
    counts = {path.relative_to(ROOT).as_posix(): len(programs(path)) for path in documents}
    assert {name: count for name, count in counts.items() if count} == {
        "README.md": 2,
        "docs/adding_an_algorithm.md": 1,
        "docs/bringing_a_model.md": 3,
        "docs/bringing_data.md": 5,
        "docs/by_hand.md": 3,
        "docs/continuing.md": 4,
        "docs/coming_from.md": 3,
        "docs/comparing.md": 2,
        "docs/cookbook.md": 9,
        "docs/watching.md": 2,
    }


def test_the_session_that_is_shown_is_the_one_that_ci_runs():
    shown = (ROOT / "docs/session.txt").read_text()
    assert max(map(len, shown.splitlines())) == 80
    run = re.search(r'SESSION = """\n(.*?)"""', (ROOT / ".ci/installed.py").read_text(), re.DOTALL)
    unfolded = shown.replace("\n", "")
    assert [line for line in run[1].splitlines() if f"$ {line}" not in unfolded] == []


def test_readme_links_to_files_that_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_guides_name_every_option_and_model():
    options = {name for build in ALGORITHMS.values() for name in hyperparameters(build)}
    for names, guide in ((options, "algorithms.md"), (mhd.models.names(), "what_there_is.md")):
        text = (ROOT / "docs" / guide).read_text()
        assert [name for name in names if f"`{name}`" not in text] == []
