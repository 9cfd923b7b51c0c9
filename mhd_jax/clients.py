"""The clients of a run: their architectures, private data, objectives, and the public set."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from mhd_jax.core import modes
from mhd_jax.core.calls import with_known_arguments
from mhd_jax.core.digests import array_digest
from mhd_jax.core.errors import ConfigError, in_a_line
from mhd_jax.core.files import expanded
from mhd_jax.core.label_sets import LabelSets, resolved
from mhd_jax.core.machine import require_devices
from mhd_jax.core.shown import MOST_ROWS, aligned, html_block, html_table, shortened
from mhd_jax.core.tasks import Task
from mhd_jax.core.validation import (
    is_integer,
    require_clients,
    require_counts,
    require_hashable,
    require_kind,
)
from mhd_jax.core.warned import warn
from mhd_jax.data import kinds, split_files
from mhd_jax.data.dataset import Dataset, digest, select, take
from mhd_jax.data.overlap import num_common, sample_keys
from mhd_jax.data.owners import Owners
from mhd_jax.data.partition import PARTITIONS, Partition, PrimaryLabels, named
from mhd_jax.data.pretext import PRETEXTS, Pretext
from mhd_jax.data.sources import load
from mhd_jax.data.split import SetAside, Split, dealt
from mhd_jax.exchange import adversaries as misbehaviour
from mhd_jax.models import MODELS, ClientModel, Pretrained, build_backbone, default_name
from mhd_jax.models.check import require_backbone, require_pretext
from mhd_jax.models.client_model import backbone_name
from mhd_jax.models.from_nnx import as_backbone
from mhd_jax.training import optim
from mhd_jax.training.optim import Optimizer

PyTree = Any
OBJECTIVES = ("supervised", "unlabelled", *PRETEXTS)
_NUM_CLIENTS = 8
_PUBLIC_FRACTION = 0.1
_MOST_DIGITS = 9
_TRIED = 16  # images of which a user's pretext task makes labels, to see if they fit
_MOST_SHOWN = 100  # clients in a notebook's table
ModelChoice = str | nn.Module | type | Sequence[Any] | Mapping[int, Any]


@dataclasses.dataclass(frozen=True)
class ClientGroup:
    """Clients of one architecture, heads included.

    Attributes:
      name: the name of the architecture in reports.
      backbone: a Flax module that maps a batch to an embedding.
      members: positions of the clients on the client axis, ascending.
      optimizer: the optimizer of the clients; None takes the run's.
      compute_dtype: the type in which the backbone computes; None takes the run's.
      pretext: the pretext task, with a head of its own, that the clients learn from private images
        instead of labels; None for clients with labels.
      initialization: the name of an initialization of the layers; None is the model's own.
      weights: arrays of a pretrained model, of one client by flat names; None has none.
      frozen: patterns of parameters that never change, see `mhd_jax.models.pretrained`.
      start: arrays [k, ...] from which the clients start, by flat names, see
        `mhd_jax.training.initial`; None draws all.
    """

    name: str
    backbone: nn.Module
    members: tuple[int, ...]
    optimizer: Optimizer | None = None
    compute_dtype: str | None = None
    pretext: Pretext | None = None
    initialization: str | None = None
    weights: Mapping[str, np.ndarray] | None = None
    frozen: tuple[str, ...] = ()
    start: Mapping[str, Any] | None = None

    @property
    def described(self) -> str:
        """The name of the architecture, and of the pretext task if there is one."""
        return f"{self.name} for {self.pretext.name}" if self.pretext else self.name

    def client_model(self, num_heads: int, num_outputs: int) -> ClientModel:
        """Returns the backbone with `num_heads` heads of `num_outputs` outputs."""
        return ClientModel(
            self.backbone,
            num_heads,
            num_outputs,
            self.compute_dtype,
            self.pretext,
            self.initialization,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Clients:
    """The clients of a run with their data and models, on the host.

    Attributes:
      data: the data set, whose test split is shared by all clients.
      groups: clients by architecture.
      owner: the client that owns each training sample, int [N]; −1 if no client does.
      public: rows of the training samples that are public, without labels, int; empty if the
        public set is another data set.
      public_inputs: the public set, arrays [M, ...] as stored, before preparation.
      validation: rows set aside with labels, to choose settings or checkpoints without the test
        split, int [V].
      label_distributions: the frequencies of each client's private labels, [K, C]; zeros for a
        client that does not learn from labels.
      objectives: the objective of each client on its private data, K names from `OBJECTIVES`.
      settings: the settings from which the clients were made, for `config.json`.
      label_sets: the classes of each client, bool [K, C]; None if all clients have all classes.
      adversaries: the kind of each adversary, from `mhd_jax.exchange.adversaries.KINDS`, by client.
      test_owner: the client of each test sample, int [N_test], −1 for nobody's; None if test
        samples have no owners.
    """

    data: Dataset
    groups: tuple[ClientGroup, ...]
    owner: np.ndarray
    public: np.ndarray
    public_inputs: PyTree
    validation: np.ndarray
    label_distributions: np.ndarray
    objectives: tuple[str, ...]
    settings: dict[str, Any]
    label_sets: np.ndarray | None = None
    adversaries: Mapping[int, str] = dataclasses.field(default_factory=dict)
    test_owner: np.ndarray | None = None

    def __repr__(self) -> str:
        classes = shortened(self.data.class_names)
        rows = [["client", *classes]]
        for number, counts in enumerate(self.label_counts().tolist()):
            shown = (
                counts
                if len(counts) == len(classes)
                else [*counts[: len(classes) - 2], "…", counts[-1]]
            )
            rows.append([str(number), *map(str, shown)])
        if len(rows) > MOST_ROWS + 1:
            rows = [*rows[:MOST_ROWS], ["…", *[""] * len(classes)], rows[-1]]
        return "\n".join([self._title(), "private samples of each class:", *aligned(rows)])

    def _repr_html_(self) -> str:
        rows = [[str(i), *map(str, row)] for i, row in enumerate(self.label_counts().tolist())]
        table = html_table(["client", *map(str, self.data.class_names)], rows[:_MOST_SHOWN])
        return html_block(self._title(), table)

    def _title(self) -> str:
        models = ", ".join(f"{len(group.members)} × {group.described}" for group in self.groups)
        roles = ", ".join(
            f"{count:,} {role}" for role, count in self.role_counts().items() if count
        )
        return f"{self.num_clients} clients of {self.data.name} ({models}); samples: {roles}"

    @property
    def num_clients(self) -> int:
        """K, the number of clients."""
        return len(self.label_distributions)

    @property
    def num_classes(self) -> int:
        """C, the number of classes, or of the ranges of a regression's targets."""
        return self.data.num_classes

    @property
    def num_outputs(self) -> int:
        """The outputs of a head: C classes, or D numbers."""
        return self.data.num_outputs

    @property
    def task(self) -> Task:
        """What they learn to predict: classes, or numbers."""
        return self.data.task

    @property
    def num_public(self) -> int:
        """M, the number of samples in the public set."""
        return len(jax.tree.leaves(self.public_inputs)[0])

    @property
    def model_names(self) -> list[str]:
        """The name of each client's architecture."""
        names = {i: group.name for group in self.groups for i in group.members}
        return [names[i] for i in range(self.num_clients)]

    def validation_samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns inputs and labels of the validation samples."""
        return select(self.data.inputs, self.validation), self.data.labels[self.validation]

    def save_split(self, path: str | os.PathLike[str]) -> None:
        """Saves the split of the samples as ``.npz``, which `make_clients` takes as a partition."""
        split = Split(self.owner, self.public, self.validation)
        split_files.save(expanded(path), split, self.data.labels)

    def label_counts(self) -> np.ndarray:
        """Returns the number of private samples by client and class, int [K, C]."""
        counts = np.zeros((self.num_clients, self.num_classes), int)
        owned = self.owner >= 0
        np.add.at(counts, (self.owner[owned], self.data.labels[owned]), 1)
        return counts

    def private_inputs(self, most: int) -> tuple[PyTree, np.ndarray]:
        """Returns up to `most` private samples of each client, evenly spaced in their order.

        Returns:
          The samples as stored, before preparation, arrays [K, S, ...], and which of the S each
          client has, bool [K, S]; S ≥ 2 is `most`, or the size of the largest private set.
        """
        sizes = self.label_counts().sum(axis=1)
        by_client = np.argsort(self.owner, kind="stable")[np.count_nonzero(self.owner < 0) :]
        count = max(min(most, int(sizes.max())), 2)
        rows = np.zeros((self.num_clients, count), int)
        for client, own in enumerate(np.split(by_client, np.cumsum(sizes)[:-1])):
            spaced = np.linspace(0, max(len(own) - 1, 0), min(len(own), count)).astype(int)
            rows[client, : len(spaced)] = own[spaced]
        there = np.arange(count) < np.minimum(sizes, count)[:, None]
        return take(self.data.inputs, rows), there

    def calibration_samples(self, most: int) -> tuple[PyTree, np.ndarray]:
        """Returns up to `most` validation samples, evenly spaced in their order.

        Returns:
          The samples as models take them, arrays [V, ...], and their labels, int [V].
        """
        count = len(self.validation)
        rows = self.validation[np.linspace(0, count - 1, min(count, most)).astype(int)]
        return self.data.preparation(take(self.data.inputs, rows)), self.data.labels[rows]

    def labelled_counts(self) -> np.ndarray:
        """Returns `label_counts`, but zeros for clients that do not learn from labels."""
        return self.label_counts() * self.learns_labels[:, None]

    @property
    def learns_labels(self) -> np.ndarray:
        """Which clients learn from private labels, bool [K]."""
        return np.array([objective == "supervised" for objective in self.objectives])

    def role_counts(self) -> dict[str, int]:
        """Returns the number of samples in each role: private, public, validation, unused, test."""
        private = int((self.owner >= 0).sum())
        return {
            "private": private,
            "public": self.num_public,
            "validation": len(self.validation),
            "unused": len(self.owner) - private - len(self.public) - len(self.validation),
            "test": len(self.data.test_labels),
        }

    def pooled(self) -> Clients:
        """Returns a single client that holds the private data of all clients with labels.

        Its label distribution is the mean of these clients' label distributions, so that its β_priv
        is the mean of the β_priv that its model has on them.

        Raises:
          ConfigError: the clients with labels differ in architecture.
        """
        groups = [group for group in self.groups if self.learns_labels[list(group.members)].any()]
        if len(groups) > 1:
            raise ConfigError(
                "pooled training needs one architecture, but the clients have "
                f"{', '.join(group.name for group in groups)}."
            )
        return dataclasses.replace(
            self,
            groups=(dataclasses.replace(groups[0], members=(0,)),),
            owner=np.where((self.owner >= 0) & self.learns_labels[self.owner], 0, -1),
            label_distributions=self.label_distributions[self.learns_labels].mean(
                axis=0, keepdims=True
            ),
            objectives=("supervised",),
            label_sets=None,
            adversaries={},
            test_owner=None,
        )

    def padded(self, multiple: int) -> Clients:
        """Adds inactive clients to each group until its size is a multiple of `multiple`.

        Inactive clients come after all others and hold no samples. They have the label set of the
        first client, so that equal label sets stay equal.
        """
        position = self.num_clients
        groups = []
        for group in self.groups:
            missing = -len(group.members) % multiple
            extra = tuple(range(position, position + missing))
            rows = np.minimum(np.arange(len(group.members) + missing), len(group.members) - 1)
            start = jax.tree.map(lambda a, rows=rows: a[rows], group.start)
            groups.append(dataclasses.replace(group, members=group.members + extra, start=start))
            position += missing
        nobody = np.zeros((position - self.num_clients, self.num_classes))
        sets = self.label_sets
        if sets is not None:
            sets = np.concatenate([sets, np.repeat(sets[:1], len(nobody), axis=0)])
        return dataclasses.replace(
            self,
            groups=tuple(groups),
            label_distributions=np.concatenate([self.label_distributions, nobody]),
            objectives=self.objectives + ("supervised",) * len(nobody),
            label_sets=sets,
        )

    def first(self, count: int) -> Clients:
        """Returns the first `count` clients alone, without inactive ones that `padded` added."""
        groups = []
        for group in self.groups:
            members = tuple(i for i in group.members if i < count)
            rows = slice(len(members))
            start = jax.tree.map(lambda a, rows=rows: a[rows], group.start)
            groups.append(dataclasses.replace(group, members=members, start=start))
        return dataclasses.replace(
            self,
            groups=tuple(group for group in groups if group.members),
            label_distributions=self.label_distributions[:count],
            objectives=self.objectives[:count],
            label_sets=None if self.label_sets is None else self.label_sets[:count],
        )

    def with_starts(self, starts: Sequence[Any]) -> Clients:
        """Returns the clients with arrays from which each group's start, see `ClientGroup.start`."""
        pairs = zip(self.groups, starts, strict=True)
        groups = tuple(dataclasses.replace(group, start=start) for group, start in pairs)
        return dataclasses.replace(self, groups=groups)

    def with_defaults(
        self,
        optimizer: Optimizer,
        compute_dtype: str | None = None,
        steps: int = 1,
        *,
        nesterov: bool = False,
    ) -> Clients:
        """Returns the clients with an optimizer and a compute type in each group.

        Args:
          optimizer: the optimizer of groups that have none.
          compute_dtype: the compute type of groups that have none.
          steps: the number of steps of the run, for learning-rate schedules.
          nesterov: whether an `SGD` whose `nesterov` is None uses Nesterov momentum.
        """
        groups = tuple(
            dataclasses.replace(
                group,
                optimizer=optim.freezing(
                    optim.build(optim.resolved(group.optimizer or optimizer, nesterov), steps),
                    group.frozen,
                ),
                compute_dtype=group.compute_dtype or compute_dtype,
            )
            for group in self.groups
        )
        return dataclasses.replace(self, groups=groups)


