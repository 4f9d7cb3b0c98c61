#!/bin/sh
# Run the C++ core under AddressSanitizer with UndefinedBehaviorSanitizer, and under ThreadSanitizer: first the headers
# alone (core_test.cpp), then the bindings, fuzzed and called from many threads of Python.
#     tests/csrc/sanitize.sh [python]
set -eu
cd "$(dirname "$0")/../.."
python=${1:-python3}
cxx=${CXX:-c++}
options="-std=c++17 -O1 -g1 -fno-omit-frame-pointer -fno-sanitize-recover=all -ffp-contract=off -pthread -Icsrc
    -fvisibility=hidden -fno-strict-aliasing -DNDEBUG -fPIC"
includes=$("$python" -c 'import nanobind, pathlib, sysconfig
root = pathlib.Path(nanobind.include_dir())
robin_map = root.parent / "ext" / "robin_map" / "include"
print(*(f"-I{path}" for path in (sysconfig.get_path("include"), root, nanobind.source_dir(), robin_map)))')
suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
# Older ThreadSanitizers fail under much address space randomisation.
fixed=$(command -v setarch >/dev/null && echo "setarch -R" || true)
# Leaks are not checked: Python does not free all of its memory at exit. The suppression: the C library reuses the memory
# of a finished thread in a way that ThreadSanitizer does not see.
mkdir -p build/sanitize
echo "race:_dl_deallocate_tls" >build/sanitize/suppressions
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
export TSAN_OPTIONS=halt_on_error=1:allocator_may_return_null=1:suppressions=build/sanitize/suppressions
export FASTDM_THREADS=4

check() { # sanitizers, and their libraries in the order in which they must be loaded
    work=build/sanitize/$1
    mkdir -p "$work/fastdm"
    "$cxx" $options -fsanitize="$1" tests/csrc/core_test.cpp -o "$work/core_test"
    $fixed "$work/core_test"
    "$cxx" $options $includes -fsanitize="$1" -shared csrc/bindings.cpp csrc/nanobind_runtime.cpp \
        -o "$work/fastdm/_native$suffix"
    cp fastdm/__init__.py fastdm/version.py "$work/fastdm/"
    preload=
    for library in $2; do preload=$preload:$("$cxx" -print-file-name="$library"); done
    # -P and pythonpath= keep the installed extension from shadowing the one built here.
    LD_PRELOAD=$preload PYTHONPATH=$work $fixed "$python" -P -c '
import sys, pytest
work, *tests = sys.argv[1:]
code = pytest.main(["-q", "-s", "-p", "no:cacheprovider", "-o", "pythonpath=", *tests])  # -s shows the reports
import fastdm._native
assert work in fastdm._native.__file__, fastdm._native.__file__
sys.exit(code)' "$work" tests/csrc/test_fuzz.py tests/csrc/test_threads.py tests/csrc/test_record_file.py \
        tests/csrc/test_resize.py
}

check address,undefined "libasan.so libubsan.so" &
address=$!
check thread libtsan.so &
thread=$!
failed=0
wait $address || failed=1
wait $thread || failed=1
exit $failed
