#!/bin/sh
# What depth and resolution buy, on CamVid: docs/tradeoffs.md. Trains four networks (500 iterations of 8 images of 180x240, seed 0; what has its
# metrics.json is not trained again), tests each at four image sizes and measures what it costs there. ResNet-50 is measured, not trained.
# CPU: about 1.5 hours of 2 cores for the trainings, 10 minutes for the tests, 10 minutes of an idle machine for the costs.
# Data: docs/datasets.md (LINESCAN_DATA). Writes to work_dirs/; OUT=results/tradeoffs_camvid_cpu-2threads renews the committed rows, moved away before.
set -e
work=work_dirs/camvid-500/seed0  # camvid_cpu.sh trains two of the four too
out=${OUT:-work_dirs/tradeoffs_camvid_cpu-2threads}
hybrid=configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240.py
twin=configs/hybrid/hybrid-attention-tiny_segformer_1xb8-500_camvid-180x240.py
mobilenet=configs/deeplabv3plus/mobilenet-v2-d16_deeplabv3plus_1xb8-500_camvid-180x240.py
resnet18=configs/deeplabv3plus/r18-d16_deeplabv3plus_1xb8-500_camvid-180x240.py
resnet50=configs/deeplabv3plus/r50-d16_deeplabv3plus_1xb8-500_camvid-180x240.py

python tools/compare.py $mobilenet $resnet18 $hybrid $twin --out $work --seed 0
python runs/evaluate_sizes.py $work $out/accuracy.json $mobilenet $resnet18 $hybrid $twin --sizes 120x160 180x240 270x360 360x480
python tools/profile_model.py $mobilenet $resnet18 $resnet50 $hybrid --baseline $twin --sizes 120x160,180x240,270x360,360x480 \
    --threads 2 --rounds 9 --max-seconds 60 --out $out
python tools/profile_model.py $mobilenet $resnet18 $resnet50 $hybrid --baseline $twin --sizes 180x240 --batch 8 --train --no-operators \
    --threads 2 --rounds 5 --max-seconds 60 --append --out $out