@with_known_arguments()
@modes.standard()
def make_clients(
    data: Dataset | str | os.PathLike[str],
    num_clients: int | None = None,
    model: ModelChoice | None = None,
    *,
    partition: Partition | str | os.PathLike[str] | Sequence[Any] | Mapping[int, Any] | None = None,
    public: Dataset | str | os.PathLike[str] | None = None,
    public_fraction: float | None = None,
    public_size: int | None = None,
    allow_overlap: bool = False,
    validation_fraction: float = 0.0,
    objectives: Any = "supervised",
    label_sets: LabelSets | None = None,
    adversaries: Mapping[int, str] | None = None,
    optimizers: Mapping[str, Optimizer] | None = None,
    norm: str | None = None,
    initialization: str | None = None,
    test_partition: Any = None,
    seed: int = 0,
) -> Clients:
    """Splits a data set into the clients' private sets and a public set, and returns the clients.

    Args:
      data: a data set from `mhd_jax.data.load`, or an argument of that function.
      num_clients: K, the number of clients; by default 8, or the number of owners, where samples
        have owners and `partition` is None.
      model: None takes "mlp", or "bag_of_tokens" where samples are tokens; or a name, names with
        counts ("resnet18:4,resnet34:4"), an NNX class whose modules return an embedding (with
        arguments: ``mhd_jax.models.from_nnx(MyNet, 64)``), a Linen module that does, or one of these
        for each client, as a list or a dict by client.
      partition: the rule that deals private samples to clients: a partition, its name ("iid"), or
        a function `(labels [N], num_clients, num_classes, rng) -> owner [N]`; by default each
        owner's samples go to one client, where the data has owners; otherwise primary labels, 2 for
        each client (1 if there is only one class), with skew 100. Or an assignment:
        the path of the `split.npz` of a run or of `Clients.save_split`, which determines the
        public and the validation samples too; or the owner of each training sample, −1 for none,
        as an array, a list, or the path of a ``.npy`` or ``.csv`` file; or each client's rows, as
        a dict {client: rows} or a list of K arrays. Public and validation samples are then drawn
        from the samples without an owner.
      public: the data set whose training samples, without labels, are the public set, of arrays without
        a test split four fifths (`test_fraction` of `mhd.data.arrays`); None takes samples of `data`.
      public_fraction: γ, the share of the training samples set aside without labels; by default
        0.1, and 0 if `public` is given.
      public_size: the number of public samples to use, drawn from those available; the private
        samples do not depend on it. None uses all.
      allow_overlap: whether samples of `public` may also be private, validation or test samples of
        `data`, which is otherwise an error. Images that are read from files are compared by their
        files, and only with each other.
      validation_fraction: the share of the training samples set aside with labels, to choose
        settings or checkpoints.
      objectives: the objective of each client on its private data, given like `model`, except that
        a dict may leave out "supervised" clients. An "unlabelled" client has samples without
        labels, and learns only from others' predictions on the public set. So does a
        self-supervised client, but its private images also train its backbone, by "rotation",
        "simclr" or a `mhd_jax.data.pretext` task with its own options.
      label_sets: the classes of each client's task, if it does not have all classes: "own" for
        those of which the client has private samples with labels (all classes, if it has no
        labels); a list of K lists of classes; a dict of such lists by client, in which clients
        that are left out have all classes; or such a dict as text, "0-3:0-4;4-7:5,6". A client
        neither predicts nor learns other classes, see `mhd_jax.core.label_sets`; its β_sh is at
        most its share of the classes.
      adversaries: the clients that send false predictions, and the kind of each, from
        `mhd_jax.exchange.adversaries.KINDS`: {7: "label_flip"}.
      optimizers: optimizers by the name of a model, for clients that do not take the run's:
        `optim.SGD` with another learning rate, for example, or an optax transformation.
      norm: the normalisation of models given by name; None takes each model's default.
      initialization: the initialization of the layers, heads included, of models given by name:
        "pytorch" or "he_fan_out", see `mhd_jax.models.initialization`; None is each model's own.
      test_partition: the client of each test sample, −1 for nobody's, as an array, a list, or the
        path of a ``.npy`` or ``.csv`` file: each client is then also evaluated on its own test
        samples (`beta_own`). None takes the owners of the data, if clients are its owners, and
        otherwise leaves test samples without owners.
      seed: the seed of the split.

    Returns:
      Clients whose private sets, public set, validation set and test set are disjoint, except for
      what `allow_overlap` allows.

    Raises:
      ConfigError: a setting is invalid; the message names it.
    """
    require_devices()
    data = load(data)
    partition = _partition(partition, data)
    if num_clients is None:
        num_clients = len(partition.names) if isinstance(partition, Owners) else _NUM_CLIENTS
    _require_enough(data, num_clients)
    others = None if public is None else load(public)
    require_kind("allow_overlap", "bool", allow_overlap)
    if allow_overlap and others is None:
        raise ConfigError(
            "allow_overlap is for another public data set; give one, or leave it out."
        )
    fraction = _public_fraction(public_fraction, others, partition)
    set_aside = SetAside(fraction, validation_fraction, seed)
    goals = _objectives(objectives, num_clients, data)
    if model is None:
        model = default_name(data.vocabulary_size is not None)
    groups = _with_optimizers(_groups(model, goals, norm, initialization, data), optimizers or {})
    false = misbehaviour.checked(adversaries or {}, num_clients)

    split = _split(partition, data, num_clients, set_aside)
    split, public_inputs = _with_public(split, data, others, public_size, seed)
    _require_apart(data, split, None if allow_overlap else others, public_inputs)
    clients = Clients(
        data,
        groups,
        split.owner,
        split.public,
        public_inputs,
        split.validation,
        np.zeros((num_clients, data.num_classes)),
        tuple(goal if isinstance(goal, str) else goal.name for goal in goals),
        {},
        adversaries=false,
        test_owner=_test_owner(test_partition, partition, len(data.test_labels), num_clients),
    )
    clients = _with_distributions(clients, label_sets)

    found = {
        **_described_models(clients, initialization, goals),
        "partition": _described(partition),
        "split_digest": array_digest(split.owner, split.public, split.validation),
        **_drawn_settings(partition, set_aside),
        "public_size": public_size,
    }
    if isinstance(partition, Owners):
        found["owners"] = list(partition.names)
    if others is not None:
        found["public_dataset"] = others.name
        found["public_digest"] = array_digest(*jax.tree.leaves(public_inputs))
    if allow_overlap:
        found["allow_overlap"] = True
    if clients.test_owner is not None:
        found["test_split_digest"] = array_digest(clients.test_owner)
    return dataclasses.replace(clients, settings=found)


