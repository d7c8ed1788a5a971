#!/usr/bin/env bash
# Check on one GPU that every stage computes what it should, and measure PPO's speed and memory beside TRL's trainer. No
# network, at most eight minutes; a table, exit code 1 where a row failed. Without a GPU: correctness, and with `--toy`
# speed at toy size, which tests this script. `--quick` leaves out what takes longest.
#
#     PYTHON=python3 tests/gpu/check.sh [--quick] [--toy] [--minutes 8] [--json FILE] [--markdown FILE]
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
export HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
export NVIDIA_TF32_OVERRIDE=0 # float32 means float32
export CUBLAS_WORKSPACE_CONFIG=:4096:8 # matrix products give the same bits each time
exec "${PYTHON:-python3}" "$root/tests/gpu/check.py" "$@"
