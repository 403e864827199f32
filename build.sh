#!/usr/bin/env bash
# Sets everything up and trains GPT-2:  bash build.sh [OPTIONS of train_gpt2.py]
# Sets everything up and runs the tests: bash build.sh test [OPTIONS of pytest]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))'

find_python() {
    local candidate
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c "$supported" >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    echo 'error: no Python 3.11 to 3.14 found; install one, or put it on the PATH' >&2
    return 1
}

if [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]]; then
    python=$(command -v python)
    if ! "$python" -c "$supported"; then
        echo 'error: the active environment is not Python 3.11 to 3.14; use one that is, or deactivate it' >&2
        exit 1
    fi
else
    python=.venv/bin/python
    if ! "$python" -c "$supported" >/dev/null 2>&1; then
        base=$(find_python)
        echo "creating .venv with $("$base" --version)"
        "$base" -m venv --clear .venv
    fi
fi

install() {
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}

if [[ "${1:-}" == test ]]; then
    echo 'installing the requirements and the test extra'
    install --editable '.[test]'
    exec "$python" -m pytest "${@:2}"
fi
echo 'installing requirements.txt'
install --requirement requirements.txt
"$python" prepro_tinyshakespeare.py
exec "$python" train_gpt2.py "$@"
