#!/bin/sh
# Hybrid tiny with Bi-WKV on CamVid at half size, 1000 iterations of 8 images: configs/hybrid/README.md.
# 1 CPU thread, 49 minutes of training on a machine with other jobs; seed 0.
# Data: docs/datasets.md (LINESCAN_DATA). Writes to work_dirs/camvid-1k; OUT=results/camvid renews the committed row, which an earlier
# version of the tools wrote in other words (kind "evaluation" instead of "comparison").
set -e
work=work_dirs/camvid-1k
export OMP_NUM_THREADS=1
python tools/compare.py configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb8-1k_camvid-180x240.py --out $work --seed 0
if [ -n "$OUT" ]; then
    mkdir -p $OUT
    cp $work/results.json $OUT/hybrid-tiny_180x240_cpu.json
fi
