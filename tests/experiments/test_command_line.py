"""The binaries, as a user types them."""

import json
import pathlib
import re
import signal

import grain  # noqa: F401  # defines flags, which must not go with those that a test sets
import numpy as np
import pytest

import mhd_jax as mhd
from experiments import heterogeneous
from mhd_jax.algorithms import ALGORITHMS, hyperparameters
from mhd_jax.cli import flags as run_flags
from mhd_jax.cli import study
from mhd_jax.cli.commands import compare, train
from mhd_jax.cli.commands import data as inspect_data
from mhd_jax.cli.settings import RunSettings
from tests import made_images
from tests.builders import ROOT, SMALL, python, start_python, wait_until


def read(path):
    return json.loads(pathlib.Path(path).read_text())


def test_train_saves_resumes_and_leaves_a_finished_run_alone(output, call, refused):
    arguments = [*SMALL, "--algorithm=mhd", "--topology=chain", "--nu_emb=0", "--workdir=w"]
    arguments += ["--num_aux_heads=2"]
    out = output(train, *arguments)
    assert "aux_2" in out and "report: w/report.html" in out
    summary = read("w/summary.json")
    assert summary["steps"] == 6 and summary["settings"]["topology"]["name"] == "chain"
    assert summary["communication"]["by_type"].keys() == {"logits"}
    status, out, err = call(train, *arguments)
    assert status == 0 and "w holds this run, finished; nothing was changed." in out
    assert "note" not in err
    late = ["--metrics=macro_f1", "--early_stopping=train/loss", "--json"]
    status, _, err = call(train, *arguments, *late)
    said = "note: --metrics, --early_stopping have no effect on a run that has finished; begin anew"
    assert status == 0 and said in err
    assert "w holds a run with other settings" in refused(train, *arguments, "--seed=1")
    assert "w holds a single run" in refused(compare, "--workdir=w")


@pytest.mark.slow
def test_graphs_that_change(output, refused):
    arguments = ["--topology=random_regular@0,ring@3", "--degree=2", "--redraw_every=2"]
    arguments.append("--directed")
    output(train, *SMALL, *arguments, "--algorithm=isolated", "--workdir=w")
    found = read("w/summary.json")["topology"]
    assert found["name"] == "random_regular@0,directed ring@3" and found["edges_per_step"] == 4.5
    said = refused(train, *SMALL, *arguments, "--algorithm=dsgd", "--workdir=v")
    assert "one way only at step 3" in said


@pytest.mark.slow
def test_faults_and_a_file_of_flags(output):
    faults = ["--offline=0.4", "--offline_steps=2", "--stragglers=2:3", "--leaves=0:4"]
    faults += ["--on_nonfinite=quarantine", "# a comment", "--algorithm=isolated"]
    pathlib.Path("preset.flags").write_text("\n".join(faults))
    output(train, *SMALL, "--flagfile=preset.flags", "--workdir=w")
    summary = read("w/summary.json")
    assert (summary["algorithm"], summary["steps"]) == ("isolated", 6)
    given = summary["settings"]["faults"]
    assert given["stragglers"] == [[2, 3]] and given["leaves"] == [[0, 4]]
    assert (given["offline"], given["offline_steps"], given["link_loss"]) == (0.4, 2, 0.0)
    missed = summary["faults"]["steps_missed"]
    assert missed[0] >= 2 and missed[2] >= 4 and summary["faults"]["quarantined"] == {}
    assert "<h2>Faults</h2>" in pathlib.Path("w/report.html").read_text()


