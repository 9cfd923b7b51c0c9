"""The flags that the binaries share, and their conversion to settings.

Each algorithm's hyperparameters become flags automatically: their names, types and defaults are
those of the algorithm's factory. Only their help is written here.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from absl import flags

import mhd_jax as mhd
from mhd_jax import topology as topologies
from mhd_jax.algorithms import ALGORITHMS, hyperparameters
from mhd_jax.algorithms.base import factory
from mhd_jax.algorithms.ds_fl import AGGREGATIONS
from mhd_jax.algorithms.fedmd import DIGEST_LOSSES
from mhd_jax.algorithms.fedproto import WEIGHTINGS
from mhd_jax.algorithms.idkd import LABEL_CHOICES
from mhd_jax.algorithms.mhd import OWN_CANDIDATES, PUBLIC_BATCHES
from mhd_jax.cli import data_flags, own_code, watching
from mhd_jax.cli.field_flags import defaults, define, define_choice, define_fields
from mhd_jax.cli.settings import RunSettings
from mhd_jax.clients import OBJECTIVES
from mhd_jax.engine.faults import ON_NONFINITE
from mhd_jax.engine.settings import COMPUTE_DTYPES, DATA_PLACEMENTS
from mhd_jax.exchange import density
from mhd_jax.exchange.adversaries import KINDS
from mhd_jax.exchange.selection import TARGET_SELECTIONS
from mhd_jax.models import INITIALIZATIONS, MODELS, NORMS, default_name
from mhd_jax.studies.folder import require_folders
from mhd_jax.topology.graphs import TOPOLOGIES
from mhd_jax.training.optim import OPTIMIZERS, SCHEDULES
from mhd_jax.training.projection import EMBEDDING_PROJECTIONS

FLAGS = flags.FLAGS

HYPERPARAMETER_HELP = {
    "num_aux_heads": "m, auxiliary heads of each client; 0 is naive distillation.",
    "num_targets": "Δ, teachers drawn for each client and step, or 'all'.",
    "nu_aux": "Weight of the auxiliary heads' distillation.",
    "nu_emb": "Weight of the embeddings' distillation; 0 sends no embeddings.",
    "embedding_projection": "How embeddings of unequal width are compared: none refuses them; linear, "
    "by maps that each client learns to its teachers' widths; shared_width, by as many coordinates as "
    "the narrowest has.",
    "nu_naive": "Weight of naive distillation.",
    "target_selection": "Which candidate a head learns from, for each public sample.",
    "include_self": "Whether a client's own head is among its candidates.",
    "own_candidate": "Which own head that is: the one of the teachers' rank, or the main head.",
    "calibrate_every": "Steps after which each head's confidence is calibrated anew, by a temperature fitted "
    "on the validation set (--validation_fraction); 0 takes confidence as it is.",
    "density_weight": "Weight of the loss of density ratios; by default 1 where --target_selection needs "
    "them, which are trained and sent nowhere else.",
    "density_weights": "What a main head counts in a mixture of teachers: clients count alike, samples by "
    "how many labelled private ones they have.",
    "density_clip": "The largest logarithm of a density ratio, either way, that is used.",
    "density_divides": "Whether a teacher's density ratios are divided by max(1, their mean over the "
    "public batch), which limits what an adversary can claim.",
    "density_cap": "The largest density ratio that is believed: a number; shares, one over the teacher's "
    "share of all labelled private samples; or none.",
    "density_gradient": "What becomes of density ratios' gradient at the embedding: stopped or flowing.",
    "same_level": "Whether the neighbours' heads of the same rank are candidates too.",
    "temperature": "Temperature of the distillation's softmax.",
    "public_batch": "Whether all clients see the same public samples in a step.",
    "public_updates_stats": "Whether public samples update BatchNorm statistics.",
    "pool_size": "N_P, checkpoints of neighbours in each client's pool, from which teachers are drawn; 0 "
    "draws them among the neighbours as they are.",
    "pool_refresh": "S_P, steps after which each client renews one random slot of its pool.",
    "teacher_delay": "Teachers are the neighbours as they were so many steps ago.",
    "lambda_m": "λ_m, weight of the model-variant cross-feature loss.",
    "lambda_d": "λ_d, weight of the data-variant cross-feature loss; 0 sends no class features.",
    "quasi_global": "Whether gossip has quasi-global momentum, or each client its own.",
    "averaging_rate": "γ, how far clients move to their neighbours' average in a step.",
    "mixing": "Weights of that average: equal ones, or Metropolis-Hastings.",
    "gossip_rounds": "How often neighbours average in a step.",
    "push_sum": "Whether gossip averages by push-sum, which serves directed graphs.",
    "mu": "μ of the quasi-global momentum paper's Algorithm 1; left out, the CCL authors' form.",
    "start_step": "E, the step from which neighbours label public samples.",
    "threshold": "τ, the least confidence of a label.",
    "label_choice": "What becomes of several labels of a sample: their mean, or the label of who has "
    "the most private samples of the class.",
    "lambda_p": "λ, weight of the distance to class prototypes; 0 sends none.",
    "weighting": "Whether a prototype weighs the means of a class by samples, or all clients alike.",
    "rho": "ρ, weight of the pull towards the network's average decisions.",
    "digest_steps": "Steps of a round that learn from the consensus.",
    "revisit_steps": "Steps of a round that learn from private data.",
    "digest_loss": "How a client learns from the consensus.",
    "local_steps": "Steps of a round, after which clients take the average of parameters, or of prototypes.",
    "private_steps": "Steps of a round that learn from private data.",
    "distill_steps": "Steps of a round that learn from averages of predictions on public samples.",
    "ratio_quantile": "Share of its held-out private samples below whose density ratio a client does not answer "
    "for a public sample.",
    "most_ambiguous": "L1 distance from a one-hot label at which averages are left out; 2 leaves out none.",
    "kernel_width": "Width of the density ratio's kernel, relative to the median distance of public samples.",
    "density_samples": "Most private samples of a client, and public samples, from which its density ratio is "
    "estimated.",
    "aggregation": "How averages of predictions are sharpened.",
    "era_temperature": "T of the softmax that sharpens averages; the smaller, the sharper.",
    "era_exponent": "β, the power that sharpens averages; 1 does not.",
    "cache_steps": "Steps for which a client keeps a public sample's target and does not ask for it; 0 keeps none.",
    "local_epochs": "Length of a round in passes over the average client's data, instead of --local_steps.",
    "reset_momentum": "Whether each round starts with momentum 0, or it stays at home from round to round.",
    "compression": "What becomes of predictions on their way: none, float16, int8 or top_K classes.",
    "ensembles": "Clients of one architecture that average their parameters, as in fedavg: how many "
    "consecutive ones, like 2, or the clients of each ensemble, like 0,1,2;3,4; by default nobody does.",
    "average_every": "Steps between two averages of an ensemble.",
    "label_smoothing": "Label smoothing of the private cross-entropy. Where several algorithms are compared, "
    "all have 0.1.",
}
# Of hyperparameters, the same for all algorithms that are compared: their own regularisation would be
# compared with it.
EQUAL_TERMS = {"label_smoothing": 0.1}
_CHOICES: dict[str, Sequence[str]] = {
    "target_selection": list(TARGET_SELECTIONS),
    "embedding_projection": EMBEDDING_PROJECTIONS,
    "own_candidate": OWN_CANDIDATES,
    "density_weights": density.WEIGHTS,
    "density_gradient": density.GRADIENTS,
    "public_batch": PUBLIC_BATCHES,
    "mixing": list(topologies.MIXINGS),
    "digest_loss": list(DIGEST_LOSSES),
    "label_choice": LABEL_CHOICES,
    "weighting": WEIGHTINGS,
    "aggregation": list(AGGREGATIONS),
    "norm": NORMS,
    "initialization": list(INITIALIZATIONS),
    "schedule": SCHEDULES,
    "compute_dtype": COMPUTE_DTYPES,
    "data_placement": DATA_PLACEMENTS,
    "on_nonfinite": ON_NONFINITE,
}
_NUMBERS_OR_WORDS: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "num_targets": (int, ("all",)),
    "density_cap": (float, ("none", "shares")),
}
_RUN_HELP = {
    "augmentation": "Random changes of training images: flip, crop:BORDER, resized_crop:LEAST_AREA, "
    "cutout:SIDE, jitter:STRENGTH, joined by commas; flip,crop:4 is usual for CIFAR-10.",
    "augment_public": "Whether public images are augmented too.",
    "topology": f"Who may learn from whom: {', '.join(TOPOLOGIES)}, or the path of an edge list or of "
    "a .npy matrix; or several with the steps at which they start, like ring@0,complete@1000.",
    "model": f"Backbone: {', '.join(MODELS)}; or one for each group of clients, like "
    "resnet18:4,resnet34:4; of texts and tokens bag_of_tokens, unless this flag is given.",
    "objectives": f"What clients learn from their private data: {', '.join(OBJECTIVES)}. All but "
    "supervised have no labels, and learn these from others; one for all, or for each group of "
    "clients, like supervised:6,unlabelled:1,simclr:1.",
    "contrastive_views": "How an image becomes a view (objective simclr), written like "
    "--augmentation; by default resized_crop:0.5,jitter:0.4. Add flip where mirrored images are of "
    "the same class.",
    "label_sets": "The classes that clients know, where not all: own (those of its private labels), "
    "or clients and their classes, like 0-3:0-4;4-7:5,6. A client gives all other classes "
    "probability 0.",
    "adversaries": "Clients that send false predictions, and which, like 3:constant,7:label_flip "
    f"(client 3's and client 7's): {', '.join(KINDS)}. Their own training goes on. Algorithms mhd, "
    "naive, fedmd, idkd, selective_fd, ds_fl.",
    "norm": "Normalisation of the backbone; by default the model's own.",
    "initialization": "How the model and its heads start; by default its own way. pytorch is "
    "PyTorch's default (the CCL authors' LeNet-5 and MobileNetV2), he_fan_out He's for convolutions "
    "(their ResNet and VGG).",
    "steps": "Training steps; by default 2000.",
    "epochs": "Passes over the private data, averaged over clients, instead of --steps.",
    "batch_size": "B, private samples of a client in a step.",
    "public_batch_size": "P, public samples in a step.",
    "learning_rates": "Learning rates of models that have their own, like "
    "resnet18:0.1,resnet34:0.03.",
    "eval_every": "Steps between evaluations.",
    "eval_batch_size": "Test samples evaluated at once.",
    "checkpoint_every": "Steps between checkpoints; by default --eval_every.",
    "keep_checkpoints": "How many of the latest checkpoints stay; the one of the last step does.",
    "continue_from": "Folder of a run from whose last parameters the clients start, at step 0.",
    "metrics": f"Metrics beside accuracy, by comma: {', '.join(mhd.metrics.METRICS)}.",
    "keep_best": "Whether the checkpoint stays, too, whose last head has the highest β_sh on the "
    "validation set (--validation_fraction).",
    "fall_back": "Whether a run whose latest checkpoint is damaged takes the newest one that is "
    "whole.",
    "steps_per_dispatch": "Steps that the device takes between two looks of the host; by default "
    "about half a second's. Results do not depend on it.",
    "compute_dtype": "In which backbones compute; parameters, heads and losses stay in float32.",
    "data_placement": "Where data lives: device; host, from which batches stream ahead of the steps; "
    "auto takes the host for what the device cannot hold. Results do not depend on it.",
    "client_chunk": "Clients of one device that are computed together; fewer take less memory. By "
    "default chosen by model and backend.",
    "num_devices": "Devices that share the clients; by default all, at most one a client.",
    "on_nonfinite": "When a client's loss or parameters are no longer finite: stop, or quarantine the "
    "client and go on with the others.",
}
OPTIMIZER_HELP = {
    "learning_rate": "Peak learning rate.",
    "momentum": "Momentum.",
    "nesterov": "Whether momentum is Nesterov's; by default as in the algorithm's paper: that of "
    f"{', '.join(name for name, build in ALGORITHMS.items() if build().nesterov)} is.",
    "beta1": "β₁, the decay rate of gradients' mean.",
    "beta2": "β₂, the decay rate of the mean of their squares.",
    "weight_decay": "Weight decay on all parameters: of sgd added to the gradient, of adamw beside it.",
    "schedule": "How the learning rate falls.",
    "warmup_steps": "Steps of linear warm-up before the schedule.",
    "clip_norm": "The largest norm of a client's gradient, to which longer ones are scaled down; by "
    "default none are.",
}
FAULT_HELP = {
    "link_loss": "How likely a message from one client to another is lost, at each step and for each "
    "pair.",
    "offline": "Share of its time that each client is offline: it neither trains nor teaches.",
    "offline_steps": "Steps of a spell that is offline, or is not.",
    "offline_trains": "Whether clients go on training while they are offline, with nobody to learn "
    "from.",
    "participation": "Share of the clients that take part in a round, drawn anew for each; the others "
    "neither train nor teach.",
    "participation_steps": "Steps of a round of --participation; for fedavg best its --local_steps, "
    "for fedmd, selective_fd and ds_fl those of its round.",
}
BY_CLIENT_HELP = {
    "stragglers": "Clients that take only every n-th step, like 0:4,3:2 for client:n.",
    "joins": "Clients that come late, like 2:500 for client:step.",
    "leaves": "Clients that leave for good, like 2:500 for client:step.",
}
_TOPOLOGY_HELP = {
    "directed": "Whether clients learn from those ahead alone",
    "offsets": "How far each client's neighbours are from it, round the ring, like 1,4",
    "degree": "Neighbours of each client",
    "edge_probability": "How likely two clients are neighbours",
    "redraw_every": "Steps after which another graph is drawn; by default one serves all steps",
    "num_islands": "Complete graphs that one edge each joins",
    "meet_every": "Steps from one meeting of the islands to the next: only then are they joined; by "
    "default they always are",
}
TOPOLOGY_FLAGS = sorted(_TOPOLOGY_HELP)
_SETTINGS, _FAULTS = map(defaults, (RunSettings, mhd.Faults))


def _parameters(
    builders: Mapping[str, Callable[..., Any]],
) -> dict[str, dict[str, inspect.Parameter]]:
    """Returns the parameters of several functions by their own name and the function's."""
    found: dict[str, dict[str, inspect.Parameter]] = {}
    for function, build in builders.items():
        for name, parameter in inspect.signature(build).parameters.items():
            found.setdefault(name, {})[function] = parameter
    return found


