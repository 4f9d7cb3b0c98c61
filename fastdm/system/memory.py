"""What an exhausted memory is to the user: one sentence that says what to make smaller."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from fastdm.errors import FastDMError
from fastdm.system.text import size_text

_EXHAUSTED = re.compile(
    r"out of memory|can(no|')t allocate memory|cannot allocate memory|failed to map segment|bad allocation|bad_alloc"
    r"|can't start new thread|resource temporarily unavailable|could not create a (memory|primitive)"
    r"|without (exception set|setting an exception)",  # by C code whose exception could not be made
    re.IGNORECASE,
)
"""How PyTorch, oneDNN, the C library and the loader say so."""

_ASKED = re.compile(r"allocate (\d+) bytes|allocate ([\d.]+ [KMGT]iB)")
"""How PyTorch says for what. Compiled here: where memory is exhausted, there may be none to compile it."""


def is_exhausted(error: BaseException | None) -> bool:
    """Whether an error comes from an allocation, of memory or of a thread's stack, that failed."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        if isinstance(error, RuntimeError | SystemError | ImportError) and _EXHAUSTED.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def within_memory(advice: str) -> Iterator[None]:
    """Make the errors of an exhausted memory, which are of many kinds, one FastDMError that ends with the advice."""
    try:
        yield
    except FastDMError:
        raise
    except Exception as error:
        if not is_exhausted(error):
            raise
        asked = _ASKED.search(str(error))
        size = "" if asked is None else size_text(int(asked[1])) if asked[1] else asked[2].replace(". ", " ")
        more = f" for {size} more" if size else ""
        exhausted = FastDMError(f"the memory that this process may use is not enough{more}; {advice}")
        for note in getattr(error, "__notes__", ()):  # what is saved
            exhausted.add_note(note)
        raise exhausted from error