REFUSED = {
    "--model=resnet99": "unknown model 'resnet99'; choose one of mlp, ",
    "--dataset=mnits": "mnits is not prepared in",
    "--data_dir=/data": "data_dir cannot go with digits, which takes test_fraction",
    "--image_size=8": "image_size cannot go with digits",
    "--dataset=./none": "none does not exist; give a folder of images, an .npz file",
    "--topology=rnig": "unknown topology 'rnig'",
    "--topology=none.npy": "no topology file 'none.npy'",
    "--topology=four.txt": "topology four has 4 clients, but there are 3",
    "--redraw_every=2": "--redraw_every is not used by --topology=complete",
    "--topology=chain --directed": "--directed is not used by --topology=chain",
    "--topology=ring --offsets=1,2": "--offsets is not used by --topology=ring",
    "--topology=circulant --offsets=1,x": "cannot read --offsets=1,x; write numbers",
    "--topology=circulant --offsets=1,3": "needs offsets in 1 … 2, not 3",
    "--topology=ring@0,star@4 --degree=2": "--degree is not used by --topology=ring@0",
    "--topology=ring@1": "start at step 0 and at ever later steps, not at 1",
    "--topology=islands --num_islands=3 --meet_every=0": "meet_every must be a number",
    "--labels_per_client=11": "labels_per_client is 11, but there are only 10 classes",
    "--public_fraction=0": "set public_fraction above 0",
    "--learning_rates=mlp": "cannot read the learning rates 'mlp'",
    "--learning_rates=cnn:1": "an optimizer for cnn, but the clients' models are mlp",
    "--objectives=none": "unknown objective 'none'",
    "--label_sets=0:10": "label_sets gives client 0 the class 10",
    "--adversaries=1": "cannot read the adversaries '1'; write them like 3:constant",
    "--adversaries=1:liar": "client 1 is an unknown adversary 'liar'",
    "--adversaries=1:nan --algorithm=dsgd": "dsgd does not know adversaries",
    "--public_split=train": "public_split needs a public_dataset",
    "--public_dataset=digits --public_fraction=0.2": "public samples are those of digits",
    "--public_dataset=digits": "(1,437 private); choose others,",
    "--allow_overlap": "allow_overlap is for another public data set; give one",
    "--label=y": "label cannot go with digits",
    "--owners=y --skew=3": "--owners says who gets which samples, and so does --skew",
    "--pixels": "pixels cannot go with digits, which takes test_fraction",
    "--augmentation=spin": "unknown augmentation 'spin'",
    "--algorithm=isolated --augment_public": "--augment_public is not used",
    "--partition=iid --skew=3": "--skew belongs to --partition=primary_labels",
    "--partition=iidd": "unknown partition 'iidd'; choose one of primary_labels",
    "--partition=none.npz": "no assignment file 'none.npz'",
    "--partition=none.npz --public_fraction=0.1": "--public_fraction is not used by --partition=none.npz",
    "--partition=owners.csv --alpha=1": "--alpha belongs to --partition=dirichlet, not to --partition=owners.csv",
    "--steps=5 --epochs=1": "give steps or epochs, not both",
    "--algorithm=isolated --nu_emb=1": "--nu_emb is not used by --algorithm=isolated",
    "--algorithm=isolated --public_batch_size=8 --num_targets=2": "--num_targets, --public_batch_size are not used by",
    "--link_loss=1": "link_loss must be in [0, 1), not 1.0",
    "--offline_steps=5": "--offline_steps needs --offline; give both, or neither",
    "--stragglers=1": "cannot read --stragglers=1; write it like 0:4,3:2",
    "--leaves=1:2,1:3": "--leaves=1:2,1:3 names a client twice",
    "--joins=3:2": "joins names client 3, but the clients are 0 to 2",
    "--algorithm=supervised --link_loss=0.1": "--link_loss is not used by --algorithm",
    "--num_targets=some": "--num_targets is a number or 'all', not 'some'",
    "--ensembles=0,1;x": "clients of each ensemble like 0,1,2;3,4, not '0,1;x'",
    "--ensembles=0,2;1,3": "ensembles must name clients 0 … 2; check [3]",
    "--ensembles=2": "3 clients do not make ensembles of 2",
    "--average_every=5": "--average_every is about --ensembles; give both, or neither",
    "--learning_rate=-1": "learning_rate must be positive",
    "mhd": "unexpected argument 'mhd'; flags are written --name=value",
    "--wandb_project=": "a wandb project needs a name",
    "--workdir=mine": "mine exists and is not a run's folder",
}


@pytest.mark.parametrize(("arguments", "sentence"), REFUSED.items())
def test_what_cannot_work_is_one_sentence(refused, arguments, sentence):
    pathlib.Path("four.txt").write_text("0 1\n1 2\n2 3\n")
    pathlib.Path("mine").mkdir()
    pathlib.Path("mine/notes.txt").write_text("keep me")
    before = sorted(pathlib.Path().rglob("*"))
    assert sentence in refused(train, "--num_clients=3", *arguments.split())
    assert sorted(pathlib.Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("--stepz=5", "Unknown command line flag 'stepz'. Did you mean: steps"),
        ("--steps=many", "steps"),
        ("--algorithm=mdh", "value should be one of"),
    ],
)
def test_flags_that_do_not_parse(call, argument, sentence):
    status, _, err = call(train, argument)
    assert status == 1 and sentence in err


