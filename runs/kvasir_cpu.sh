#!/bin/sh
# Polyps in Kvasir-SEG at 352x352: docs/evidence.md "Polyps". Hybrid tiny with Bi-WKV, with attention (its twin), without mixing (the control) and
# DeiT-T, 1000 iterations of 4 images from random weights, seed 0; then what they cost, and what answers reach that look at no polyp.
# CPU: 34 to 41 processor minutes per network (1 thread), 3 minutes of an idle machine (2 threads) for the costs.
# Data: docs/datasets.md (LINESCAN_DATA). Writes to work_dirs/; OUT=results/kvasir_cpu-2threads renews the committed rows, moved away before.
set -e
out=${OUT:-work_dirs/kvasir_cpu-2threads}
hybrid=configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb4-1k_kvasir-352x352.py
twin=configs/hybrid/hybrid-attention-tiny_segformer_1xb4-1k_kvasir-352x352.py
control=configs/hybrid/hybrid-none-tiny_segformer_1xb4-1k_kvasir-352x352.py
deit=configs/timm/deit-tiny_segformer_1xb4-1k_kvasir-352x352.py

python runs/kvasir_floor.py $out/floor.json
OMP_NUM_THREADS=1 python runs/train_seeds.py work_dirs/kvasir-1k $out/accuracy.json $hybrid $twin $control $deit --seeds 0
python tools/profile_model.py $hybrid $control $deit --baseline $twin --sizes 352 --threads 2 --rounds 9 --max-seconds 60 --out $out
python tools/profile_model.py $hybrid $control $deit --baseline $twin --sizes 352 --batch 4 --train --no-operators --threads 2 --rounds 5 \
    --max-seconds 60 --append --out $out
