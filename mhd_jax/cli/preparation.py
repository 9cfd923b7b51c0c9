"""Downloads and prepares a data set of tensorflow-datasets, completely or not at all.

The work is done in a temporary folder beside the prepared data sets. The result is moved to its
place after all its records have been counted, so that no data set there is ever half prepared.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import glob
import importlib
import importlib.util
import io
import os
import pathlib
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import logging

import mhd_jax as mhd
from mhd_jax.core.extras import require
from mhd_jax.core.files import expanded
from mhd_jax.data import tfds as prepared

_NEEDED = {
    "tensorflow_datasets": "tensorflow-datasets",
    "tensorflow": "tensorflow-cpu",
    "importlib_resources": "importlib_resources",
}
_EVERY = 30  # seconds between two lines of progress


def prepare(
    name: str,
    root: pathlib.Path,
    manual_dir: str | None = None,
    imports: str | None = None,
    say: Callable[[str], None] = print,
) -> pathlib.Path:
    """Downloads and prepares a data set; an existing one is replaced at the end.

    Args:
      name: the name in tensorflow-datasets, with an optional config.
      root: the folder of prepared data sets; its folder `downloads` keeps finished downloads.
      manual_dir: the folder of the user's manual downloads, by default `downloads/manual` in root.
      imports: a module that registers a data set of the user's own.
      say: a function that shows a message to the user.

    Returns:
      The folder of the prepared version.

    Raises:
      mhd.ConfigError: something is missing or failed; the message names the remedy.
    """
    check_installed()
    downloads = root / "downloads"
    manual = expanded(manual_dir or downloads / "manual")
    if imports:
        _import(imports)
    builder_class, config = find_builder(name)
    check_manual(builder_class, manual)
    try:
        with scratch_folder(name, root, say) as scratch:
            builder = builder_class(
                data_dir=str(scratch), config=config, file_format="array_record"
            )
            prepared.supervised(builder.info)
            check_disk(builder.info.download_size, builder.info.dataset_size, root)
            say(f"preparing {builder.info.full_name} in {root}")
            _download_and_prepare(builder, downloads, manual)
            prepared.open_folder(pathlib.Path(builder.data_path))
            folder = root / builder.data_path.relative_to(scratch)
            folder.parent.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                folder.rename(scratch / "replaced")
            os.replace(builder.data_path, folder)
            return folder
    except mhd.ConfigError:
        raise
    except Exception as error:  # the builder's code, the network or the disk may raise anything
        logging.debug("preparing %s failed", name, exc_info=True)
        raise mhd.ConfigError(sentence(error, name, root)) from error


def check_installed() -> None:
    """Raises `mhd.ConfigError` if packages that preparing needs are not installed."""
    missing = [module for module in _NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        packages = " ".join(_NEEDED[module] for module in missing)
        raise mhd.ConfigError(
            f"preparing needs {' and '.join(missing)}, which reading does not; install it with "
            f"`{sys.executable} -m pip install {packages}` (the extra prepare)."
        )


def find_builder(name: str) -> tuple[Any, str | None]:
    """Returns the class that prepares a data set, and the config in the name, if any.

    Raises:
      mhd.ConfigError: an unknown name or config, or no config for a data set with several.
    """
    tfds = require("tensorflow_datasets")

    base, _, config = name.partition("/")
    try:
        if not prepared.NAME.fullmatch(name):
            raise ValueError
        found = tfds.builder_cls(base)
    except (ValueError, tfds.core.registered.DatasetNotFoundError):
        known = tfds.list_builders(with_community_datasets=False)
        raise mhd.ConfigError(f"unknown dataset {name!r}; {_did_you_mean(base, known)}") from None
    configs = [f"{base}/{known.name}" for known in found.BUILDER_CONFIGS]
    if configs and not config:
        raise mhd.ConfigError(
            f"{base} comes in several forms; choose one: {', '.join(sorted(configs))}."
        )
    if config and name not in configs:
        raise mhd.ConfigError(f"unknown dataset {name!r}; {_did_you_mean(name, configs or [base])}")
    return found, config or None


def check_manual(builder_class: Any, manual: pathlib.Path) -> None:
    """Raises `mhd.ConfigError` if files that must be downloaded by hand are missing."""
    instructions = builder_class.MANUAL_DOWNLOAD_INSTRUCTIONS
    if instructions and not (manual.is_dir() and any(manual.iterdir())):
        raise mhd.ConfigError(
            f"{builder_class.name} must be downloaded by hand, and {manual} holds nothing. Put there, "
            f"or where --manual_dir says, what its instructions ask for:\n{instructions.strip()}"
        )


def check_disk(download: int, generated: int, root: pathlib.Path) -> None:
    """Raises `mhd.ConfigError` if a data set does not fit on the disk; sizes in bytes, or 0."""
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if download + generated > free:
        raise mhd.ConfigError(
            f"preparing takes {in_mib(download)} of downloads and {in_mib(generated)} of records, but "
            f"{root} has {in_mib(free)} free; make room, or choose another data_dir."
        )


@contextlib.contextmanager
def scratch_folder(
    name: str, root: pathlib.Path, say: Callable[[str], None]
) -> Iterator[pathlib.Path]:
    """Makes a locked temporary folder for preparing, and removes it at the end.

    The lock ends with its process, however that ends; content that a later process finds in the
    folder is therefore a remnant of an interrupted attempt.
    """
    base = name.partition("/")[0]
    folder = root / f"incomplete.{base}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise mhd.ConfigError(
                f"another process is preparing {base} in {root}; wait until it has ended."
            ) from None
        for path in _incomplete(folder, base, root):
            say(f"removing {path}, which an interrupted attempt left")
            shutil.rmtree(path)

        def clean() -> None:
            for path in (*_incomplete(folder, base, root), folder):
                shutil.rmtree(path, ignore_errors=True)

        with _signals_end_it(clean):
            try:
                yield folder / "data"
            finally:
                clean()


def sentence(error: Exception, name: str, root: pathlib.Path) -> str:
    """Describes an error of the preparation and its remedy."""
    again = "start the same command again; finished downloads are kept."
    url = getattr(getattr(error, "request", None), "url", None)
    if url:
        reason = str(getattr(next(iter(error.args), error), "reason", error)).rpartition(": ")[2]
        return f"{url} cannot be reached ({reason}). Check the network and {again}"
    text = str(error).strip()
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in text:
        return f"the disk of {root} is full. Make room and {again}"
    if isinstance(error, AssertionError):  # builders raise it for a missing manual download
        return f"{name} cannot be prepared: {text}"
    first = text.partition("\n")[0].rstrip(".")
    return f"preparing {name} failed ({type(error).__name__}: {first}). Mend that and {again}"


def end(sentence: str, status: int) -> NoReturn:
    """Ends the process at once: an orderly end would wait for downloads that still run."""
    print(sentence, file=sys.stderr, flush=True)
    os._exit(status)


def in_mib(size: int) -> str:
    """Formats a number of bytes in MiB."""
    return f"{size / 2**20:,.1f} MiB"


def _import(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise mhd.ConfigError(f"cannot import {module!r}: {error}.") from error


def _did_you_mean(name: str, known: list[str]) -> str:
    close = " or ".join(difflib.get_close_matches(name, known))
    return f"did you mean {close}?" if close else "tensorflow-datasets has none like it."


@contextlib.contextmanager
def _signals_end_it(clean: Callable[[], None]) -> Iterator[None]:
    """Makes SIGINT and SIGTERM call `clean` and end the process.

    An exception instead could get lost in a callback.
    """

    def handle(signum: int, frame: Any) -> None:
        clean()
        end("interrupted; the same command starts again and keeps finished downloads.", 130)

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _incomplete(folder: pathlib.Path, base: str, root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the unfinished records, downloads and extractions of an attempt."""
    downloads = root / "downloads"
    found = [folder / "data"] if (folder / "data").exists() else []
    for path in sorted((downloads / base).rglob("*")):
        if path.is_dir() and ".tmp." in path.name:
            found.append(path)
        elif path.is_file():
            of_this = f"incomplete.*_*.{glob.escape(path.name)}"
            found += (downloads / "extracted").glob(of_this)
    return found


def _download_and_prepare(builder: Any, downloads: pathlib.Path, manual: pathlib.Path) -> None:
    tfds = require("tensorflow_datasets")

    terminal = sys.stderr.isatty()
    tfds.display_progress_bar(terminal)
    config = tfds.download.DownloadConfig(manual_dir=manual)
    progress = contextlib.nullcontext() if terminal else _lines(builder, downloads)
    with progress, contextlib.redirect_stdout(io.StringIO()):  # it names the temporary folder
        builder.download_and_prepare(download_dir=str(downloads), download_config=config)


@contextlib.contextmanager
def _lines(builder: Any, downloads: pathlib.Path) -> Iterator[None]:
    """Prints the downloaded and the prepared bytes twice a minute, if stderr is no terminal."""
    done = threading.Event()
    folders = {
        "downloaded": downloads / builder.name,
        "prepared": pathlib.Path(builder.data_path).parent,
    }

    def watch() -> None:
        while not done.wait(_EVERY):
            sizes = [f"{in_mib(_size(path))} {what}" for what, path in folders.items()]
            print(f"{builder.name}: {', '.join(sizes)}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _size(folder: pathlib.Path) -> int:
    """Returns the bytes of a folder's files, while other threads write to the folder."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