_UNION = re.compile(r"(?:\w+\.)?(?:Optional|Union)\[(.*)\]")


def _written_type(parameter: inspect.Parameter) -> str:
    """Returns the annotation of a parameter as text; without one, the type of its default.

    Of a type or None, however that is written, it is the type.
    """
    kind = parameter.annotation
    if kind is parameter.empty:
        kind = type(parameter.default)
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    union = _UNION.fullmatch(text)
    types = {part.strip() for part in re.split("[|,]", union[1] if union else text)}
    types -= {"None", "NoneType"}
    return types.pop() if len(types) == 1 else text


def described(defaults: Mapping[str, Any]) -> tuple[Any, str]:
    """Returns a hyperparameter's default, and a help text with the algorithms that have it.

    If the algorithms' defaults differ, the default is None and the text holds each.
    """
    first = next(iter(defaults.values()))
    if all(default == first for default in defaults.values()):
        return first, f"({', '.join(defaults)})"
    own = (f"{default} for {algorithm}" for algorithm, default in defaults.items())
    return None, f"(by default {', '.join(own)})"


flags.adopt_module_key_flags(data_flags)
flags.adopt_module_key_flags(watching)
define_fields(RunSettings, _RUN_HELP, _CHOICES)
define_fields(mhd.Faults, FAULT_HELP)
for _name, _text in BY_CLIENT_HELP.items():
    flags.DEFINE_string(_name, "", _text)
