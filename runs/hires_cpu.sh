#!/bin/sh
# Large images, up to 2048x1536 (the size of hires_weeds): docs/evidence.md "High resolution". Untrained weights; cost does not depend on them.
# 2 CPU threads on an idle machine, fp32, batch 1, about 11 minutes.
# Writes to work_dirs/hires_cpu-2threads_fp32; OUT=results/hires_cpu-2threads_fp32 renews the committed rows, moved away before.
set -e
python runs/hires.py ${OUT:-work_dirs/hires_cpu-2threads_fp32} --threads 2 --rounds 5 --max-seconds 100 "$@"
