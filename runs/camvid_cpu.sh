#!/bin/sh
# What the token mixer is worth, on CamVid: docs/evidence.md "CamVid". Hybrid tiny with Bi-WKV, with attention (its twin), with gated convolutions (the
# local control) and without mixing (the control), 500 iterations of 8 images of 180x240 from random weights, seeds 0, 1 and 2; then what they cost.
# CPU: 11 to 13 processor minutes per network and seed (1 thread); for the costs an idle machine (2 threads), timed rounds of 5 minutes at most.
# What has its metrics.json is not trained again. Data: docs/datasets.md (LINESCAN_DATA). Writes to work_dirs/; OUT=results/camvid_cpu-2threads
# renews the committed rows (accuracy.json and the profile), moved away before.
set -e
out=${OUT:-work_dirs/camvid_cpu-2threads}
hybrid=configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240.py
twin=configs/hybrid/hybrid-attention-tiny_segformer_1xb8-500_camvid-180x240.py
local=configs/hybrid/hybrid-gated-conv-tiny_segformer_1xb8-500_camvid-180x240.py
control=configs/hybrid/hybrid-none-tiny_segformer_1xb8-500_camvid-180x240.py

OMP_NUM_THREADS=1 python runs/train_seeds.py work_dirs/camvid-500 $out/accuracy.json $hybrid $twin $local $control --seeds 0 1 2
python tools/profile_model.py $hybrid $local $control --baseline $twin --sizes 180x240 --threads 2 --rounds 15 --max-seconds 60 --out $out
python tools/profile_model.py $hybrid $local $control --baseline $twin --sizes 180x240 --batch 8 --train --no-operators \
    --threads 2 --rounds 9 --max-seconds 120 --append --out $out
