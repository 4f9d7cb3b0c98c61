#!/bin/sh
# Run the C++ core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer: first the headers alone
# (core_test.cpp), then the bindings, fuzzed from Python (test_fuzz.py).
#     tests/csrc/sanitize.sh [python]
set -eu
cd "$(dirname "$0")/../.."
python=${1:-python3}
cxx=${CXX:-c++}
work=build/sanitize
mkdir -p "$work/fastdm"
options="-std=c++17 -O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all -ffp-contract=off -pthread -Icsrc"
# ThreadSanitizer of older compilers cannot live with much address space randomisation.
fixed=$(command -v setarch >/dev/null && echo "setarch -R" || true)

for sanitizer in address,undefined thread; do
    echo "== headers, -fsanitize=$sanitizer"
    "$cxx" $options -fsanitize=$sanitizer tests/csrc/core_test.cpp -o "$work/core_test"
    $fixed "$work/core_test"
done

echo "== bindings, -fsanitize=address,undefined"
includes=$("$python" -c 'import nanobind, pathlib, sysconfig
root = pathlib.Path(nanobind.include_dir())
robin_map = root.parent / "ext" / "robin_map" / "include"
print(*(f"-I{path}" for path in (sysconfig.get_path("include"), root, nanobind.source_dir(), robin_map)))')
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
"$cxx" $options $includes -fsanitize=address,undefined -fvisibility=hidden -fno-strict-aliasing -DNDEBUG -shared -fPIC \
    csrc/bindings.cpp csrc/nanobind_runtime.cpp -o "$work/fastdm/_native$suffix"
cp fastdm/__init__.py "$work/fastdm/"
preload=$("$cxx" -print-file-name=libasan.so):$("$cxx" -print-file-name=libubsan.so)
# Python does not give back all of its memory at exit: leaks are not looked for. -P and pythonpath=: the extension is to
# be the one built here, not the installed one.
LD_PRELOAD=$preload ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=$work "$python" -P -c '
import sys, pytest
code = pytest.main(["-q", "-p", "no:cacheprovider", "-o", "pythonpath=", *sys.argv[1:]])
import fastdm._native
assert "sanitize" in fastdm._native.__file__, fastdm._native.__file__
sys.exit(code)' tests/csrc/test_fuzz.py tests/csrc/test_read.py tests/csrc/test_resize.py
