#!/bin/sh
# Does the mixer see far? Shapes at 192x192, 2000 iterations: docs/evidence.md "Far context", configs/shapes/README.md.
# 1 CPU thread, 12 to 13 processor minutes per model; seed 0; what has its metrics.json is not trained again.
# Writes to work_dirs/shapes; OUT=results/shapes renews the committed rows and pictures.
set -e
work=work_dirs/shapes
export OMP_NUM_THREADS=1
python tools/compare.py configs/shapes/hybrid-bi-wkv-test_segformer_1xb8-2k_shapes-192x192.py \
    configs/shapes/hybrid-attention-test_segformer_1xb8-2k_shapes-192x192.py \
    configs/shapes/hybrid-none-test_segformer_1xb8-2k_shapes-192x192.py --out $work --seed 0
if [ -n "$OUT" ]; then
    mkdir -p $OUT
    cp $work/results.json $OUT/far_context_192x192_cpu.json
    cp $work/sheet.png $work/curves.png $OUT
fi
