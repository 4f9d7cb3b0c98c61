"""Ops, bytes of results and bytes moved, counted by dispatch: figures without noise."""

from collections import Counter
from typing import Any, Self

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class OpCounter(TorchDispatchMode):
    """Counts within its block.

    calls: of each op that does work, that is of all but views and bare allocations.
    allocated: bytes of every new result.
    moved: bytes of the arguments and results of every op that does work, each read or written once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.allocated = self.moved = 0

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        for tensor, declared in zip(results, func._schema.returns, strict=False):
            if isinstance(tensor, Tensor) and declared.alias_info is None:
                self.allocated += tensor.numel() * tensor.element_size()
        name = func._schema.name
        if not func.is_view and name.removeprefix("aten::") not in _ALLOCATIONS:
            self.calls[name] += 1
            for value in tree_leaves((args, kwargs, result)):
                if isinstance(value, Tensor):  # An expanded one is as large as what it repeats.
                    self.moved += min(value.numel() * value.element_size(), value.untyped_storage().nbytes())
        return result
