"""Every public function shows an example, and the examples run."""

import doctest
import inspect

import pytest

import fastdm

PUBLIC = [name for name in fastdm.__all__ if name not in ("FastDMError", "__version__")]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_of_a_public_name_runs(name: str) -> None:
    value = getattr(fastdm, name)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(value) or "", {}, name, None, None)
    assert examples.examples, f"fastdm.{name} has no example"
    output: list[str] = []
    assert doctest.DocTestRunner().run(examples, out=output.append).failed == 0, "".join(output)
