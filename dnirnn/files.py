"""Files that are written, and the errors where they can't be."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class StorageError(ValueError):
    """A folder that can't be written: no space left, no permission, not a folder."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError into a StorageError that names what could not be written, and why."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            why = "no space left on the disk"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            why = "no permission to write there"
        else:
            why = error.strerror or str(error)
        raise StorageError(f"{path} could not be written: {why}") from error
