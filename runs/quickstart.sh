#!/bin/sh
# The first run: two small models on generated images, README "Start" and configs/shapes/README.md. `make quickstart` without the copies.
# 2 CPU threads, under 5 minutes (71 and 65 s of training in the rows); 400 iterations each, seed 0.
# Writes to work_dirs/quickstart; OUT=results/quickstart renews the committed rows and pictures.
set -e
work=work_dirs/quickstart
python tools/compare.py configs/shapes/hybrid-bi-wkv-test_segformer_1xb8-400_shapes-128x128.py \
    configs/shapes/hybrid-attention-test_segformer_1xb8-400_shapes-128x128.py --out $work --fresh
if [ -n "$OUT" ]; then
    mkdir -p $OUT
    cp $work/results.json $work/table.md $work/sheet.png $work/curves.png $OUT
fi
