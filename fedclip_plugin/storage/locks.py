"""Locks between processes, also where the file system has none of its own."""

from __future__ import annotations

import errno
import warnings
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

__all__ = ["BaseFileLock", "Timeout", "take"]
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


def take(path: Path, seconds: float = 0.0) -> BaseFileLock:
    """The lock ``path``, taken; freed by ``release``, or when its process dies.

    Its folder is made.  Some network drives refuse locks: there a file of the process's
    number, ``<path>.owner``, stands in.  Waits for at most ``seconds``, for ever where
    they are negative.  Raises Timeout where another process has it, and OSError where
    nothing can be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():  # that it takes a file itself
            warnings.simplefilter("ignore")
            lock: BaseFileLock = FileLock(path)
            lock.acquire(timeout=seconds)
    except Timeout:
        raise
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        lock = SoftFileLock(path.with_name(f"{path.name}.owner"))
        lock.acquire(timeout=seconds)
    return lock
