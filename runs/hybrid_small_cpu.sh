#!/bin/sh
# The small hybrid with Bi-WKV against its attention twin, 224 to 2048 pixels: docs/evidence.md "High resolution".
# 2 CPU threads on an idle machine, about 15 minutes. Untrained weights; nothing is random in what is measured.
# Writes to work_dirs/hybrid-small_cpu-2threads_fp32; OUT=results/hybrid-small_cpu-2threads_fp32 renews the committed rows, moved away before.
set -e
out=${OUT:-work_dirs/hybrid-small_cpu-2threads_fp32}
python tools/profile_model.py hybrid:small:bi_wkv --options mlp_ratio=2 --sizes 224,512,1024,2048 --threads 2 --rounds 9 --max-seconds 240 \
    --out $out "$@"
