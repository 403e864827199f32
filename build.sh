#!/usr/bin/env bash
# Sets everything up and trains GPT-2:  bash build.sh [OPTIONS of gpt2 train]
# Sets everything up and runs the tests: bash build.sh test [OPTIONS of pytest]
# Sets everything up, makes a small model that answers questions, and opens a chat with it: bash build.sh chat
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
echo 'installing requirements.txt and the command gpt2'
install --requirement requirements.txt
if ! [[ -x "$(dirname "$python")/gpt2" ]]; then
    install --no-deps --editable .
fi

if [[ "${1:-}" == chat ]]; then
    # A vocabulary of the conversations, and all texts in it; a model that reads the facts, then the conversations, alone
    # and joined into long ones. Those of another seed are for evaluation.
    data=${GPT2_DATA_DIR:-data}
    prepare() {
        "$python" -m gpt2 prepare "$@" --data-dir "$data" --val-fraction 0 --force
    }
    prepare data/chat/talks.jsonl --chat --name chat --vocab bpe:1024
    prepare data/chat/heldout.jsonl --chat --name chat_heldout --vocab "$data/chat_vocabulary"
    prepare data/chat/facts.txt --name chat_facts --documents line --vocab "$data/chat_vocabulary"
    "$python" data/chat/join.py "$data/chat_vocabulary" 4000 1 > "$data/chat_joined.jsonl"
    "$python" data/chat/join.py "$data/chat_vocabulary" 100 2 > "$data/chat_unseen.jsonl"
    prepare "$data/chat_joined.jsonl" --chat --name chat_joined --vocab "$data/chat_vocabulary"
    recipe=(-b 16 -l 3e-3 --lr-schedule cosine --warmup-steps 20 --grad-clip 1)
    "$python" -m gpt2 train --init scratch --layers 3 --heads 4 --channels 128 --context 128 -t 64 "${recipe[@]}" \
        -x 200 --shuffle --train-data "$data/chat_facts_train.bin" --val-every 0 --sample-every 0 --out-dir out-chat/facts
    "$python" -m gpt2 train --init out-chat/facts "${recipe[@]}" --epochs 3 \
        --train-data "$data/chat_train.bin" "$data/chat_joined_train.bin" --val-data "$data/chat_heldout_train.bin" \
        --val-every 100 --sample-every 0 --out-dir out-chat/talks
    echo 'the training questions:'
    "$python" -m gpt2 evaluate out-chat/talks --chat data/chat/talks.jsonl
    echo 'the same questions in other words, held out:'
    "$python" -m gpt2 evaluate out-chat/talks --chat data/chat/heldout.jsonl
    echo 'conversations about one thing after another, in orders not trained on:'
    "$python" -m gpt2 evaluate out-chat/talks --chat "$data/chat_unseen.jsonl"
    chat=("$python" -m gpt2 chat out-chat/talks --temperature 0)
    if [[ -t 0 && -t 1 ]]; then
        exec "${chat[@]}"
    fi
    for question in 'Why is the sky blue?' 'How does a transformer learn?' 'Thank you!'; do
        echo "> $question"
        "${chat[@]}" --prompt "$question"
    done
    exit
fi
"$python" prepro_tinyshakespeare.py
exec "$python" -m gpt2 train "$@"