_OPTIONS = _parameters(TOPOLOGIES)
for _name, _text in _TOPOLOGY_HELP.items():
    _first = next(iter(_OPTIONS[_name].values()))
    _default = ",".join(map(str, _first.default)) if _name == "offsets" else _first.default
    define(_name, _first.annotation, _default, f"{_text} (topology {', '.join(_OPTIONS[_name])}).")
flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run, or of the study; by default one for each setting, like runs/mhd-ring-3f2a9c.",
)
flags.DEFINE_bool(
    "overwrite", False, "Whether to remove the runs that the workdir holds, and begin anew."
)
_HYPERPARAMETERS = _parameters(ALGORITHMS)
flags.DEFINE_enum("optimizer", "sgd", list(OPTIMIZERS), "How clients take steps.")
_OPTIMIZER = _parameters(OPTIMIZERS)
for _name, _of in {**_OPTIMIZER, **_HYPERPARAMETERS}.items():
    _default, _users = described({owner: p.default for owner, p in _of.items()})
    _annotation = _written_type(next(iter(_of.values())))
    _help = OPTIMIZER_HELP if _name in _OPTIMIZER else HYPERPARAMETER_HELP
    _text = f"{_help.get(_name, '')} {_users}".strip()
    if _name == "target_selection":
        define_choice(_name, _default, _CHOICES[_name], _text)
    else:
        define(_name, _annotation, _default, _text, _CHOICES.get(_name))


