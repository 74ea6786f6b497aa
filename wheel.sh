#!/bin/sh
# Builds the product's wheel into DEST:  wheel.sh DEST [options of `pip wheel`]        PYTHON=python3
# From a copy: with HATCH_BUILD_HOOK_ENABLE_MYPYC=1 the compiler leaves its modules beside the sources.
set -eu
# Compiled modules call each other and Python straight, not through tables that leave every function open to replacement:
# a request runs through much code, and to fetch it takes a good part of the time. (CFLAGS would replace Python's own.)
# mypyc asks for warnings, and to look for misleading indentation takes GCC minutes: it is quadratic.
export CPPFLAGS="-fno-semantic-interposition -fno-plt -Wno-misleading-indentation ${CPPFLAGS:-}" LDFLAGS="-Wl,-Bsymbolic-functions ${LDFLAGS:-}"
dest=${1:?where to? wheel.sh DEST}
shift
mkdir -p "$dest"
dest=$(cd "$dest" && pwd)
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
cd "$(dirname "$0")"
cp pyproject.toml README.md LICENSE "$source"
# Without what Python leaves beside the sources: other processes write there, and files that were seen are gone again.
"${PYTHON:-python3}" - "$source" cli config console decisions extproc panel proto signals stepwise upstream <<'EOF'
import shutil, sys
for room in sys.argv[2:]:
    shutil.copytree(room, f"{sys.argv[1]}/{room}", ignore=shutil.ignore_patterns("__pycache__"))
EOF
"${PYTHON:-python3}" -m pip --quiet --disable-pip-version-check wheel --no-deps -w "$dest" "$@" "$source"