@pytest.mark.slow
def test_compare_puts_all_in_one_table(output, refused):
    arguments = [*SMALL, "--algorithms=isolated,mhd", "--seeds=2", "--num_aux_heads=1"]
    arguments += ["--eval_every=6"]
    assert "isolated does not use --num_aux_heads." in output(compare, *arguments, "--workdir=c")
    table = read("c/table.json")
    assert [row["algorithm"] for row in table["rows"]] == ["isolated", "mhd"]
    for row in table["rows"]:
        runs = [read(f"c/{row['algorithm']}/seed_{seed}/summary.json") for seed in (0, 1)]
        for metric in ("beta_sh", "beta_priv"):
            for head, value in row[metric].items():
                a, b = (summary[metric][head] for summary in runs)
                assert value["mean"] == pytest.approx((a + b) / 2)
                assert value["std"] == pytest.approx(abs(a - b) / 2**0.5)
    markdown = pathlib.Path("c/table.md").read_text()
    assert markdown.count("| mhd | aux_") == 1
    page = pathlib.Path("c/report.html").read_text()
    assert page.count("<figure") == 3
    before = pathlib.Path("c/mhd/seed_1/summary.json").stat().st_mtime_ns
    # Where and how it is computed, and saved, changes no result.
    how = ["--steps_per_dispatch=2", "--checkpoint_every=3", "--num_devices=1"]
    how += ["--client_chunk=3", "--keep_checkpoints=1"]
    output(compare, *arguments, *how, "--data_placement=host", "--workdir=c")
    assert pathlib.Path("c/mhd/seed_1/summary.json").stat().st_mtime_ns == before
    before = pathlib.Path("c/table.json").read_bytes()
    for change, sentence in (
        (["--algorithms=supervised"], "a comparison with isolated, mhd; choose another"),
        (["--seed=5"], "a comparison with seed 0, seed 1; choose another"),
        (["--steps=7"], "other settings (steps)"),
    ):
        assert sentence in refused(compare, *arguments, "--workdir=c", *change)
        assert pathlib.Path("c/table.json").read_bytes() == before


@pytest.mark.parametrize(
    ("algorithms", "sentence"),
    [
        ("mhd,mhd", "each algorithm once"),
        ("mhd,mdh", "unknown algorithm 'mdh'"),
        ("", "at least one"),
        ("isolated,supervised", "pooled training needs one architecture"),
    ],
)
def test_compare_refuses_before_it_trains(refused, algorithms, sentence):
    models = "--model=mlp:2,cnn:1"
    assert sentence in refused(compare, *SMALL, models, f"--algorithms={algorithms}")
    assert not pathlib.Path("runs").exists()