def settings(*, strict: bool = True) -> RunSettings:
    """Returns the settings of the run that the flags describe.

    Args:
      strict: whether to refuse options of graphs that the chosen graph does not use.

    Raises:
      mhd.ConfigError: flags that contradict each other, or values that cannot work.
    """
    data = data_flags.values()
    derived = (*data, "optimizer", "topology_options", "faults")
    values = {name: _flag(name) for name in _SETTINGS if name not in derived}
    if not FLAGS["model"].present:
        values["model"] = default_name(bool(data["tokens"] or data["text"]))
    return RunSettings(
        **data,
        **values,
        optimizer=_optimizer(),
        topology_options=_topology_options(strict),
        faults=_faults(),
    )


def settings_by_graph(names: Sequence[str]) -> dict[str, RunSettings]:
    """Returns the settings that the flags describe on each of several graphs, by the graphs' names.

    Each has the options that its own graph uses.

    Raises:
      mhd.ConfigError: as `settings`, or an option that none of the graphs uses.
    """
    common = settings(strict=False)
    found = {
        name: dataclasses.replace(common, topology=name, topology_options=_options_of(name))
        for name in names
    }
    require_used(found.values())
    return found


def require_used(every: Iterable[RunSettings], named: Collection[str] = ()) -> None:
    """Raises `mhd.ConfigError` if an option of graphs is given or named that no settings' graph uses."""
    used = {name for each in every for name, _ in each.topology_options}
    for name in TOPOLOGY_FLAGS:
        if name not in used and (name in named or FLAGS[name].present):
            raise mhd.ConfigError(f"--{name} is not used by any of the graphs; leave it out.")


