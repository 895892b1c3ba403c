"""Files that are whole or not there, and a folder that one run has to itself."""

import contextlib
import errno
import os
from pathlib import Path

from support.cli import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def write_atomically(path, content):
    """Write `content` (bytes or str) so that `path` holds, at every instant, all of the old or all of the new.

    Temporary file in the same folder, flush, fsync, rename, fsync of the folder. Whatever stops it, even Ctrl-C,
    the temporary file is removed; only a kill or a power cut can leave one. Raises OSError with the file's name.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    if hasattr(os, "O_DIRECTORY"):  # a rename is only on disk once its folder is; Windows has no such call
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.EINVAL):  # a file system that has no such call for folders
                raise
        finally:
            os.close(folder)


def read_text(path):
    """The text of a file in UTF-8, whatever the system's own encoding is."""
    return Path(path).read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def lock(folder):
    """Claim the folder for this process; the claim ends with the process, however that ends. Raises UserError."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            where = Path(folder).resolve()
            raise UserError(f"another run writes to {where}; wait for it or use another folder") from None
        yield
    finally:
        os.close(handle)
