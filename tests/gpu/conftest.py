import pytest
import torch

collect_ignore_glob = [] if torch.cuda.is_available() else ["*"]

ORDER = ["test_step", "test_evaluation", "test_stream", "test_kernels", "test_sanitizer"]
"""By how much is lost if a test fails, should the time not suffice for all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else 0)