def of_a_run() -> set[str]:
    """Returns the names of the flags that may differ between the runs of one command.

    These are the ones of `RunSettings` and of its parts, and those of the algorithm.
    """
    parts = (_SETTINGS, data_flags.PARTITION_FLAGS, _OPTIMIZER, _FAULTS, _HYPERPARAMETERS)
    own = {"algorithm", *TOPOLOGY_FLAGS, *_own_hyperparameters()}
    return own.union(*parts)


def algorithm(
    name: str, *, strict: bool, defaults: Mapping[str, Any] | None = None
) -> tuple[mhd.Algorithm, list[str]]:
    """Returns the algorithm of that name with the hyperparameters given as flags.

    Args:
      name: a key of `ALGORITHMS`, or users' own code.
      strict: whether to refuse flags that the algorithm does not use. If not, the algorithm is one of
        several that are compared, and has `EQUAL_TERMS`.
      defaults: values for hyperparameters that are not given, instead of the algorithm's own.

    Returns:
      The algorithm, and the names of the given flags that it does not use.

    Raises:
      mhd.ConfigError: an unknown name, a value that cannot work, or an unused flag.
    """
    build = builder(name)
    known = hyperparameters(build)
    given = [key for key in (*_HYPERPARAMETERS, *_own_hyperparameters()) if FLAGS[key].present]
    if "average_every" in given and "ensembles" not in given:
        raise mhd.ConfigError("--average_every is about --ensembles; give both, or neither.")
    common = {} if strict else EQUAL_TERMS
    values = {**common, **(defaults or {}), **{key: _value(key) for key in given}}
    built = build(**{key: value for key, value in values.items() if key in known})
    unused = [key for key in given if key not in known]
    if FLAGS["public_batch_size"].present and not built.public_batch:
        unused.append("public_batch_size")
    if FLAGS["augment_public"].present and not built.may_augment_public:
        unused.append("augment_public")
    if built.pooled:
        unused += [key for key in _FAULTS if FLAGS[key].present]
    if strict and unused:
        raise mhd.ConfigError(
            f"{', '.join('--' + key for key in unused)} "
            f"{'is' if len(unused) == 1 else 'are'} not used by --algorithm={name}; "
            "leave out what does not apply, or choose another algorithm."
        )
    return built, unused


