"""The C++ core if it is installed; its callers have a slower PyTorch form."""

import functools
import logging
from types import ModuleType

from fastdm.kernels import extension

logger = logging.getLogger("fastdm")


@functools.cache
def native() -> ModuleType | None:
    """`fastdm._native`, or None if it is not installed (`FASTDM_PURE=1`), which is logged once."""
    module: ModuleType | None = extension.load()
    if module is None:
        logger.warning("fastdm is installed without its C++ core: data is loaded through PyTorch, slower.")
    return module
