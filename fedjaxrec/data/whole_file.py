"""Files that are whole or absent, whoever is killed and whoever else writes.

A file is written beside its place, forced to the disk and then moved there, so
that a process killed at any moment leaves the old file or the new one, and of
several writers at once one wins. What a killed process leaves beside it begins
with TEMPORARY_PREFIX, and may be removed.
"""

import contextlib
import os
import pathlib
import secrets
import stat
from collections.abc import Iterator
from typing import BinaryIO

TEMPORARY_PREFIX = '.fedjaxrec-'


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """Opens a file that takes a path's place when the `with` statement is left.

  Left by an exception, it is removed, and what was there stays. The file may
  be read and written by whom the umask lets, as any new file; one that takes
  an older one's place keeps its mode. Cost beside writing: one fsync.

  Args:
    path: The place, in a folder that exists.

  Yields:
    The file, open for writing bytes.

  Raises:
    OSError: If the folder cannot be written to, or is full.
  """
  path = pathlib.Path(path)
  temporary = path.parent / f'{TEMPORARY_PREFIX}{secrets.token_hex(8)}'
  # `tempfile` makes files for their owner alone, and the umask cannot be read
  # without changing it for every thread; a file that is opened obeys it.
  with open(temporary, 'xb') as file:
    try:
      with contextlib.suppress(FileNotFoundError):
        os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
      yield file
      file.flush()
      os.fsync(file.fileno())
      file.close()
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        os.unlink(temporary)
      raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a text file in UTF-8, as a whole or not at all."""
  with replacing(path) as file:
    file.write(text.encode())