def algorithms(
    names: Sequence[str], defaults: Mapping[str, Any] | None = None
) -> tuple[dict[str, mhd.Algorithm], dict[str, list[str]]]:
    """Returns the algorithms that --algorithms lists, with the hyperparameters given as flags.

    Args:
      names: as the flag lists them.
      defaults: as for `algorithm`.

    Returns:
      The algorithms by the names of their rows and folders; and the given flags that an algorithm
      does not use, by the name by which it is listed.

    Raises:
      mhd.ConfigError: as `algorithm`, or algorithms that share a name or a folder.
    """
    names = [name.strip() for name in names]
    require_distinct("algorithms", names, each="algorithm")
    found, unused = {}, {}
    for name in names:
        built, unused[name] = algorithm(name, strict=False, defaults=defaults)
        if built.name in found:
            raise mhd.ConfigError(f"two of --algorithms are called {built.name}; rename yours.")
        found[built.name] = built
    require_folders(found, "--algorithms")
    return found, unused


def notes_on_unused(unused: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns a sentence on the given flags that something does not use, for each name of such."""
    return [
        f"{name} does not use {', '.join('--' + flag for flag in own)}."
        for name, own in unused.items()
        if own
    ]


def builder(name: str) -> Callable[..., mhd.Algorithm]:
    """Returns the factory of an algorithm: a key of `ALGORITHMS`, or users' own code."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if own_code.is_own(name):
        return _own_factory(own_code.load(name))
    raise mhd.ConfigError(f"unknown algorithm {name!r}; choose among {', '.join(ALGORITHMS)}.")


@functools.cache  # one factory for one function, so that equal algorithms share a program
def _own_factory(build: Any) -> Callable[..., mhd.Algorithm]:
    if not inspect.isroutine(build):
        raise mhd.ConfigError(f"{build!r} is no function that returns a mhd.Algorithm.")

    @functools.wraps(build)
    def checked(*args: Any, **kwargs: Any) -> mhd.Algorithm:
        built = build(*args, **kwargs)
        if not isinstance(built, mhd.Algorithm):
            raise mhd.ConfigError(f"{build.__name__} must return a mhd.Algorithm, not {built!r}.")
        return built

    return factory(checked)


_DEFINED: set[str] = set()  # hyperparameters that users' own algorithms alone have


def _own_hyperparameters() -> list[str]:
    return sorted(name for name in _DEFINED if name in FLAGS)


def require_distinct(name: str, given: Sequence[str], each: str = "of them") -> None:
    """Raises `ConfigError` if a flag that lists things to compare names one twice, or none."""
    if not given or len(set(given)) < len(given):
        raise mhd.ConfigError(f"--{name} must name each {each} once, and at least one.")


def require_not_given(names: Iterable[str]) -> None:
    """Raises `ConfigError` if flags are given that a study sets itself."""
    given = [f"--{name}" for name in names if FLAGS[name].present]
    if given:
        raise mhd.ConfigError(f"{', '.join(given)}: the study sets these itself; leave them out.")


def define_own(arguments: Sequence[str]) -> None:
    """Defines flags of the arguments of users' own factories that a command line names.

    Raises:
      mhd.ConfigError: code that cannot be loaded, or an argument with the name of another flag.
    """
    pairs = [
        f"{one}={other}"  # --algorithm NAME
        for one, other in itertools.pairwise(arguments)
        if "=" not in one
    ]
    found = [_OF_ALGORITHMS.fullmatch(each) for each in (*arguments, *pairs)]
    texts = [match[1] for match in found if match]
    names = [name.strip() for text in texts for name in re.split("[,;]", text)]
    for name in filter(own_code.is_own, names):
        for key, parameter in inspect.signature(builder(name)).parameters.items():
            if key in _HYPERPARAMETERS or key in _own_hyperparameters():
                continue
            if key in FLAGS:
                raise mhd.ConfigError(
                    f"the argument {key} of {name} has the name of another flag; rename it."
                )
            _DEFINED.add(key)
            default = parameter.default
            text = _written_type(parameter)
            define(key, text, None if default is parameter.empty else default, f"({name})")
            FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[key])


_OF_ALGORITHMS = re.compile(r"--?(?:(?:grid|vary|space)=-{0,2})?algorithms?=(.*)")


