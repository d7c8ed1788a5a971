#!/usr/bin/env bash
# Check on one GPU (without one: on the CPU) that every stage computes what it should. Correctness only, no network, at
# most five minutes; a table at the end, exit code 1 where a row failed. `--quick` leaves out what takes longest.
#
#     PYTHON=python3 tests/gpu/check.sh [--quick]
set -euo pipefail
cd "$(dirname "$0")/../.."
export HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export NVIDIA_TF32_OVERRIDE=0 # float32 means float32
exec "${PYTHON:-python3}" tests/gpu/check.py "$@"
