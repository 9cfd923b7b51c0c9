"""Locks that allow one process at a time in a run folder.

A process locks a file in the folder. The system frees the lock when the process ends, however that
happens; a file that is left behind blocks nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
import platform
from collections.abc import Iterator
from typing import TextIO

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.warned import warn

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def file_of(folder: pathlib.Path) -> pathlib.Path:
    """Returns the path of a folder's lock file, which exists while a process uses the folder."""
    return folder / "lock"


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes out of an existing folder; warns if its file system has no locks.

    Raises:
      ConfigError: another process, or another run of this process, uses the folder; or it cannot be
        written.
    """
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"{folder} cannot be written; choose another workdir.")
    path = file_of(folder)
    while True:
        with open(path, "a+", encoding="utf-8") as file:
            _lock(file, folder)
            if not _is_at(path, file):
                continue  # the previous holder has removed the file in between
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}\n")
                file.flush()
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return


def _lock(file: TextIO, folder: pathlib.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise ConfigError(
            f"{folder} is in use by {holder}. Wait until that has ended, or stop it, and start "
            "again; or choose another workdir."
        ) from error
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        warn(
            f"{folder} cannot be locked ({error.strerror}): see to it that no other process uses it "
            "at the same time."
        )


def _is_at(path: pathlib.Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
