#!/bin/sh
# Ten classes of Caltech-101, hybrid test with Bi-WKV and with attention: configs/caltech/README.md.
# 1 CPU thread, 2 processor minutes per model; seed 0; what has its metrics.json is not trained again.
# Data: docs/datasets.md (LINESCAN_DATA). Writes to work_dirs/caltech; OUT=results/caltech renews the committed rows and curves.
set -e
work=work_dirs/caltech
export OMP_NUM_THREADS=1
python tools/compare_classifiers.py configs/caltech/hybrid-bi-wkv-test_1xb32-50e_caltech10-64.py \
    configs/caltech/hybrid-attention-test_1xb32-50e_caltech10-64.py --out $work --seed 0
if [ -n "$OUT" ]; then
    mkdir -p $OUT
    cp $work/results.json $OUT/hybrid-test_64x64_cpu-1thread.json
    cp $work/curves.png $OUT
fi
