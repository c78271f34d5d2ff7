#!/bin/sh
# Compile the C file of Triton's NVIDIA backend once, into ENVIRONMENT/lib/triton-cc, for triton-cc to hand out.
# usage: prebuild.sh ENVIRONMENT (does nothing where Triton is not installed)
set -eu
environment=$1
here=$(dirname "$0")
python=$environment/bin/python
backend=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/triton/backends/nvidia
install -m 0755 "$here/triton-cc" "$environment/bin/triton-cc"
[ -f "$backend/driver.c" ] || exit 0
if grep -q make_launcher "$backend/driver.py"; then
  echo "prebuild.sh: this Triton compiles a C file for every kernel; expected 3.7 or later, which has one fixed file" >&2
  exit 1
fi
made=$environment/lib/triton-cc
mkdir -p "$made"
# No driver here: link against a library that has nothing but the driver's name.
stubs=$(mktemp -d)
gcc -shared -Wl,-soname,libcuda.so.1 -o "$stubs/libcuda.so.1" -x c /dev/null
gcc "$backend/driver.c" -O3 -shared -fPIC -Wno-psabi -o "$made/cuda_utils.so" \
  -Wl,--no-as-needed "-L$stubs" -l:libcuda.so.1 \
  "-I$backend/include" "-I$("$python" -c 'import sysconfig; print(sysconfig.get_paths(scheme="posix_prefix")["include"])')"
sha256sum "$backend/driver.c" | cut -d' ' -f1 > "$made/source.sha256"
rm -r "$stubs"
