#!/bin/sh
# Scan operators against softmax attention on the same tokens: docs/kernels.md "Timing", the tables of kernels/*/README.md.
# 2 CPU threads (SSD: 1) of an idle machine; the timed calls of the rows add up to 9 minutes. Inputs from seed 0. Without a C compiler the rows
# have PyTorch alone.
# Writes to work_dirs/kernels; OUT=results/kernels renews the committed rows and the picture of the sweep:
#   bi_wkv_shapes_cpu-2threads_float32.json, bi_wkv_sweep_cpu-2threads_float32.json, bi_wkv6_shapes_cpu-2threads_float32.json,
#   selective_scan_shapes_cpu-2threads_float32.json, ssd_shapes_cpu-1threads_float32.json
set -e
out=${OUT:-work_dirs/kernels}
python tools/benchmark_kernels.py --op bi_wkv --threads 2 --repeats 21 --shapes 1x4096x384 2x1024x192 8x196x192 --out $out
python tools/benchmark_kernels.py --op bi_wkv --threads 2 --repeats 15 --sweep --attention-max-tokens 4096 --plot --out $out
python tools/benchmark_kernels.py --op bi_wkv6 --threads 2 --repeats 5 --mode fwd fwdbwd --out $out
python tools/benchmark_kernels.py --op selective_scan --threads 2 --repeats 9 --out $out
python tools/benchmark_kernels.py --op ssd --threads 1 --repeats 9 --mode fwd fwdbwd --shapes 1x4096x6x64x1x64 8x196x96x16x4x64 --out $out
