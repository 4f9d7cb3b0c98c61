"""Every public function of the ops shows an example, and the examples run."""

import doctest
import inspect

import pytest

from fastdm import kernels


@pytest.mark.parametrize("name", sorted(set(kernels.__all__) - {"table"}))
def test_the_example_of_a_public_name_runs(name: str) -> None:
    value = getattr(kernels, name)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(value) or "", {}, name, None, None)
    assert examples.examples, f"fastdm.kernels.{name} has no example"
    output: list[str] = []
    assert doctest.DocTestRunner().run(examples, out=output.append).failed == 0, "".join(output)
