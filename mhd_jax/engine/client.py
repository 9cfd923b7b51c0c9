"""`Client`: one client taken out of a run, with its parameters as plain Flax takes them."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from mhd_jax.core import modes, multihost
from mhd_jax.core.errors import ConfigError
from mhd_jax.core.files import expanded, refused_where_unwritable, written_whole
from mhd_jax.core.shown import shortened
from mhd_jax.core.tasks import Task
from mhd_jax.core.types import PyTree, State
from mhd_jax.core.validation import is_integer
from mhd_jax.engine.answers import Answers
from mhd_jax.models.client_model import ClientModel, backbone_name
from mhd_jax.training import initial
from mhd_jax.training.metrics import head_names

if TYPE_CHECKING:
    from mhd_jax.engine.nnx_client import NNXClient


@dataclasses.dataclass(frozen=True, eq=False)
class Client:
    """One client of a run at one step.

    `client.model.apply(client.params, client.stats, client.prepared(x))` are its outputs in plain
    Flax; `client.model.backbone` is the Flax module itself.

    Attributes:
      number: its position among the run's clients.
      model: its architecture, a `mhd_jax.models.ClientModel`: a backbone and H linear heads.
      params: its parameters, a tree of NumPy arrays: `params["backbone"]`, and `params["heads"]`
        with `kernel` [H, D, C] and `bias` [H, C].
      stats: its other variables by collection, such as normalisation statistics.
      label_set: the classes that it knows, bool [C]; None if it knows all.
      task: what it predicts: classes, or numbers, which it gives in their own units.
    """

    number: int
    model: ClientModel
    params: PyTree
    stats: PyTree
    label_set: np.ndarray | None
    task: Task
    _answers: Answers = dataclasses.field(repr=False)

    @property
    def heads(self) -> list[str]:
        """The names of its heads: "main", "aux_1", …."""
        return head_names(self.model.num_heads)

    def prepared(self, inputs: PyTree) -> PyTree:
        """Returns samples, as the data set stores or was given them, as the model takes them.

        Raises:
          ConfigError: samples of other shapes or types than the data set's, or tokens beyond its
            vocabulary.
        """
        return self._answers.preparation(self._answers.stored(inputs))

    @modes.standard()
    def apply(self, inputs: PyTree, head: str | None = "main") -> np.ndarray:
        """Returns logits [N, C] of a head on samples as for `prepared`, in evaluation mode.

        For a regression they are the predicted numbers [N, D].

        Args:
          inputs: samples [N, ...].
          head: "main", "aux_1" …; None gives the logits of all heads, [N, H, C].

        Raises:
          ConfigError: there is no such head, or samples are as `prepared` refuses them.
        """
        if head is not None and head not in self.heads:
            raise ConfigError(
                f"client {self.number} has no head {head!r}; choose one of {', '.join(self.heads)}, "
                "or None for all."
            )
        known = None if self.label_set is None else jnp.asarray(self.label_set)
        x = self.prepared(inputs)
        count = len(jax.tree.leaves(x)[0])
        if not count:  # of nothing a model cannot tell what its layers' shapes are
            x = jax.tree.map(lambda a: jnp.zeros((1, *a.shape[1:]), a.dtype), x)
        outputs, _ = self.model.apply(self.params, self.stats, x, label_set=known)
        logits = self.task.in_own_units(np.asarray(outputs.logits))[:count]
        return logits if head is None else logits[:, self.heads.index(head)]

    def predict(self, inputs: PyTree, head: str = "main") -> np.ndarray:
        """Returns the most likely class of each sample, int [N]; arguments are as for `apply`.

        For a regression it returns the predicted numbers [N, D].
        """
        return np.asarray(self.task.decisions(jnp.asarray(self.apply(inputs, head))))

    def to_nnx(self) -> NNXClient:
        """Returns the client as an NNX module, to go on with in plain NNX."""
        from mhd_jax.engine.nnx_client import NNXClient  # NNX is imported where it is used

        return NNXClient(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the parameters as ``.npz``, by flat names like "backbone/Dense_0/kernel".

        Other variables have names like "stats/batch_stats/BatchNorm_0/mean".

        Raises:
          ConfigError: the file cannot be written.
        """
        arrays: Any = initial.named(self.params, self.stats)
        with (
            refused_where_unwritable(path),
            written_whole(expanded(path)) as partial,
            partial.open("wb") as file,
        ):
            np.savez(file, **arrays)

    @property
    def name(self) -> str:
        """The name of its architecture's class."""
        return backbone_name(self.model.backbone)

    def __repr__(self) -> str:
        count = sum(np.size(a) for a in jax.tree.leaves(self.params))
        heads = ", ".join(shortened(self.heads))
        return f"Client {self.number}: {self.name}, {count:,} parameters, heads {heads}"


def client_of(state: State, answers: Answers, number: Any, num_clients: int) -> Client:
    """Takes one client out of a state.

    Args:
      state: the state of all clients.
      answers: how the run's samples are prepared.
      number: the client's position.
      num_clients: K, without clients that only fill devices.

    Raises:
      ConfigError: there is no such client.
    """
    num_clients = min(num_clients, state.num_clients)  # one holds all the data where it is pooled
    if not is_integer(number) or not 0 <= number < num_clients:
        raise ConfigError(f"there is no client {number!r}; choose one of 0 … {num_clients - 1}.")
    group = next(group for group in state.groups if number in group.members)
    row = group.members.index(number)
    params, stats = multihost.fetch(jax.tree.map(lambda a: a[row], (group.params, group.stats)))
    sets = None if state.label_sets is None else multihost.fetch(state.label_sets)[number]
    model: Any = group.model
    return Client(int(number), model, params, stats, sets, state.task, answers)