def _require_enough(data: Dataset, num_clients: int) -> None:
    """Raises `ConfigError` unless there is a training sample for each client."""
    require_counts(num_clients=num_clients)
    if num_clients > len(data.labels):
        raise ConfigError(
            f"num_clients is {num_clients:,}, but {data.name} has {len(data.labels):,} training "
            "samples, of which each client needs one; take fewer clients."
        )


def _with_public(
    split: Split, data: Dataset, others: Dataset | None, size: int | None, seed: int
) -> tuple[Split, PyTree]:
    """Returns the split with `size` public samples, or with none of its own, and the public set."""
    if others is None:
        public = _some(split.public, size, seed)
        return dataclasses.replace(split, public=public), select(data.inputs, public)
    data.require_alike(others)
    rows = _some(np.arange(len(others.labels)), size, seed)
    return dataclasses.replace(split, public=np.zeros(0, int)), select(others.inputs, rows)


def _with_distributions(clients: Clients, label_sets: LabelSets | None) -> Clients:
    """Returns the clients with their label sets and label distributions."""
    if label_sets is not None and not clients.task.has_classes:
        raise ConfigError("label_sets are of classes, but clients predict numbers; leave them out.")
    sizes = clients.label_counts().sum(axis=1)
    if (sizes == 0).any():
        raise ConfigError(
            f"client {int(np.argmin(sizes))} got no private samples; use fewer than "
            f"{len(sizes)} clients, a smaller public_fraction, or another partition or seed."
        )
    counts = clients.labelled_counts()
    return dataclasses.replace(
        clients,
        label_sets=resolved(label_sets, counts),
        label_distributions=counts / sizes[:, None],
    )


