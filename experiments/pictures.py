r"""Makes the two pictures with which README opens, from the folder of a demo.

python -m experiments.quickstart
python -m experiments.pictures --demo=runs/demo
"""

from __future__ import annotations

from absl import flags

from mhd_jax.cli import launch
from mhd_jax.core.files import folder_here, make_folder
from mhd_jax.runs import curves, figures, graph, svg
from mhd_jax.runs.accuracies import chance
from mhd_jax.runs.drawing import own_style
from mhd_jax.runs.finished import read_run
from mhd_jax.runs.records import write_text

_DEMO = flags.DEFINE_string("demo", "runs/demo", "The folder of a demo.")
_PICTURES = flags.DEFINE_string("pictures", "docs/pictures", "The folder that gets the pictures.")
_MOMENTS = 20  # evaluations that are drawn, as files are to be small


def main() -> None:
    """Draws MHD's first seed: accuracy by head over steps, and the graph at the end."""
    run = read_run(folder_here(_DEMO.value, "--demo") / "mhd" / "seed_0")
    pictures = folder_here(_PICTURES.value, "--pictures")
    make_folder(pictures, "folder of pictures")
    by_head, at_work = pictures / "accuracy_by_head.svg", pictures / "graph_at_work.svg"
    with own_style():
        history = curves.moments(run.history, _MOMENTS)
        figure = figures.accuracy(history, chance(run.summary))
        figure.savefig(by_head, metadata={"Date": None})
    drawn = graph.of_run(run.summary)
    assert drawn is not None  # a demo's clients learn from each other
    write_text(at_work, svg.standalone(graph.drawing(drawn)) + "\n")
    launch.say(f"pictures: {by_head}, {at_work}")


if __name__ == "__main__":
    launch.run(main)