@pytest.mark.slow
def test_data_is_seen_before_training_and_trained_on(output, refused):
    deal = ["--num_clients=3", "--partition=dirichlet", "--alpha=0.5", "--seed=4"]
    out = output(inspect_data, *deal, "--output=seen")
    assert "plots and split: seen" in out
    found = read("seen/statistics.json")
    expected = {"private": 1293, "public": 144, "validation": 0, "unused": 0, "test": 360}
    assert found["samples"] == expected
    counts = np.array([client["counts"] for client in found["clients"]])
    assert counts.shape == (3, 10) and counts.sum() == 1293
    for client in found["clients"]:
        assert f"{client['entropy_bits']:.3f}" in out and f"{client['samples']:,}" in out
    sizes = counts.sum(axis=1)
    assert f"has {sizes.max() / sizes.min():.2f} times the samples of the smallest" in out
    for row in counts:  # the table of counts
        assert any(re.findall(r"\d+", line)[1:] == list(map(str, row)) for line in out.splitlines())
    assert pathlib.Path("seen/data_split.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in pathlib.Path("seen/data_split.svg").read_text()
    output(inspect_data, *deal, "--output=seen")

    short = ["--algorithm=isolated", "--steps=1", "--batch_size=4", "--model=mlp"]
    output(train, *short, *deal, "--workdir=by_rule")
    saved = ["--num_clients=3", "--partition=seen/split.npz", "--seed=4"]
    output(train, *short, *saved, "--workdir=by_file")
    by_rule, by_file = (read(f"{name}/summary.json") for name in ("by_rule", "by_file"))
    assert by_rule["per_client"] == by_file["per_client"]
    for name in ("by_rule", "by_file"):
        split = pathlib.Path(f"{name}/split.npz").read_bytes()
        assert split == pathlib.Path("seen/split.npz").read_bytes()
    said = refused(inspect_data, "--output=by_rule")
    assert "by_rule exists and holds no statistics.json" in said


@pytest.mark.slow
def test_a_table_is_seen_and_trained_on_by_its_owners(output, refused):
    wards = ("north", "east", "west")
    rows = [f"{i % 7},{i * i},{wards[i % 3]},{'sick' if i % 2 else 'well'}" for i in range(60)]
    pathlib.Path("t.csv").write_text("\n".join(["age,dose,ward,state", *rows]))
    columns = ["--label=state", "--owners=ward", "--num_clients=3"]
    out = output(inspect_data, "t.csv", *columns)
    assert "t.csv: 48 training and 12 test samples of float32 of shape [2]" in out
    assert "2 classes: sick, well" in out and "are the owners east, north, west." in out
    assert "there is no column 'wart'" in refused(inspect_data, "t.csv", *columns, "--owners=wart")
    assert "not 'u.csv' besides" in refused(inspect_data, "t.csv", "u.csv")
    output(train, *SMALL, *columns, "--dataset=t.csv", "--algorithm=isolated", "--workdir=w")
    summary = read("w/summary.json")
    clients = summary["settings"]["clients"]
    assert (clients["dataset"], clients["partition"]) == ("t.csv", "owners")
    assert clients["owners"] == sorted(wards)
    assert len(clients["preparation"]["mean"]) == 2 and "beta_own" in summary
    assert np.sum(summary["data"]["private_samples"]) == 43
    pathlib.Path("t.csv").write_text("\n".join(["age,dose,ward,state", "9" + rows[0], *rows[1:]]))
    again = [*columns, "--dataset=./t.csv", "--algorithm=isolated", "--workdir=w"]
    assert "dataset_digest" in refused(train, *SMALL, *again)


@pytest.mark.slow
def test_texts_and_tokens_are_seen_and_trained_on(output):
    for name, word in (("t.csv", "day"), ("others.csv", "night")):
        rows = [
            f"a {('cold', 'warm')[i % 2]} {word} {i % 5},{('winter', 'summer')[i % 2]}"
            for i in range(60)
        ]
        pathlib.Path(name).write_text("\n".join(["said,season", *rows]))
    columns = ["--text=said", "--label=season"]
    deal = ["--num_clients=2", "--partition=iid"]
    seen = output(inspect_data, "t.csv", *columns, *deal)
    assert "48 training and 12 test samples of texts, in 4 tokens below 11" in seen
    public = "--public_dataset=others.csv"
    train_it = [
        *columns,
        *deal,
        public,
        "--dataset=t.csv",
        "--algorithm=fedmd",
        "--vocabulary_size=9",
    ]
    output(train, "--steps=2", "--batch_size=4", "--public_batch_size=8", *train_it, "--workdir=w")
    clients = read("w/summary.json")["settings"]["clients"]
    assert clients["models"] == ["bag_of_tokens:2"] and clients["public_dataset"] == "others.csv"
    tokens = np.arange(180).reshape(60, 3) % 7
    np.savez("t.npz", images=tokens, labels=np.arange(60) % 2)
    assert "(tokens below 7)" in output(inspect_data, "t.npz", "--tokens", *deal)


@pytest.mark.slow
def test_a_comparison_on_a_saved_split_of_the_home_folder(output, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # where this is
    output(inspect_data, "--num_clients=3", "--output=~/seen")
    arguments = [*SMALL, "--partition=~/seen/split.npz", "--algorithms=isolated"]
    output(compare, *arguments, "--seeds=2", "--workdir=c")
    splits = {path.read_bytes() for path in pathlib.Path("c").rglob("split.npz")}
    assert splits == {pathlib.Path("seen/split.npz").read_bytes()}
    settings = read("c/table.json")["settings"]
    assert settings["partition"] == f"{tmp_path}/seen/split.npz"
    assert "public_fraction" not in settings


def test_every_hyperparameter_has_its_help():
    for build in ALGORITHMS.values():
        assert set(hyperparameters(build)) <= set(run_flags.HYPERPARAMETER_HELP)


def test_help_tells_a_newcomer():
    text = python("-m", "experiments.train", "--help").stdout
    assert "python -m experiments.train --algorithm=mhd" in text
    assert "--topology: Who may learn from whom" in text
    assert "--partition: How private data is dealt to clients: primary_labels, dirichlet," in text
    assert "--nu_aux: Weight of the auxiliary heads' distillation. (mhd)" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        path.stem
        for path in sorted((ROOT / "experiments").glob("*.py"))
        if re.search(r"launch\.run\(|stand_in\(__name__", path.read_text())
    ],
)
def test_a_binary_starts_in_a_process_of_its_own(name):
    """Flags of one command must not meet those of another, as they may in a process of tests."""
    found = python("-m", f"experiments.{name}", "--nonsense")
    assert found.returncode == 1 and "nonsense" in found.stderr
    assert "Traceback" not in found.stderr and not found.stdout


