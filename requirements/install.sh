#!/usr/bin/env bash
# Build .venv from requirements/<device>.lock: requirements/install.sh cpu|cuda. Called by `make install`.
#
# torch goes in first *with* its dependencies, because its CUDA build, which is what the default package index offers on
# Linux, needs NVIDIA's libraries and triton; everything else follows from the lock with --no-deps, so that nothing can
# pull in another torch or the other FBGEMM.
set -euo pipefail
cd "$(dirname "$0")/.."

device=${1:-cpu}
lock=requirements/$device.lock
venv=${VENV:-.venv}
unfinished=$venv/.unfinished

say() { printf 'set-up: %s\n' "$*"; }
fail() { printf 'set-up failed: %s\n' "$*" >&2; exit 1; }

# A working Python 3.11 or newer that can make virtual environments; some systems ship one without ensurepip.
fits() { "$1" -c 'import ensurepip, sqlite3, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer with the modules venv, ensurepip and sqlite3"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.11 python3.12 python3.13 python3; do
        if fits "$candidate"; then echo "$candidate"; return; fi
    done
    fail "no Python 3.11 or newer with the modules venv, ensurepip and sqlite3 was found; name one: make install PYTHON=/path/to/python3"
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

[ -f "$lock" ] || fail "DEVICE=$device: there is no $lock (DEVICE is cpu or cuda)"
rm -f "$venv"/.installed-*

# An interrupted pip leaves packages that look installed and are not, so an unfinished environment is begun again.
if [ -e "$unfinished" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    say "new environment in $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
touch "$unfinished"

# Both builds of FBGEMM own one folder. Where the wrong one is there, or one over the other, both go.
fbgemm=$("$venv/bin/python" - <<'PY'
from importlib.metadata import PackageNotFoundError, files
def owns(name):
    try:
        return any(file.parts[0] == "fbgemm_gpu" for file in files(name) or [])
    except PackageNotFoundError:
        return False
print("".join(device for device, name in (("cpu", "fbgemm-gpu-cpu"), ("cuda", "fbgemm-gpu")) if owns(name)))
PY
)
if [ -n "$fbgemm" ] && [ "$fbgemm" != "$device" ]; then
    say "removing the FBGEMM that is there ($fbgemm)"
    pip uninstall --quiet --yes fbgemm-gpu fbgemm-gpu-cpu
fi

torch=$(grep '^torch==' "$lock")
say "$torch with its dependencies"
pip install --quiet --constraint "$lock" "$torch"
say "everything else from $lock"
pip install --quiet --no-deps --requirement "$lock"
if [ "$device" = cpu ] && [ "$(uname -s)" = Linux ]; then
    pip install --quiet --no-deps --no-build-isolation ./requirements/fbgemm_gpu_shim
fi
pip install --quiet --no-deps --no-build-isolation --editable .

say "checking"
pip check
"$venv/bin/python" -W ignore - <<'PY'
import importlib, sys
import torch

cuda = torch.version.cuda
print(f"set-up: found torch {torch.__version__}, " + (f"the CUDA {cuda} build" if cuda else "the CPU wheel"))
names = ["mlflow", "optuna"] + (["fbgemm_gpu", "torchrec"] if sys.platform == "linux" else [])
versions = [f"{name} {importlib.import_module(name).__version__}" for name in names]
print("set-up: imported " + ", ".join(versions))
PY

rm -f "$unfinished"
touch "$venv/.installed-$device"
say "done"
