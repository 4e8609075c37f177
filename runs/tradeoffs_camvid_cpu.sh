#!/bin/sh
# What depth and resolution buy, on CamVid: docs/tradeoffs.md. Trains the networks (500 iterations of 8 images of 180x240, seed 0; what has its
# metrics.json is not trained again), then tests each at four image sizes and measures what it costs there.
# 2 CPU threads: about 1.5 hours for the trainings, 25 minutes on an idle machine for the rest. Data: docs/datasets.md (LINESCAN_DATA).
set -e
work=work_dirs/camvid-500
out=results/tradeoffs_camvid_cpu-2threads
configs="configs/deeplabv3plus/mobilenet-v2-d16_deeplabv3plus_1xb8-500_camvid-180x240.py configs/deeplabv3plus/r18-d16_deeplabv3plus_1xb8-500_camvid-180x240.py
    configs/hybrid/hybrid-bi-wkv-tiny_segformer_1xb8-500_camvid-180x240.py configs/hybrid/hybrid-attention-tiny_segformer_1xb8-500_camvid-180x240.py"
twin=configs/hybrid/hybrid-attention-tiny_segformer_1xb8-500_camvid-180x240.py

python tools/compare.py $configs --out $work --seed 0
for config in $configs; do checkpoints="$checkpoints $(ls $work/$(basename $config .py)/best_mIoU_*.pth)"; done
for size in 120x160 180x240 270x360 360x480; do
    scale="test_dataloader.dataset.pipeline.1.scale=(${size#*x},${size%x*})"
    python tools/profile_model.py $configs --baseline $twin --eval $checkpoints --options "$scale" --sizes $size --threads 2 --rounds 9 \
        --max-seconds 60 --append --out $out
done
# ResNet-50 for its cost; and a training step of all at the size of the training.
deeper=configs/deeplabv3plus/r50-d16_deeplabv3plus_1xb8-500_camvid-180x240.py
python tools/profile_model.py $configs $deeper --baseline $twin --sizes 180x240 --train --threads 2 --max-seconds 60 --append --out $out
python tools/profile_model.py $deeper --baseline $twin --sizes 120x160,270x360,360x480 --threads 2 --max-seconds 60 --append --out $out
