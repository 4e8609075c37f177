#!/bin/sh
# Other networks of about the hybrid's size in its place, on CamVid: docs/evidence.md "CamVid". DeiT, Swin, ConvNeXt and VRWKV under the head and the
# recipe of camvid_cpu.sh, DeepLabV3+ with its own head, seed 0 alone; then what they cost.
# CPU: 10 to 37 processor minutes per network (1 thread); for the costs 4 minutes of an idle machine (2 threads). What has its metrics.json is not
# trained again; networks="A.py B.py" takes others, such as Vim, VMamba or the hybrid's other mixers (camvid_gpu.sh names all).
# Data: docs/datasets.md (LINESCAN_DATA). Writes to work_dirs/; OUT=results/camvid-others_cpu-2threads renews the committed rows (accuracy.json and the
# profile), moved away before.
set -e
out=${OUT:-work_dirs/camvid-others_cpu-2threads}
recipe=segformer_1xb8-500_camvid-180x240.py
twin=configs/hybrid/hybrid-attention-tiny_$recipe
six="configs/timm/deit-tiny_$recipe configs/timm/swin-micro_$recipe configs/timm/convnext-femto_$recipe configs/vrwkv/vrwkv-tiny_$recipe
    configs/deeplabv3plus/mobilenet-v2-d16_deeplabv3plus_1xb8-500_camvid-180x240.py
    configs/deeplabv3plus/r18-d16_deeplabv3plus_1xb8-500_camvid-180x240.py"
networks=${networks:-$six}

OMP_NUM_THREADS=1 python runs/train_seeds.py work_dirs/camvid-500 $out/accuracy.json $networks --seeds 0
python tools/profile_model.py $networks --baseline $twin --sizes 180x240 --threads 2 --rounds 9 --max-seconds 120 --out $out
python tools/profile_model.py $networks --baseline $twin --sizes 180x240 --batch 8 --train --no-operators \
    --threads 2 --rounds 5 --max-seconds 300 --append --out $out
