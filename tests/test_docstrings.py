"""Every public function shows an example, and the examples run."""

import doctest
import inspect
from types import ModuleType

import pytest

import fastdm
import fastdm.compat

PUBLIC = [(fastdm, name) for name in fastdm.__all__ if name not in ("FastDMError", "__version__")]
PUBLIC += [(fastdm.compat, name) for name in fastdm.compat.__all__ if name not in fastdm.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[name for _, name in PUBLIC])
def test_the_example_of_a_public_name_runs(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(value) or "", {}, name, None, None)
    assert examples.examples, f"{module.__name__}.{name} has no example"
    output: list[str] = []
    assert doctest.DocTestRunner().run(examples, out=output.append).failed == 0, "".join(output)
