"""What a process finds around it: a cluster's variables, matplotlib's settings, paths of work folders."""

import os
import pathlib

from hypothesis import strategies as st

from mhd_jax.cli.fellows import fellows
from mhd_jax.core import modes
from mhd_jax.core.files import folder_here, make_folder
from mhd_jax.runs import drawing
from tests.fuzzing.kinds import attempt, kind, odd_values, one_in, refusal, scratch

NUMBERS = ["1", "2", "16", "0", "", "-1", "2(x2)", "1.5", "abc", "²", " 2", "9" * 5000, "2,2"]
NAMES = ["SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS"]
NAMES += ["OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "PMI_SIZE"]
TEXTS = {
    "SLURM_STEP_NODELIST": ["localhost", "node[001-002]", ""],
    "TPU_WORKER_HOSTNAMES": ["localhost", "a,b", ",", "a,", "", " , "],
    "JAX_PLATFORMS": ["", "cpu", "tpu", "cuda,cpu"],
}
OF_A_STEP = ("SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@st.composite
def clusters(draw):
    """Variables of clusters, of which some are there and some can be read."""
    likely = st.sampled_from(["1", "2", "2", "16"])
    number = st.one_of(likely, st.sampled_from(NUMBERS)) if draw(one_in(3)) else likely
    given = {name: draw(number) for name in NAMES if draw(st.booleans())}
    for name, texts in TEXTS.items():
        if draw(st.booleans()):
            given[name] = draw(st.sampled_from(texts))
    return given


@kind(clusters())
def cluster_variables(given):
    found = fellows(given)
    assert "\n" not in found.note and (found.count == 1 or not found.note)
    if found.count is None:
        assert given["TPU_WORKER_HOSTNAMES"] == "a,b" and given.get("JAX_PLATFORMS", "") != "cpu"
    elif found.count > 1:  # only what srun has started, and only as many as it says
        assert all(name in given for name in OF_A_STEP) and given["SLURM_JOB_ID"].isdecimal()
        tasks = given.get("SLURM_STEP_NUM_TASKS", given["SLURM_NTASKS"])
        assert found.count == int(tasks) > 1
    plain = all(given.get(name, "1") in ("1", "2", "16") for name in (*NAMES, "SLURM_JOB_ID"))
    if plain and all(name in given for name in (*OF_A_STEP, "SLURM_JOB_ID")):
        assert found.count == int(given.get("SLURM_STEP_NUM_TASKS", given["SLURM_NTASKS"]))
    if not any(name.startswith("SLURM_STEP") for name in given):
        assert found.count in (1, None)
    return not found.note


ODD_PARTS = ["~", "~nobody at all", "..", ".", "a b", "a:b", "ä", "a\nb", "a\0b", "\udce4"]
ODD_PARTS += ["x" * 300]
SCHEMES = ["gs://", "gs:/", "s3://", "file:///", "hdfs://", "https://", "memory://"]
PATHS = ["c:/", "./gs:/"]  # which only look like them


@st.composite
def work_folders(draw):
    """Texts, paths and other things that someone may give for a folder."""
    if draw(one_in(6)):
        return draw(odd_values)
    part = st.one_of(st.sampled_from(["runs", "a", "b.c", "-"]), st.sampled_from(ODD_PARTS))
    text = "/".join(draw(st.lists(part, min_size=1, max_size=3)))
    if draw(one_in(3)):
        text = draw(st.sampled_from(SCHEMES + PATHS)) + text
    return pathlib.Path(text) if draw(one_in(4)) and "\0" not in text else text


@kind(work_folders())
def paths_of_work_folders(given):
    with scratch() as folder:
        before = os.environ.get("HOME")
        os.environ["HOME"] = str(folder)
        try:
            found, why = attempt(lambda: folder_here(given, "workdir"))
            text = str(given)
            is_path = isinstance(given, str | pathlib.PurePath)
            url = text.startswith(tuple(scheme.rstrip("/") + "/" for scheme in SCHEMES))
            if not is_path or not text.isprintable() or not text or url:
                assert why is not None, given
            elif not text.startswith("~") and "x" * 256 not in text:
                assert found == pathlib.Path(text), (given, why)
            if why is None:
                assert (folder in found.parents or found == folder) == (text.split("/")[0] == "~")
                why = refusal(lambda: make_folder(found, "workdir"))
                assert found.is_dir() if why is None else "x" * 256 in text
        finally:
            os.environ.pop("HOME") if before is None else os.environ.update(HOME=before)
    return why is None


SETTINGS = {
    "text.usetex": [True],
    "font.family": ["no such font", "serif", "monospace"],
    "figure.autolayout": [True],
    "figure.constrained_layout.use": [True],
    "figure.dpi": [1, 1000],
    "savefig.dpi": [1, "figure"],
    "savefig.bbox": ["tight"],
    "savefig.format": ["pdf"],
    "axes.unicode_minus": [False],
    "axes.formatter.use_mathtext": [True],
    "axes.formatter.use_locale": [True],
    "path.sketch": [(1, 100, 2)],
    "svg.fonttype": ["path"],
    "image.cmap": ["gray"],
    "lines.linewidth": [0, 30],
    "text.parse_math": [False],
    "backend": ["pdf", "svg", "module://no.such.backend"],
}


@st.composite
def styles(draw):
    """What a user tells matplotlib."""
    names = draw(st.lists(st.sampled_from(list(SETTINGS)), max_size=6, unique=True))
    return {name: draw(st.sampled_from(SETTINGS[name])) for name in names}


def _drawn() -> bytes:
    def make():
        figure = drawing.Figure(figsize=(1.5, 1), layout="constrained")
        figure.subplots().plot([0, 1], [-1, 1], label=drawing.plain("$5$"))
        return figure

    assert drawing.save_figure(make, pathlib.Path("figure")) is not None
    return pathlib.Path("figure.png").read_bytes() + pathlib.Path("figure.svg").read_bytes()


@kind(styles(), examples=5)
def styles_of_matplotlib(given):
    import matplotlib

    with scratch():
        plain = _drawn()
        before = dict(matplotlib.rcParams)
        with matplotlib.rc_context():
            matplotlib.rcParams.update(given)
            own = dict(matplotlib.rcParams)
            assert _drawn() == plain, given
            assert dict(matplotlib.rcParams) == own
        matplotlib.rcParams["backend"] = before["backend"]
    return True


MODES = [
    ["allow", "warn", "raise"],
    ["standard", "strict"],
    ["allow", "log", "disallow", "disallow_explicit"],
]


@kind(st.tuples(*map(st.sampled_from, MODES)), examples=5)
def modes_of_jax(given):
    import jax

    ranks, types, transfers = given
    with (
        jax.numpy_rank_promotion(ranks),
        jax.numpy_dtype_promotion(types),
        jax.transfer_guard(transfers),
    ):
        with modes.standard():
            found = jax.numpy.ones((2, 2)) + jax.numpy.arange(2) * 1.5
            assert float(found[1, 1]) == 2.5
        assert jax.config.jax_numpy_rank_promotion == ranks
        assert jax.config.jax_numpy_dtype_promotion == types
    return True
