"""Checkpoints: a folder for each step, completed by a manifest with a digest of each file.

Orbax writes the arrays in the background. Then a thread of this module computes the digest of each
file, writes the manifest, and only then removes older checkpoints, so that an intact checkpoint
exists at every moment after the first. A folder without a manifest is not a checkpoint, but a
remnant of a killed process.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from mhd_jax.core import multihost
from mhd_jax.core.errors import ConfigError, StorageError
from mhd_jax.core.types import PyTree
from mhd_jax.core.warned import warn
from mhd_jax.runs import manifest


@dataclasses.dataclass(frozen=True)
class Keep:
    """The rule for which checkpoints stay.

    Attributes:
      last: how many of the latest checkpoints stay.
      best: whether the checkpoint with the highest score stays too.
    """

    last: int = 2
    best: bool = False

    def chosen(self, scores: Mapping[int, float | None]) -> set[int]:
        """Returns the steps whose checkpoints stay; `scores` has all steps."""
        steps = sorted(scores)[-self.last :]
        top = best(scores) if self.best else None
        return {*steps, *([] if top is None else [top])}


KEEP_LAST = Keep()


def best(scores: Mapping[int, float | None]) -> int | None:
    """Returns the step with the highest score, the earliest of equals; None without scores."""
    known = {step: score for step, score in sorted(scores.items()) if score is not None}
    return max(known, key=lambda step: known[step]) if known else None


class Checkpoints:
    """The checkpoints in a folder, by step."""

    def __init__(self, path: pathlib.Path, keep: Keep):
        """Stores the settings; no folder is made or read yet."""
        self._path = path.absolute()
        self._keep = keep
        self._checkpointer: Any = None
        self._sealer = concurrent.futures.ThreadPoolExecutor(1, "seal")  # starts at the first save
        self._sealing: concurrent.futures.Future[None] | None = None
        self._damage: dict[int, str | None] = {}  # of the steps checked so far

    def folder(self, step: int) -> pathlib.Path:
        """Returns the folder of a step's checkpoint."""
        return self._path / str(step)

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        found = self._path.iterdir() if self._path.is_dir() else ()
        return sorted(
            int(d.name) for d in found if d.name.isdecimal() and (d / manifest.NAME).exists()
        )

    def whole_steps(self) -> list[int]:
        """Returns the steps with undamaged checkpoints; warns about the damaged ones.

        Raises:
          ConfigError: there are checkpoints, and all are damaged.
        """
        steps, whole = self.steps, []
        for step in steps:
            is_new = step not in self._damage
            damage = self.damage(step)
            if damage is None:
                whole.append(step)
            elif is_new and multihost.is_main():
                warn(f"the checkpoint of step {step} is damaged and passed over: {damage}.")
        if steps and not whole:
            raise ConfigError(
                f"all checkpoints are damaged: {self.damage(steps[-1])}. Put them back from a copy, "
                f"or delete {self._path.parent} and start the run anew."
            )
        return whole

    def damage(self, step: int) -> str | None:
        """Returns what is wrong with a checkpoint, or None if it is intact; cached by step."""
        if step not in self._damage:
            self._damage[step] = manifest.damage(self.folder(step))
        return self._damage[step]

    def about(self, step: int) -> dict[str, Any]:
        """Returns the data saved beside the arrays; {} if the manifest is damaged."""
        try:
            return manifest.read(self.folder(step))["about"]
        except ValueError:
            return {}

    def scores(self) -> dict[int, float | None]:
        """Returns each step's score, by which the best checkpoint is chosen; None if unknown."""
        return {step: self.about(step).get("score") for step in self.steps}

    def save(self, step: int, content: PyTree, about: Mapping[str, Any]) -> None:
        """Saves arrays in the background.

        Args:
          step: a step without a checkpoint, later than all checkpoints.
          content: arrays; they are copied before this method returns.
          about: JSON-like data for the manifest; the best checkpoint is chosen by its "score".

        Raises:
          StorageError: this checkpoint, or the one before, cannot be written.
        """
        import orbax.checkpoint as ocp

        self.wait()
        self._damage.pop(step, None)
        try:
            self._orbax().save(self.folder(step), args=ocp.args.StandardSave(content))
        except Exception as error:
            if multihost.lost_another(error):
                raise
            raise self._failure(error) from error
        self._sealing = self._sealer.submit(self._seal, step, dict(about))

    def _seal(self, step: int, about: Mapping[str, Any]) -> None:
        self._orbax().wait_until_finished()
        if multihost.is_main():
            manifest.write(self.folder(step), {"about": about})
            self.keep_up_to(step)

    def restore(self, step: int, like: PyTree, start: Callable[[], PyTree]) -> PyTree:
        """Returns the arrays of a checkpoint.

        Args:
          step: a step with a checkpoint.
          like: the arrays' shapes, types and shardings. Axes may be shorter or longer than the
            saved ones, if the number of padding clients, which come last, is another.
          start: returns fresh arrays, which fill the rows that were not saved.

        Raises:
          ConfigError: the checkpoint is damaged, or holds other arrays.
        """
        import orbax.checkpoint as ocp

        self._require_whole(step)
        shapes = _shapes(self._orbax().metadata(self.folder(step)).item_metadata.tree)
        needed = _shapes(like)
        if {k: len(v) for k, v in shapes.items()} != {k: len(v) for k, v in needed.items()}:
            raise ConfigError(
                f"{self.folder(step)} does not hold what this run saves: it was made by another "
                "version of mhd_jax. Finish the run with that version, or choose another workdir."
            )
        if shapes == needed:
            return self._orbax().restore(self.folder(step), args=ocp.args.StandardRestore(like))

        def as_saved(path: Any, leaf: Any) -> Any:
            shape = shapes[_name(path)]
            if shape == needed[_name(path)]:
                return leaf
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=_everywhere(leaf.sharding))

        target = jax.tree_util.tree_map_with_path(as_saved, like)
        found = self._orbax().restore(self.folder(step), args=ocp.args.StandardRestore(target))
        return jax.tree.map(_filled, start(), found)

    def arrays(self, step: int) -> PyTree:
        """Returns the arrays of a checkpoint by name, as they were saved, on one device.

        Raises:
          ConfigError: the checkpoint is damaged.
        """
        import orbax.checkpoint as ocp

        self._require_whole(step)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])  # who saved may have more
        args = ocp.args.StandardRestore(fallback_sharding=here)
        return self._orbax().restore(self.folder(step), args=args)

    def _require_whole(self, step: int) -> None:
        if damage := self.damage(step):
            raise ConfigError(
                f"the checkpoint of step {step} is damaged: {damage}. Put it back from a copy, or "
                "take the newest one that is whole with fall_back (--fall_back)."
            )

    def keep_up_to(self, step: int) -> None:
        """Removes checkpoints later than `step`, and what killed processes have left.

        These leave remnants of saves, and checkpoints that the rule does not keep.
        """
        if self._path.is_dir():
            scores = {s: score for s, score in self.scores().items() if s <= step}
            kept = set(map(str, self._keep.chosen(scores)))
            for path in self._path.iterdir():
                if path.is_dir() and path.name not in kept:
                    _remove_folder(path)

    def wait(self) -> None:
        """Waits until everything saved is on the disk.

        Raises:
          StorageError: the checkpoint cannot be written.
        """
        if self._sealing is None:
            return
        try:
            self._sealing.result()
        except Exception as error:
            if multihost.lost_another(error):
                raise
            raise self._failure(error) from error
        finally:
            self._sealing = None

    def _failure(self, error: Exception) -> StorageError:
        steps = self.steps
        there = (
            f"The last good checkpoint is of step {steps[-1]}." if steps else "There is none yet."
        )
        return StorageError(
            f"{self._path} cannot be written ({_reason(error)}). {there} Make room, and the same command "
            "resumes the run."
        )

    def close(self) -> None:
        """Waits until everything is on the disk, and ends the threads."""
        self._sealer.shutdown()
        if self._checkpointer is not None:
            with contextlib.suppress(
                OSError, ValueError
            ):  # errors of a failed save, which `wait` reports
                self._checkpointer.close()
            self._checkpointer = None

    def _orbax(self) -> Any:
        if self._checkpointer is None:
            import orbax.checkpoint as ocp  # slow to import, and not every run saves

            self._checkpointer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        return self._checkpointer


