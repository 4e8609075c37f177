#!/bin/sh
# The same on a GPU in bf16, where attention runs as a flash kernel: docs/evidence.md "High resolution". It has not run on any GPU yet.
# Seconds per size where compiled kernels are cached, after the compilation of the Triton kernels. Writes to work_dirs/hires_gpu_bf16.
set -e
python runs/hires.py ${OUT:-work_dirs/hires_gpu_bf16} --device cuda --dtype bf16 --rounds 30 "$@"
