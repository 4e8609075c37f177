#!/bin/sh
# Multiply-adds of the hybrids and their attention twins by image size, MLP ratio 2 everywhere: docs/evidence.md "High resolution".
# Any machine, under a minute of one core; exact counts on shapes, nothing is timed or random.
# Writes to work_dirs/macs; OUT=results/macs renews the committed rows, moved away before.
set -e
out=${OUT:-work_dirs/macs}
python runs/counts.py $out/hybrid_mlp2.json hybrid:tiny:bi_wkv hybrid:tiny:attention hybrid:small:bi_wkv hybrid:small:attention \
    --options mlp_ratio=2 --sizes 224 512 1024
