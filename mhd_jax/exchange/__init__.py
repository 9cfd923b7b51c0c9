"""The exchange between clients: messages, the draw of teachers, and the choice of targets."""

from mhd_jax.core.trees import all_finite
from mhd_jax.exchange.selection import (
    TARGET_SELECTIONS,
    Candidates,
    TargetSelection,
    agreement,
    confidence_cap,
    densest,
    density_ratio,
    density_robust,
    mean_of_candidates,
    median,
    most_confident,
    random_candidate,
    relative_confidence,
    robust,
    trimmed_mean,
)
from mhd_jax.exchange.teachers import (
    Teachers,
    draw_teachers,
    from_teachers,
    gather,
    neighbours,
)
from mhd_jax.topology.mixing import (
    along_edges,
    among,
    average,
    average_for_all,
    average_neighbours,
)

__all__ = [
    "TARGET_SELECTIONS",
    "Candidates",
    "TargetSelection",
    "Teachers",
    "agreement",
    "all_finite",
    "along_edges",
    "among",
    "average",
    "average_for_all",
    "average_neighbours",
    "confidence_cap",
    "densest",
    "density_ratio",
    "density_robust",
    "draw_teachers",
    "from_teachers",
    "gather",
    "mean_of_candidates",
    "median",
    "most_confident",
    "neighbours",
    "random_candidate",
    "relative_confidence",
    "robust",
    "trimmed_mean",
]
