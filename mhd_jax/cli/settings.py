"""`RunSettings`: the values of a binary's flags in one frozen record, from which runs are made."""

from __future__ import annotations

import dataclasses
import fractions
import functools
import inspect
import math
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

from flax import linen

import mhd_jax as mhd
from mhd_jax.cli import own_code
from mhd_jax.clients import of_each
from mhd_jax.data.augmentation import parse
from mhd_jax.data.partition import Partition, PrimaryLabels
from mhd_jax.data.sources import options_of
from mhd_jax.engine import memory
from mhd_jax.engine.host import HostSettings
from mhd_jax.engine.origins import opened
from mhd_jax.engine.prepare import prepare
from mhd_jax.engine.run import Run
from mhd_jax.engine.settings import DEFAULT_STEPS, Settings
from mhd_jax.engine.simulate import require_startable
from mhd_jax.runs.records import jsonable
from mhd_jax.studies.compare import settings_for
from mhd_jax.training.optim import SGD, AdamW

# Settings that are one run's own, and those of all runs of one call.
_OF_A_RUN = {field.name for field in dataclasses.fields(Settings)} - {"seed", "eval_every"}
_OF_THE_HOST = (
    "eval_every",
    "steps_per_dispatch",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "fall_back",
)
# Of algorithms in rounds, the hyperparameters that count a round's private and its public steps.
_IN_ROUNDS = {
    "fedmd": ("revisit_steps", "digest_steps"),
    "selective_fd": ("private_steps", "distill_steps"),
    "ds_fl": ("private_steps", "distill_steps"),
}
DATA_OPTIONS = (
    "data_dir",
    "train_split",
    "test_split",
    "image_size",
    "pixels",
    "tokens",
    "vocabulary_size",
    "regression",
    "test_fraction",
    "label",
    "features",
    "owners",
    "categories",
    "missing",
    "text",
    "text_length",
)
# Cases and seeds share loaded data, and the run that they continue.
_load = functools.lru_cache(maxsize=2)(mhd.data.load)
_opened = functools.lru_cache(maxsize=1)(opened)


