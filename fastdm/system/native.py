"""The C++ core if it is installed; its callers have a slower PyTorch form."""

import functools
import importlib
import logging
from types import ModuleType

logger = logging.getLogger("fastdm")


@functools.cache
def native() -> ModuleType | None:
    """`fastdm._native`, or None if it is not installed (`FASTDM_PURE=1`), which is logged once."""
    try:
        return importlib.import_module("fastdm._native")
    except ModuleNotFoundError:
        logger.warning("fastdm is installed without its C++ core: data is loaded through PyTorch, slower.")
        return None
