"""The C++ core if it is installed; what asks for it has a slower PyTorch form beside it."""

import functools
import importlib
import logging
from types import ModuleType

logger = logging.getLogger("fastdm")


@functools.cache
def native() -> ModuleType | None:
    """``fastdm._native``, or None in an installation without it (``FASTDM_PURE=1``), which is said once."""
    try:
        return importlib.import_module("fastdm._native")
    except ModuleNotFoundError:
        logger.warning("fastdm is installed without its C++ core: data goes through PyTorch, slower.")
        return None
