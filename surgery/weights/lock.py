"""Whether a process that writes a file still lives: the system lets go of its lock when it ends."""

from __future__ import annotations

import sys


def locked(handle: int) -> bool | None:
    """Lock an open file for this descriptor and its duplicates, without waiting.

    Args:
        handle: a descriptor that may write.

    Returns:
        Whether it is locked now; False where somebody else holds it, and None where the system or
        its disk knows no such locks.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file, open(file.name, "rb+") as other:
        ...     locked(file.fileno()), locked(other.fileno())
        (True, False)
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
