"""Start and end of a binary: flags, JAX's configuration, other processes, errors, signals."""

from __future__ import annotations

import atexit
import contextlib
import difflib
import errno
import io
import os
import pathlib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

import mhd_jax as mhd
from mhd_jax.cli import flag_help, presets, watchdog, workdirs
from mhd_jax.cli.fellows import Fellows, fellows
from mhd_jax.core import modes
from mhd_jax.core.commands import by_mhd
from mhd_jax.core.errors import in_a_line
from mhd_jax.core.machine import require_devices
from mhd_jax.runs.consoles import Console
from mhd_jax.runs.finished import has_report

_PATIENCE = 120  # seconds that processes wait for each other at the start
_UNFORESEEN = 70  # the exit status of an internal error, as in sysexits.h
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)
_STATUS = {mhd.ConfigError: 2, mhd.DivergedError: 3, mhd.StorageError: 5}
_STOPPED = 130  # the exit status of an interrupted run
_formatted = warnings.formatwarning
_INTERRUPTED = "interrupted; the same command goes on from what was saved"

_CACHE = flags.DEFINE_string(
    "compilation_cache",
    os.environ.get(
        "JAX_COMPILATION_CACHE_DIR",
        str(pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "mhd_jax"),
    ),
    "Folder that keeps compiled programs from start to start; empty keeps none.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address",
    None,
    "HOST:PORT of process 0, where one run has several processes; on TPU pods and under Slurm "
    "they find each other by themselves.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes one run has.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this one is, counted from 0.", lower_bound=0
)


def run(
    main: Callable[..., None],
    *,
    takes_arguments: bool = False,
    several_processes: bool = False,
    computes: bool = True,
) -> None:
    """Runs a binary: parses flags, and turns expected errors into one sentence and a status.

    Exit status: 1 for an unknown flag, 2 for settings that cannot work, 3 for a run that
    diverged, 4 for a run that lost a process, 5 for a workdir that cannot be written, 70 for an
    unexpected error, with its traceback, 130 for an interrupted run.

    Args:
      main: the binary's main function.
      takes_arguments: whether `main` gets the arguments that are not flags, as a list of strings;
        other binaries take only flags.
      several_processes: whether the run may have several processes, as in training; otherwise the
        process runs alone even under Slurm.
      computes: whether the binary needs a device.
    """

    def wrapped(argv: Sequence[str]) -> None:
        _configure_jax()
        if not flags.FLAGS["verbosity"].present:
            # Orbax logs every detail of a save; failures are raised anyway.
            logging.set_verbosity(logging.FATAL)
        try:
            arguments = argv[1:]
            if arguments and not takes_arguments:
                raise mhd.ConfigError(
                    f"unexpected argument {arguments[0]!r}; flags are written --name=value."
                )
            with _other_processes(several_processes), modes.standard():
                if computes:
                    require_devices()
                main(arguments) if takes_arguments else main()
        except tuple(_STATUS) as error:
            _exit(f"error: {error}", _STATUS[type(error)])
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            place = error.filename or "what this program leaves"
            _exit(
                f"error: {place} cannot be written ({error.strerror}). Make room, or see to it that "
                "the folder may be written, and the same command goes on.",
                _STATUS[mhd.StorageError],
            )
        except mhd.LostProcessError:
            watchdog.end_alone()
        except mhd.InterruptedRun as stop:
            _exit(str(stop), _STOPPED)
        except KeyboardInterrupt:  # the second request to stop
            _exit(_INTERRUPTED, _STOPPED)

    _end_by_signals()
    warnings.formatwarning = _as_line
    if isinstance(sys.stdout, io.TextIOWrapper):  # for β in a terminal without Greek letters
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        parser = _parsed if by_mhd() else app.parse_flags_with_usage
        arguments = presets.resolved(sys.argv)
        _define_own_flags(arguments)
        app.run(wrapped, argv=arguments, flags_parser=parser)
    except mhd.ConfigError as error:  # of the command line itself
        _exit(f"error: {error}", _STATUS[mhd.ConfigError])
    except Exception:
        traceback.print_exc()
        sys.exit(_UNFORESEEN)


def _as_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Formats a warning: one for users as what it says, others also with where they came up."""
    if category is UserWarning:
        return f"warning: {message}\n"
    return _formatted(message, category, filename, lineno, line)


def _define_own_flags(arguments: Sequence[str]) -> None:
    """Defines the flags of users' own algorithms that the arguments, or files of flags, name."""
    run_flags = sys.modules.get("mhd_jax.cli.flags")
    if run_flags is None:  # a command without runs, which may have flags of the same names
        return
    with contextlib.suppress(flags.Error):  # which parsing reports
        run_flags.define_own(flags.FLAGS.read_flags_from_files(list(arguments)))


def _parsed(arguments: Sequence[str]) -> list[str]:
    """Parses flags; help, or one line on what cannot be parsed, ends the process."""
    if flag_help.asked(arguments):
        say(flag_help.of_program(arguments))
        sys.exit(0)
    try:
        return flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        meant = f"did you mean --{close[0]}?" if close else f"{sys.argv[0]} --help lists them."
        _exit(f"error: there is no flag --{error.flagname}; {meant}", 1)
    except flags.Error as error:
        _exit(f"error: {' '.join(str(error).split())}", 1)