def _optimizer() -> mhd.optim.SGD | mhd.optim.AdamW:
    """Returns the chosen optimizer, with its own defaults for flags that are not given."""
    chosen = _flag("optimizer")
    for name, users in _OPTIMIZER.items():
        if FLAGS[name].present and chosen not in users:
            raise mhd.ConfigError(
                f"--{name} belongs to --optimizer={' or '.join(users)}, not to --optimizer={chosen}; "
                "leave one of them out."
            )
    given = {name: _flag(name) for name, users in _OPTIMIZER.items() if chosen in users}
    return OPTIMIZERS[chosen](**{name: x for name, x in given.items() if x is not None})


def _flag(name: str) -> Any:
    return FLAGS[name].value


def _value(name: str) -> Any:
    value = _flag(name)
    if name == "target_selection" and own_code.is_own(value):
        return own_code.load(value)
    if name == "ensembles":
        return _ensembles(value)
    kind, words = _NUMBERS_OR_WORDS.get(name, (str, ()))
    if value in words:
        return value
    try:
        return value if kind is str else kind(value)
    except ValueError:
        listed = " or ".join(map(repr, words))
        raise mhd.ConfigError(f"--{name} is a number or {listed}, not {value!r}.") from None


def _faults() -> mhd.Faults | None:
    """Returns the faults that the flags describe; None if nothing can fail."""
    given = {name: _flag(name) for name in _FAULTS}
    for name in ("stragglers", "joins", "leaves"):
        given[name] = _by_client(name)
    for needed, *others in (
        ("offline", "offline_steps", "offline_trains"),
        ("participation", "participation_steps"),
    ):
        for name in others:
            if FLAGS[name].present and given[needed] == _FAULTS[needed]:
                raise mhd.ConfigError(f"--{name} needs --{needed}; give both, or neither.")
    faults = mhd.Faults(**given)
    return None if faults == mhd.Faults() else faults


def _by_client(name: str) -> dict[int, int]:
    """Parses numbers by client from the flag of that name, written like "0:4,3:2"."""
    try:
        parts = [part.split(":") for part in filter(None, _flag(name).split(","))]
        pairs = [(int(client), int(number)) for client, number in parts]
    except ValueError:
        raise mhd.ConfigError(
            f"cannot read --{name}={_flag(name)}; write it like 0:4,3:2."
        ) from None
    if len(dict(pairs)) < len(pairs):
        raise mhd.ConfigError(f"--{name}={_flag(name)} names a client twice; name each once.")
    return dict(pairs)


def _ensembles(text: str) -> int | list[list[int]]:
    """Parses --ensembles: the size of an ensemble, or the clients of each."""
    try:
        if text.strip().isdecimal():
            return int(text)
        return [[int(client) for client in part.split(",")] for part in text.split(";")]
    except ValueError:
        raise mhd.ConfigError(
            "--ensembles is a number of clients, or the clients of each ensemble like 0,1,2;3,4, "
            f"not {text!r}."
        ) from None


def unused_by_topology(chosen: str | None = None) -> list[str]:
    """Returns the graph options that are given as flags but not used by a graph, or the chosen one."""
    own = _known_options(chosen or _flag("topology"))
    return [name for name in TOPOLOGY_FLAGS if FLAGS[name].present and name not in own]


def _topology_options(strict: bool) -> tuple[tuple[str, Any], ...]:
    """Returns the values of the flags that are options of the chosen topology."""
    chosen = _flag("topology")
    if strict and (unused := unused_by_topology()):
        raise mhd.ConfigError(
            f"--{unused[0]} is not used by --topology={chosen}; leave one of them out."
        )
    return _options_of(chosen)


def _options_of(topology: str) -> tuple[tuple[str, Any], ...]:
    """Returns the values of the flags that are options of a topology."""
    own = [name for name in _known_options(topology) if name != "seed"]
    return tuple((name, _offsets() if name == "offsets" else _flag(name)) for name in own)


def _known_options(topology: str) -> Collection[str]:
    """Returns the names of a topology's options; users' own code has none, whatever its path holds."""
    return () if own_code.is_own(topology) else topologies.options(topology)


def _offsets() -> tuple[int, ...]:
    try:
        return tuple(int(offset) for offset in _flag("offsets").split(","))
    except ValueError:
        raise mhd.ConfigError(
            f"cannot read --offsets={_flag('offsets')}; write numbers, like 1,4."
        ) from None