def _described_models(
    clients: Clients, initialization: str | None, goals: Sequence[str | Pretext]
) -> dict[str, Any]:
    """Returns the settings of the data set and of the clients' models and tasks."""
    data, known = clients.data, clients.label_sets
    found = {
        "dataset": data.name,
        "dataset_digest": digest(data),
        "preparation": dataclasses.asdict(data.preparation),
        "num_clients": clients.num_clients,
        "models": [f"{group.name}:{len(group.members)}" for group in clients.groups],
        "backbones": [repr(group.backbone).replace("\n", " ") for group in clients.groups],
        "initialization": initialization,
        "pretrained": [_described_weights(group) for group in clients.groups]
        if any(group.weights for group in clients.groups)
        else None,
        "objectives": list(map(str, goals)) if set(goals) != {"supervised"} else None,
        "label_sets": known if known is None else [np.flatnonzero(row).tolist() for row in known],
        "adversaries": clients.adversaries or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _described_weights(group: ClientGroup) -> dict[str, Any]:
    weights = group.weights or {}
    digest = array_digest(*(weights[name] for name in sorted(weights)))
    return {"digest": digest, "names": sorted(weights), "frozen": list(group.frozen)}


def _public_fraction(given: float | None, others: Dataset | None, partition: Any) -> float:
    """Returns γ; raises `ConfigError` if it is given although the public samples are determined."""
    require_kind("public_fraction", "float | None", given)
    if given is None:
        return _PUBLIC_FRACTION if others is None else 0.0
    if others is not None and given > 0:
        raise ConfigError(f"public samples are those of {others.name}; leave public_fraction out.")
    if split_files.is_whole(partition):
        raise ConfigError(f"{partition} says which samples are public; leave public_fraction out.")
    return given


def _require_apart(
    data: Dataset, split: Split, public: Dataset | None, public_inputs: PyTree
) -> None:
    """Raises `ConfigError` if public samples of another data set also have a role in `data`.

    It warns if test samples are also training samples. `public` is None if the public set is a
    share of the data, or may overlap.
    """
    training, test = sample_keys(data.inputs), sample_keys(data.test_inputs)
    if twice := num_common(test, training):
        warn(
            f"{twice:,} of the {len(test):,} test samples of {data.name} are training samples, too, "
            "which flatters the accuracies; leave them out of one of the two."
        )
    if public is None:
        return
    others = {
        "private": training[split.owner >= 0],
        "validation": training[split.validation],
        "test": test,
    }
    keys = sample_keys(public_inputs)
    common = {role: num_common(keys, of_role) for role, of_role in others.items()}
    if any(common.values()):
        found = ", ".join(f"{count:,} {role}" for role, count in common.items() if count)
        raise ConfigError(
            f"of the {len(keys):,} public samples of {public.name}, some have another role in "
            f"{data.name} ({found}); choose others, take a share of {data.name} itself by "
            "public_fraction, or set allow_overlap."
        )


def _some(rows: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    """Draws `count` of the rows, ascending; with one seed, fewer rows are a subset of more."""
    if count is None:
        return rows
    if not is_integer(count) or not 1 <= count <= len(rows):
        raise ConfigError(
            f"public_size must be in 1 … {len(rows)}, as many public samples as there are, not "
            f"{count!r}."
        )
    return np.sort(np.random.default_rng([seed, 2]).permutation(rows)[:count])


def _split(partition: Any, data: Dataset, num_clients: int, set_aside: SetAside) -> Split:
    """Returns the split by a partition or an assignment, after checking that it is consistent."""
    given, source = (data.labels, num_clients, set_aside), "the partition"
    if isinstance(partition, pathlib.Path):
        split, source = split_files.load(partition, *given), str(partition)
    elif isinstance(partition, Owners):
        split = partition.split(num_clients, set_aside)
    elif isinstance(partition, Mapping):
        split = split_files.from_rows(partition, *given)
    elif callable(partition):
        split = dealt(partition, data.labels, num_clients, data.num_classes, set_aside)
    else:
        split = split_files.from_owners(partition, *given)
    split.require_exact(num_clients, source)
    return split


def _test_owner(
    given: Any, partition: Any, num_samples: int, num_clients: int
) -> np.ndarray | None:
    """Returns the client of each test sample, int [N_test]; None if test samples have no owners."""
    if given is not None:
        return split_files.test_owners(given, num_samples, num_clients)
    return partition.of_test if isinstance(partition, Owners) else None


def _drawn_settings(partition: Any, set_aside: SetAside) -> dict[str, Any]:
    """Returns the settings that determine a split's draws; none if a file holds the whole split."""
    if split_files.is_whole(partition):
        return {}
    return {
        "public_fraction": set_aside.public_fraction,
        "validation_fraction": set_aside.validation_fraction,
        "split_seed": set_aside.seed,
    }


def _described(partition: Any) -> str:
    """Returns a partition as text for the settings.

    Users' functions, files and arrays are told apart by the digest of the split.
    """
    if isinstance(partition, pathlib.Path):
        return "file"
    if isinstance(partition, Owners):
        return "owners"
    if not callable(partition):
        return "given"
    return repr(partition) if isinstance(partition, tuple(PARTITIONS.values())) else "custom"


def _partition(partition: Any, data: Dataset) -> Any:
    """Converts anything that users may pass as a partition to one of five types.

    Returns:
      A function, the path of an assignment, owners [N], a dict from clients to their rows, or the
      owners of the data.
    """
    if partition is None:
        return data.owners or PrimaryLabels(labels_per_client=min(2, data.num_classes))
    if isinstance(partition, str):
        return named(partition)
    if isinstance(partition, os.PathLike):
        return expanded(partition)
    if isinstance(partition, type) and partition in PARTITIONS.values():  # named, but not called
        return partition()
    if isinstance(partition, list | tuple) and any(
        isinstance(part, list | tuple | np.ndarray) for part in partition
    ):
        return dict(enumerate(partition))  # each client's rows
    if not (callable(partition) or isinstance(partition, Mapping) or hasattr(partition, "__len__")):
        raise ConfigError(
            "a partition is a name, a function (labels, num_clients, num_classes, rng), each "
            "training sample's client, as an array, a list or a file, or a dict of each client's "
            f"rows, not of type {type(partition).__name__}."
        )
    return partition


def _objectives(given: Any, num_clients: int, data: Dataset) -> tuple[str | Pretext, ...]:
    """Returns the objective of each client, a name or a pretext task."""
    if isinstance(given, Mapping):
        require_clients("objectives must name clients", given, num_clients)
        given = [given.get(client, "supervised") for client in range(num_clients)]
    goals = of_each(given, num_clients, "objectives", "supervised:7,unlabelled:1")
    goals = [
        PRETEXTS[goal]() if isinstance(goal, str) and goal in PRETEXTS else goal for goal in goals
    ]
    for goal in goals:
        if isinstance(goal, Pretext):
            require_hashable(f"the objective {goal.name}", goal)
            _require_images(goal, data)
        elif goal not in OBJECTIVES:
            raise ConfigError(f"unknown objective {goal!r}; choose one of {', '.join(OBJECTIVES)}.")
    if "supervised" not in goals:
        raise ConfigError("nobody has labels to learn from; leave one client supervised.")
    return tuple(goals)


def _require_images(pretext: Pretext, data: Dataset) -> None:
    """Raises `ConfigError` if samples are not images, or not square images for a rotation task."""
    data.require_images(f"the objective {pretext.name} is", "make these clients unlabelled")
    height, width = (data.input_shape or (0, 0))[:2]
    if pretext.square and height != width:
        raise ConfigError(
            f"the objective {pretext.name} turns images, which must be square, but they have "
            f"{height} × {width} pixels; set crop_size, or choose another objective."
        )


def _groups(
    model: ModelChoice,
    goals: Sequence[str | Pretext],
    norm: str | None,
    initialization: str | None,
    data: Dataset,
) -> tuple[ClientGroup, ...]:
    """Returns the groups of clients of one architecture, in the order of their first clients."""
    choices = map(as_backbone, of_each(model, len(goals), "models", "resnet18:4,resnet34:4"))
    members: dict[Any, list[int]] = {}
    for client, (choice, goal) in enumerate(zip(choices, goals, strict=True)):
        if not isinstance(_model_of(choice), str | nn.Module):
            raise ConfigError(
                "a model is a name, a Flax module that returns an embedding, an NNX class of such "
                "modules or mhd_jax.models.from_nnx(...) of one with arguments, or one of these "
                f"with weights, mhd_jax.pretrained(...), not {choice!r}."
            )
        pretext = None if isinstance(goal, str) else goal
        try:
            members.setdefault((choice, pretext), []).append(client)
        except TypeError as error:
            raise ConfigError(
                f"client {client}: {backbone_name(choice)} cannot be hashed ({in_a_line(error)}); give "
                "its attributes as numbers, texts or tuples, not as lists or arrays; weights come by "
                "mhd_jax.pretrained(model, weights)."
            ) from error
    groups = []
    for (choice, pretext), positions in members.items():
        weights: Mapping[str, np.ndarray] | None = None
        frozen: tuple[str, ...] = ()
        if isinstance(choice, Pretrained):
            weights, frozen, choice = choice.weights, choice.frozen, choice.model
        if isinstance(choice, str):
            tokens = data.vocabulary_size, data.padding
            name, backbone = choice, build_backbone(choice, norm, data.input_shape, *tokens)
            start = _initialization(choice, initialization)
        else:
            start = None
            name, backbone = backbone_name(choice).lower(), choice
            who = f"clients {', '.join(map(str, positions))}"
            try:
                require_backbone(choice, data.samples(3), data.num_outputs)
            except ConfigError as error:
                raise ConfigError(f"{who}: {error}") from error
            except Exception as error:
                samples = kinds.shown(data.inputs)
                error.add_note(f"It was raised in the model of {who}, whose samples are {samples}.")
                raise
        group = ClientGroup(
            name,
            backbone,
            tuple(positions),
            pretext=pretext,
            initialization=start,
            weights=weights,
            frozen=frozen,
        )
        if pretext is not None and type(pretext) not in PRETEXTS.values():
            require_pretext(group.client_model(1, data.num_outputs), data.samples(_TRIED))
        groups.append(group)
    if not any(isinstance(_model_of(choice), str) for choice, _ in members):
        for what, given in (("norm", norm), ("initialization", initialization)):
            if given is not None:
                raise ConfigError(
                    f"{what} is that of models given by name, but there are none; leave it out."
                )
    return tuple(groups)


def _model_of(choice: Any) -> Any:
    """Returns a choice's model without the weights that it may start from."""
    return choice.model if isinstance(choice, Pretrained) else choice


def _initialization(name: str, given: Any) -> str | None:
    """Returns the initialization of a model; raises `ConfigError` if the model does not have it."""
    known = MODELS[name].initializations
    if given is None or given in known:
        return given
    raise ConfigError(
        f"{name} does not know the initialization {given!r}; "
        + (f"choose one of {', '.join(known)}, or leave it out." if known else "leave it out.")
    )


def _with_optimizers(
    groups: tuple[ClientGroup, ...], optimizers: Mapping[str, Optimizer]
) -> tuple[ClientGroup, ...]:
    if not isinstance(optimizers, Mapping):
        raise ConfigError(
            "optimizers are those of some models by name, like {'resnet18': mhd.optim.SGD(0.1)}; one of "
            "all clients is an argument of simulate."
        )
    unknown = sorted(map(str, set(optimizers) - {group.name for group in groups}))
    if unknown:
        raise ConfigError(
            f"there is an optimizer for {', '.join(unknown)}, but the clients' models are "
            f"{', '.join(group.name for group in groups)}."
        )
    return tuple(
        dataclasses.replace(group, optimizer=optimizers.get(group.name)) for group in groups
    )


def of_each(given: Any, num_clients: int, what: str, example: str) -> list[Any]:
    """Expands a setting to a list with one choice for each client.

    Args:
      given: one choice for all clients, "name:count,…", a list, or a dict by client.
      num_clients: K, the number of clients.
      what: the name of the setting, for error messages.
      example: an example of "name:count,…", for error messages.
    """
    if isinstance(given, Mapping):
        require_clients(f"the {what} must name clients", given, num_clients, everyone=True)
        return [given[client] for client in range(num_clients)]
    if isinstance(given, str):
        parts = [part.strip() for part in given.split(",")]
        if len(parts) == 1 and ":" not in given:
            return [given] * num_clients
        counts: list[tuple[str, int]] = []
        for part in parts:
            name, _, count = part.partition(":")
            if not count.isdecimal() or len(count) > _MOST_DIGITS:
                raise ConfigError(
                    f"cannot read the {what} {given!r}; write one name, or counts that add up, like "
                    f"{example}."
                )
            counts.append((name, int(count)))
    elif isinstance(given, Sequence):
        counts = [(choice, 1) for choice in given]
    else:
        return [given] * num_clients
    total = sum(count for _, count in counts)
    if total != num_clients:
        raise ConfigError(f"the {what} are for {total} clients, but there are {num_clients}.")
    return [choice for choice, count in counts for _ in range(count)]