_FILE_WIDTH = 120  # characters of a table's line in a file or a pipe


def console(*, alone: bool = False) -> Console:
    """Returns the console for a binary's results; only the first of several processes prints.

    Args:
      alone: whether the binary is one process, which need not start JAX to know that it is first.
    """
    width = None if sys.stdout.isatty() else _FILE_WIDTH
    return Console(quiet=not alone and jax.process_index() > 0, width=width)


def say(text: str, *, alone: bool = True) -> None:
    """Prints text as it is; `alone` as for `console`."""
    console(alone=alone).print(text, markup=False, highlight=False, soft_wrap=True)


def tell_report(folder: pathlib.Path) -> None:
    """Prints the path of a run's or a comparison's report, or that there is none."""
    page = folder / "report.html"
    there = (
        f"report: {page}"
        if has_report(folder)
        else f"no report: see why above; all else is in {folder}"
    )
    console().print(there, markup=False, soft_wrap=True)


def _configure_jax() -> None:
    """Configures JAX: a device for each CPU core, and a compilation cache on disk.

    XLA's CPU backend computes a convolution on one core; as devices, the cores share the clients.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has started already
            jax.config.update("jax_num_cpu_devices", num_cores())
    cache = cache_folder()
    if cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder() -> pathlib.Path | None:
    """Returns the folder of compiled programs; None if they are not kept."""
    folder = os.path.expanduser(_CACHE.value)
    return pathlib.Path(folder) if folder and not folder.startswith("~") else None  # ~: no home


def num_cores() -> int:
    """Returns the number of cores that this process may use (on macOS, all of the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _other_processes(allowed: bool) -> contextlib.AbstractContextManager[None]:
    """Connects to the run's other processes, if flags or the cluster name any, and watches them."""
    address, processes, own = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    given: dict[str, Any] = {
        "coordinator_address": address,
        "num_processes": processes,
        "process_id": own,
    }
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise mhd.ConfigError(f"one run on several processes needs {', '.join(missing)} too.")
    if processes is not None and own is not None and own >= processes:
        raise mhd.ConfigError(f"--process_id counts from 0 to {processes - 1}, not {own}.")
    if not allowed:
        if not missing:
            raise mhd.ConfigError(
                "this program is one process; leave --coordinator_address, --num_processes and "
                "--process_id out."
            )
        return contextlib.nullcontext()
    found = fellows(os.environ) if missing else Fellows(processes)
    if found.note:
        _runs_alone(found.note)
    if found.count == 1:
        return contextlib.nullcontext()
    given["num_processes"] = found.count
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM
    try:
        with _patience():
            jax.distributed.initialize(**given, initialization_timeout=2 * _PATIENCE)
    except (RuntimeError, ValueError) as error:
        if found.count is None and isinstance(error, ValueError):  # JAX sees no pod
            _runs_alone(f"TPU_WORKER_HOSTNAMES names several hosts, but {error}")
            return contextlib.nullcontext()
        raise mhd.ConfigError(
            f"the processes of this run cannot find each other ({in_a_line(error)}); see how one run "
            "is started on several in docs/performance.md."
        ) from error
    return watchdog.watching(address and address.rpartition(":")[0])


def _runs_alone(why: str) -> None:
    print(f"note: {why.rstrip('.')}; it runs alone", file=sys.stderr)


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Ends the process if the others do not come; JAX would abort with a stack trace of C++."""
    timer = threading.Timer(_PATIENCE, watchdog.end_unmet, [_PATIENCE])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


_last_words: list[Callable[[], object]] = []


@contextlib.contextmanager
def last_words(say: Callable[[], object]) -> Iterator[None]:
    """Has `say` called if a signal ends the process at once inside the block."""
    _last_words.append(say)
    try:
        yield
    finally:
        _last_words.remove(say)


def _end_by_signals() -> None:
    """Makes Ctrl-C and SIGTERM end the process at once, except while a run handles them itself.

    An exception instead could get lost in a callback, or turn into another one.
    """

    def end(signum: int, frame: Any) -> None:
        while _last_words:  # a second signal, while one is said, leaves it out
            with contextlib.suppress(Exception):
                _last_words.pop()()
        with contextlib.suppress(RuntimeError):  # interrupted while it was being written
            sys.stdout.flush()
        os.write(sys.stderr.fileno(), f"{_to_go_on(_INTERRUPTED)}\n".encode())
        os._exit(_STOPPED)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, end)
        atexit.register(signal.signal, signum, signal.SIG_IGN)  # at exit all work is done


def _exit(sentence: str, status: int) -> NoReturn:
    goes_on = status in (_STATUS[mhd.StorageError], _STOPPED)
    print(_to_go_on(sentence) if goes_on else sentence, file=sys.stderr)
    sys.exit(status)


def _to_go_on(sentence: str) -> str:
    """Returns a sentence about the same command with what that must leave out."""
    if not workdirs.overwrites():
        return sentence
    return f"{sentence.removesuffix('.')}; leave out --overwrite then, which begins anew"