def _reason(error: Exception) -> str:
    """Returns the system's reason for a failed save; tensorstore puts it after its own text."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = str(error).partition("\n")[0]
    return first.rpartition(": ")[2].partition(" [")[0] or type(error).__name__


def _remove_folder(path: pathlib.Path) -> None:
    """Renames a folder, so that a half-removed one is not a checkpoint, and removes it.

    The new name also keeps late writes of an earlier, failed save out of the folder.
    """
    removed = path.with_name(f"{path.name}.removed")
    path.rename(removed)
    shutil.rmtree(removed)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array by its name; random keys have the shape of their data."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_name(path): _shape(leaf) for path, leaf in leaves}


def _shape(leaf: Any) -> tuple[int, ...]:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return tuple(leaf.shape)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _everywhere(sharding: Sharding) -> Sharding:
    """Returns a sharding over the same devices in which each holds the whole array."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


def _filled(fresh: jax.Array, saved: jax.Array) -> jax.Array:
    """Returns `saved`, cut to the shape of `fresh`, or extended by rows of `fresh`."""
    if fresh.shape == saved.shape:
        return jax.device_put(saved, fresh.sharding)
    common = tuple(slice(min(a, b)) for a, b in zip(fresh.shape, saved.shape, strict=True))
    fill = jax.jit(lambda fresh, saved: fresh.at[common].set(saved[common]))
    return jax.device_put(fill(fresh, saved), fresh.sharding)
