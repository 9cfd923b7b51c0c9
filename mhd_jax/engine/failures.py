"""What ends a run from outside, said so that its user knows what to do, and what has been saved."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator, Sequence

import jax

from mhd_jax.core import multihost
from mhd_jax.core.errors import (
    ConfigError,
    DivergedError,
    LostProcessError,
    StorageError,
    in_a_line,
)
from mhd_jax.runs.folder import RunFolder

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_FORESEEN = (ConfigError, DivergedError, LostProcessError, StorageError)


@contextlib.contextmanager
def explained(folders: Sequence[RunFolder]) -> Iterator[None]:
    """Explains errors of the memory, of other processes and of the disk; closes the runs' folders.

    An unexpected error, e.g. of a user's model, gets a note of the folders from which runs resume.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise ConfigError(
                f"the run does not fit ({in_a_line(error)}); lower batch_size, "
                "public_batch_size, eval_batch_size or client_chunk, or take more devices."
            ) from error
        if not multihost.lost_another(error):
            raise
        kept = f" {listed(folders)} holds what was saved;" if folders else ""
        raise LostProcessError(
            f"this process has lost the others ({in_a_line(error)}), and cannot go on "
            f"alone.{kept} start all of them again with the same command."
        ) from error
    except OSError as error:
        if error.errno not in _OF_THE_DISK or not folders:
            raise
        raise StorageError(
            f"{listed(folders)} cannot be written ({error.strerror}). Make room, and the same "
            "command resumes the run."
        ) from error
    finally:
        for folder in folders:
            folder.close()
        saved = [folder for folder in folders if folder.checkpoints.steps]
        _note_what_is_saved(sys.exception(), saved)


def _note_what_is_saved(error: BaseException | None, saved: Sequence[RunFolder]) -> None:
    if saved and isinstance(error, Exception) and not isinstance(error, _FORESEEN):
        error.add_note(f"{listed(saved)} holds what was saved; the same command resumes it.")


def listed(folders: Sequence[RunFolder]) -> str:
    """Returns the folders' paths in a line."""
    return ", ".join(str(folder.path) for folder in folders)