@functools.lru_cache(maxsize=1)
def _prepared(
    dataset: str, crop_size: int | None, standardize: bool | None, **options: Any
) -> mhd.data.Dataset:
    """Returns loaded data with its preparation; channels of large data take seconds to measure."""
    return _load(dataset, **options).prepared(crop_size=crop_size, standardize=bool(standardize))


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """The settings of a run without its algorithm and its seed; names are those of the flags."""

    dataset: str = "digits"
    data_dir: str | None = None
    train_split: str | None = None
    test_split: str | None = None
    crop_size: int | None = None
    standardize: bool | None = None
    augmentation: str = ""
    augment_public: bool = Settings.augment_public
    image_size: int | None = None
    pixels: bool | None = None
    tokens: bool | None = None
    vocabulary_size: int | None = None
    regression: bool | None = None
    test_fraction: float | None = None
    label: str | None = None
    features: str | None = None
    owners: str | None = None
    categories: str | None = None
    missing: str | None = None
    text: str | None = None
    text_length: int | None = None
    num_clients: int = 8
    topology: str = "complete"
    topology_options: tuple[tuple[str, Any], ...] = ()
    partition: Partition | pathlib.Path | None = PrimaryLabels()
    public_dataset: str | None = None
    public_split: str | None = None
    public_fraction: float | None = None
    public_size: int | None = None
    allow_overlap: bool = False
    validation_fraction: float = 0.0
    model: str = "mlp"
    objectives: str = "supervised"
    contrastive_views: str = ""
    label_sets: str | None = None
    adversaries: str = ""
    norm: str | None = None
    initialization: str | None = None
    steps: int | None = Settings.steps
    epochs: float | None = Settings.epochs
    batch_size: int = Settings.batch_size
    public_batch_size: int = Settings.public_batch_size
    optimizer: SGD | AdamW = SGD()
    learning_rates: str = ""
    eval_every: int = Settings.eval_every
    eval_batch_size: int = Settings.eval_batch_size
    compute_dtype: str = Settings.compute_dtype
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2
    keep_best: bool = False
    fall_back: bool = False
    steps_per_dispatch: int | None = None
    data_placement: str = Settings.data_placement
    client_chunk: int | None = Settings.client_chunk
    num_devices: int | None = Settings.num_devices
    faults: mhd.Faults | None = Settings.faults
    on_nonfinite: str = Settings.on_nonfinite
    continue_from: str | None = None
    metrics: str | None = None
    test_partition: str | None = None

    def of_equal_budget(self, algorithm: mhd.Algorithm) -> RunSettings:
        """Returns the settings with which an algorithm sees as many private samples as others.

        Algorithms that alternate between private and public steps take the public ones on top:
        twice as many in all, where a round has as many of either.
        """
        times = fractions.Fraction(1)
        if algorithm.name in _IN_ROUNDS:
            private, public = (algorithm.hyperparameters[key] for key in _IN_ROUNDS[algorithm.name])
            times += fractions.Fraction(public, private)
        every = math.ceil(times * self.eval_every)
        if self.epochs is not None:
            return dataclasses.replace(self, epochs=float(times) * self.epochs, eval_every=every)
        steps = math.ceil(times * (self.steps or DEFAULT_STEPS))
        return dataclasses.replace(self, steps=steps, eval_every=every)

    def clients(
        self, seed: int, data: mhd.data.Dataset | None = None, model: Any = None
    ) -> mhd.Clients:
        """Makes the clients, of other `data` or another `model` where these are given.

        The split derives from the seed.
        """
        return mhd.make_clients(
            self._data() if data is None else data,
            self.num_clients,
            self._model() if model is None else model,
            partition=self.partition,
            public=self._public_data(),
            public_fraction=self.public_fraction,
            public_size=self.public_size,
            allow_overlap=self.allow_overlap,
            validation_fraction=self.validation_fraction,
            objectives=self._objectives(),
            label_sets=self.label_sets,
            adversaries=self._adversaries(),
            optimizers=self._optimizers(),
            norm=self.norm,
            initialization=self.initialization,
            test_partition=self.test_partition,
            seed=seed,
        )

    def simulate(
        self,
        algorithm: mhd.Algorithm,
        seeds: Sequence[int],
        workdirs: Sequence[pathlib.Path],
        callbacks: Sequence[Any],
    ) -> list[mhd.Result]:
        """Runs each seed, saved in its folder, and returns the results."""
        found = simulate_cases([(self, algorithm, seed) for seed in seeds], workdirs, callbacks)
        return [result for result in found if isinstance(result, mhd.Result)]

    def check(
        self, algorithm: mhd.Algorithm, seed: int, callbacks: Sequence[Any] = ()
    ) -> dict[str, Any]:
        """Returns the settings of a run as in its `config.json`.

        Args:
          algorithm: what the clients do.
          seed: of data split and training.
          callbacks: what is to watch the run.

        Raises:
          mhd.ConfigError: the run could not start, whatever its folder holds.
        """
        return jsonable(self.prepared(algorithm, seed, callbacks).settings)

    def prepared(self, algorithm: mhd.Algorithm, seed: int, callbacks: Sequence[Any] = ()) -> Run:
        """Returns a run that is ready to start, as `check` finds; nothing of it is computed."""
        run = prepare(**self.arguments(algorithm, seed), eval_every=self.eval_every)
        # A command's runs have a folder; which one does not matter here.
        host = HostSettings(workdirs=["run"], callbacks=callbacks, **self.on_the_host)
        require_startable(run, host)
        return run

    @property
    def on_the_host(self) -> dict[str, Any]:
        """The settings of all runs of one call: when they evaluate and save, and what they measure."""
        own = {name: getattr(self, name) for name in _OF_THE_HOST}
        return {**own, "metrics": _metrics(self.metrics), "progress": False}

    def data_bytes(self) -> int:
        """Returns the bytes of the training data in memory."""
        return memory.num_bytes(self._data().inputs)

    def arguments(
        self, algorithm: mhd.Algorithm, seed: int, data: mhd.data.Dataset | None = None
    ) -> dict[str, Any]:
        """Returns the arguments of one run for `mhd.simulate_many`; `clients` says what `data` is."""
        clients = self.clients(seed, data)
        own = own_code.digests(
            *(self.model, self.topology, self.metrics, self.partition, algorithm.factory),
            *algorithm.hyperparameters.values(),
        )
        if own:
            settings = {**clients.settings, "own_code": own}
            clients = dataclasses.replace(clients, settings=settings)
        return {
            "clients": clients,
            "topology": self._topology(seed),
            "algorithm": algorithm,
            "seed": seed,
            "init": _opened(self.continue_from),
            **settings_for(algorithm, {name: getattr(self, name) for name in _OF_A_RUN}),
        }

    def _model(self) -> Any:
        """Returns the model; of users' own code, a module, or what a function or a class makes."""
        if not own_code.is_own(self.model):
            return self.model
        found = own_code.load(self.model)
        is_nnx = isinstance(found, type) and not issubclass(found, linen.Module)
        return found() if _is_maker(found) and not is_nnx else found

    def _adversaries(self) -> dict[int, str]:
        """Parses the kind of each adversary, by client."""
        found = {}
        for part in filter(None, self.adversaries.split(",")):
            client, colon, kind = part.partition(":")
            if not (client.strip().isdecimal() and len(client) < 10 and colon):
                raise mhd.ConfigError(
                    f"cannot read the adversaries {self.adversaries!r}; write them like "
                    "3:constant,7:label_flip."
                )
            if int(client) in found:
                raise mhd.ConfigError(
                    f"the adversaries {self.adversaries!r} name client {int(client)} twice; name "
                    "each once."
                )
            found[int(client)] = kind.strip()
        return found

    def _optimizers(self) -> dict[str, SGD | AdamW]:
        """Returns the optimizers of models with their own learning rate, by model."""
        found = {}
        for part in filter(None, self.learning_rates.split(",")):
            name, _, rate = part.partition(":")
            try:
                if name.strip() in found:
                    raise ValueError
                found[name.strip()] = dataclasses.replace(self.optimizer, learning_rate=float(rate))
            except ValueError:
                raise mhd.ConfigError(
                    f"cannot read the learning rates {self.learning_rates!r}; write positive ones, "
                    "one for a model, like resnet18:0.1,resnet34:0.03."
                ) from None
        return found

    def _objectives(self) -> str | list[str | mhd.pretext.Pretext]:
        views = parse(self.contrastive_views)
        if views is None:
            return self.objectives
        names = of_each(self.objectives, self.num_clients, "objectives", "supervised:7,simclr:1")
        if "simclr" not in names:
            raise mhd.ConfigError(
                "contrastive_views are those of clients with the objective simclr, but nobody has it."
            )
        simclr = mhd.pretext.SimCLR(views)
        return [simclr if name == "simclr" else name for name in names]

    def _data(self) -> mhd.data.Dataset:
        given = self._data_options()
        own = options_of(self.dataset, given)
        public = () if self.public_dataset is None else self._known_of_public(given)
        options = {k: v for k, v in given.items() if k in own or k not in public}
        if self.crop_size is None and self.standardize is None:
            return _load(self.dataset, **options)
        return _prepared(self.dataset, self.crop_size, self.standardize, **options)

    def _public_data(self) -> mhd.data.Dataset | None:
        if self.public_dataset is None:
            if self.public_split is not None:
                raise mhd.ConfigError(
                    "public_split needs a public_dataset; give one, or leave it out."
                )
            return None
        given = self._data_options()
        known = self._known_of_public(given)
        options = {k: v for k, v in given.items() if k in known}
        if "train_split" in known:
            split = self.public_split or "train"
            # The public data set's test samples are not used.
            options |= {"train_split": split, "test_split": f"{split.split('[')[0]}[:1]"}
        elif self.public_split is not None:
            raise mhd.ConfigError(
                f"public_split is of prepared data sets, which {self.public_dataset} is not; leave it out."
            )
        if "text" in options and (vocabulary := self._data().vocabulary) is not None:
            options |= {"vocabulary": vocabulary, "vocabulary_size": None, "text_length": None}
        return _load(self.public_dataset, **options)

    def _known_of_public(self, given: Collection[str]) -> set[str]:
        """Returns the options that the public data set takes; owners are of private samples."""
        return {*options_of(self.public_dataset, given)} - {"owners"}

    def _data_options(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in DATA_OPTIONS}
        return {name: value for name, value in options.items() if value is not None}

    def _topology(self, seed: int) -> mhd.Topology:
        if own_code.is_own(self.topology):
            return self._own_topology(own_code.load(self.topology), seed)
        options = dict(self.topology_options)
        if "seed" in mhd.topology.options(self.topology):  # random graphs differ by seed
            options.setdefault("seed", seed)
        return mhd.topology.named(self.topology, self.num_clients, **options)

    def _own_topology(self, found: Any, seed: int) -> mhd.Topology:
        """Returns a graph, or what a function of `num_clients` (and `seed`) makes."""
        if inspect.isroutine(found):
            known = {"num_clients": self.num_clients, "seed": seed}
            asked = inspect.signature(found).parameters
            if "num_clients" in asked:
                found = found(**{name: known[name] for name in known if name in asked})
        return mhd.topology.as_topology(found, self.num_clients)


def _is_maker(found: Any) -> bool:
    """Tells whether something makes a model, and is none itself."""
    return isinstance(found, type) or inspect.isroutine(found)


def _metrics(text: str | None) -> dict[str, Any]:
    """Returns metrics by name, of the library or of users' own code."""
    found: dict[str, Any] = {}
    for name in filter(None, (text or "").split(",")):
        if own_code.is_own(name):
            found[name.rpartition(":")[2]] = own_code.load(name)
        else:
            found |= mhd.metrics.named([name])
    return found


def simulate_cases(
    cases: Sequence[tuple[RunSettings, mhd.Algorithm, int]],
    workdirs: Sequence[pathlib.Path],
    callbacks: Sequence[Any],
    *,
    keep_going: bool = False,
    write_reports: bool = True,
) -> list[mhd.Result | mhd.DivergedError]:
    """Calls `mhd.simulate_many` for cases of settings, an algorithm and a seed.

    The first case's settings determine when all runs evaluate and save.
    """
    return mhd.simulate_many(
        [settings.arguments(algorithm, seed) for settings, algorithm, seed in cases],
        **cases[0][0].on_the_host,
        workdirs=workdirs,
        callbacks=callbacks,
        keep_going=keep_going,
        write_reports=write_reports,
    )