@pytest.mark.slow
def test_help_of_the_data_names_its_flags_alone():
    text = python("-m", "experiments.inspect_data", "--help").stdout
    assert "python -m experiments.inspect_data --dataset=digits" in text
    flags_shown = set(re.findall(r"^  --(?:\[no\])?(\w+)", text, flags=re.MULTILINE))
    assert {"dataset", "partition", "skew", "alpha", "seed", "output"} <= flags_shown
    assert not {"algorithm", "steps", "model", "topology"} & flags_shown


@pytest.mark.slow
def test_the_imagenet_preset_at_toy_size(output, tmp_path, monkeypatch):
    """Made images of unlike sizes under its name; everything else is the preset's way."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shapes = [(20 + i % 5, 26 - i % 7, 3) for i in range(60)]
    made_images.write(
        tmp_path / "data" / "imagenet2012" / "5.1.0",
        name="imagenet2012",
        splits=("train", "validation"),
        shapes=shapes,
        labels=[i % 4 for i in range(60)],
        shape=(None, None, 3),
        num_classes=4,
    )
    preset = ROOT / "experiments" / "presets" / "imagenet_mhd.flags"
    toy = ["--image_size=18", "--crop_size=16", "--model=cnn", "--steps=2", "--eval_every=2"]
    few = ["--num_clients=2", "--labels_per_client=2", "--batch_size=4", "--public_batch_size=4"]
    where = [f"--data_dir={tmp_path / 'data'}", "--data_placement=host", "--warmup_steps=1"]
    output(train, f"--flagfile={preset}", *toy, *few, *where, "--workdir=w")
    summary = read("w/summary.json")
    assert len(summary["beta_sh"]) == 4 and summary["dataset"] == "imagenet2012"
    assert summary["settings"]["clients"]["preparation"]["crop_size"] == 16


@pytest.mark.slow
def test_interrupt_and_resume(tmp_path):
    command = ["-m", "experiments.train", *SMALL, "--workdir=w", "--checkpoint_every=5"]
    command += ["--steps=1000000", "--eval_every=50", "--learning_rate=0.01", "--overwrite"]
    process = start_python(*command, cwd=tmp_path)
    wait_until((tmp_path / "w" / "metrics.jsonl").exists, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "the same command resumes it; leave out --overwrite" in err
    assert "--overwrite" not in read(tmp_path / "w" / "config.json")["environment"]["command"]
    saved = max(int(d.name) for d in (tmp_path / "w" / "checkpoints").iterdir())
    assert f"stopped at step {saved} of 1000000" in err


@pytest.mark.slow
def test_a_demo_that_is_refused_says_nothing_else(tmp_path):
    (tmp_path / "config.json").touch()
    done = python("-m", "experiments.quickstart", "--workdir=.", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "holds a single run" in done.stderr


@pytest.mark.slow
def test_quickstart_at_toy_size(tmp_path):
    done = python("-m", "experiments.quickstart", "--steps=4", "--seeds=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = read(tmp_path / "runs" / "demo" / "table.json")["rows"]
    names = ["isolated", "naive", "mhd", "mhd_density_ratio"]
    assert [row["algorithm"] for row in rows] == names
    assert "aux_3" in done.stdout and "report: runs/demo/report.html" in done.stdout


def test_an_odd_number_of_clients_makes_no_pairs(refused):
    odd = ("--num_clients=5", "--small=none")
    assert "unknown model 'none'" in refused(heterogeneous, *odd)  # all else is as it must be
    assert "leave pairs out of --cases" in refused(heterogeneous, *odd, "--cases=small,pairs")
    assert "unknown model 'none'" in refused(heterogeneous, *odd, "--cases=small")


def test_pairs_that_are_left_out_are_told_with_the_results(output, monkeypatch, tmp_path):
    client = {metric: {"main": 0.5} for metric in ("beta_sh", "beta_priv")}
    summaries = [{"per_client": [client] * 3}]
    monkeypatch.setattr(study, "run", lambda cases, *_: {each.name: summaries for each in cases})
    (tmp_path / "runs" / "heterogeneous").mkdir(parents=True)
    output(heterogeneous, "--num_clients=3", "--seeds=1")
    said = "3 clients do not make pairs: the case pairs is left out.\n"
    assert pathlib.Path("runs/heterogeneous/table.md").read_text().endswith(said)


def test_what_a_study_of_unlike_clients_sets_itself(refused):
    for given in (["--average_every=5"], ["--ensembles=2", "--average_every=5"]):
        said = refused(heterogeneous, *given)
        assert f"{', '.join(each.split('=')[0] for each in given)}: the study sets these" in said
    assert "give --num_clients=2 or more" in refused(heterogeneous, "--num_clients=1")


def test_all_ensembles_smooth_their_labels_alike():
    given = mhd.algorithms.mhd(label_smoothing=0.3)
    found = heterogeneous.ensembles(RunSettings(num_clients=2), given, "mlp", "cnn", [1])
    assert {case.algorithm.name for case in found} == {"mhd", "isolated"}
    assert {case.algorithm.hyperparameters["label_smoothing"] for case in found} == {0.3}


@pytest.mark.slow
def test_studies_at_toy_size(output, tmp_path):
    """Who gains from whom, and who knows what at which distance."""
    toy = ("--steps=2", "--seeds=1", "--eval_every=2", "--num_aux_heads=1", "--public_batch_size=4")
    chosen = ("--cases=mixed_1", "--num_clients=2")
    output(heterogeneous, *toy, *chosen)
    folder = tmp_path / "runs" / "heterogeneous"
    rows = read(folder / "table.json")["rows"]
    found = [(row["ensemble"], row["clients"], row["places"]) for row in rows]
    assert found == [("mixed_1", "small", [0]), ("mixed_1", "large", [1])]
    assert rows[0]["gain"]["mean"] == 0  # over itself
    assert (folder / "table.md").read_text().count("\n| mixed_1 | 1 ") == 2
    assert (folder / "heterogeneous.png").exists()

    np.save(tmp_path / "all.npy", 1 - np.eye(5))
    done = python("-m", "experiments.topology", "--topologies=", cwd=tmp_path)
    said = "error: --topologies must name each of them once, and at least one.\n"
    assert (done.returncode, done.stderr) == (2, said)
    chosen = (f"--topologies=chain,circulant,{tmp_path}/all.npy", "--offsets=2")
    done = python("-m", "experiments.topology", *toy, *chosen, "--algorithms=mhd", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (table,) = tmp_path.glob("runs/topology-*/table.json")
    rows = read(table)["rows"]
    assert [row["hops"] for row in rows] == [0, 1, 2, 3, 4, 0, 1, 2, 0, 1]
    assert list(rows[0]["accuracy"]) == ["main", "aux_1"]
    notes = ["chain does not use --offsets.", f"{tmp_path}/all.npy does not use --offsets."]
    assert read(table)["notes"] == notes and notes[0] in done.stdout
    assert len([*table.parent.glob("*/mhd/seed_0/summary.json")]) == 3  # below the study's folder


@pytest.mark.slow
def test_distributed_distillation_knows_that_all_graphs_fit_before_it_trains_on_one(tmp_path):
    flags = ("--graphs=ring,torus", "--num_clients=8", "--steps=1")
    done = python("-m", "experiments.distributed_distillation", *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "torus" in done.stderr
    assert not [*tmp_path.iterdir()]
    done = python("-m", "experiments.distributed_distillation", "--graphs=", cwd=tmp_path)
    assert done.returncode == 2 and "--graphs must name one graph at least" in done.stderr


@pytest.mark.slow
def test_distributed_distillation_converges_in_its_experiment(tmp_path):
    """Both quantities fall by an order of magnitude in 256 steps; the experiment goes on."""
    flags = ("--num_clients=3", "--steps=256", "--learning_rate=0.6", "--graphs=chain", "--rho=10")
    done = python("-m", "experiments.distributed_distillation", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "distributed_distillation"
    assert (folder / "convergence.png").exists() and (folder / "convergence.md").exists()
    found = read(folder / "convergence.json")
    normal, strong, _ = found["runs"]
    first, last = normal["records"][0], normal["records"][-1]
    assert last["step"] == 256
    assert last["estimate"] < 0.1 * first["estimate"]
    assert last["gradient"] < 0.1 * first["gradient"]
    assert strong["records"][-1]["spread"] < last["spread"]
    for row in found["bytes"]:
        assert row["decisions"] == 64 * 10 * 4 < row["parameters"]
