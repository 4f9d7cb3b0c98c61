// The binding file only binds: the core stands in the headers, which know no Python.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

NB_MODULE(_native, module) { module.doc() = "fastdm's C++ core."; }
