#!/bin/sh
# The whole CamVid comparison on one GPU in 25 minutes: docs/evidence.md "CamVid". 15 networks, seeds 0, 1 and 2, 500 iterations of 16 images at full
# size (360x480) in bf16, from random weights. It has not run on any GPU yet, and nothing here says how fast one is: costs come first, at most
# 30 s of rounds per condition; then trainings start for 20 minutes (27 s for each of the 45 runs, if all are to be made), seed by seed, the most
# telling networks first. What is then missing are seeds of the last networks, and a second call makes it: what is there is not trained again.
# Data: docs/datasets.md (LINESCAN_DATA); 12 data workers, 16 cores. Writes to work_dirs/camvid-500_gpu and to work_dirs/camvid_gpu_bf16.
set -e
out=${OUT:-work_dirs/camvid_gpu_bf16}
hybrid=configs/hybrid/hybrid
recipe=tiny_segformer_1xb8-500_camvid-180x240.py
same=segformer_1xb8-500_camvid-180x240.py
twin=$hybrid-attention-$recipe
others="$hybrid-bi-wkv-$recipe $hybrid-none-$recipe $hybrid-gated-conv-$recipe configs/timm/deit-tiny_$same configs/timm/swin-micro_$same
    configs/vrwkv/vrwkv-tiny_$same configs/vmamba/vmamba-micro_$same configs/timm/convnext-femto_$same configs/vim/vim-tiny_$same
    $hybrid-linear-attention-$recipe $hybrid-ss2d-$recipe $hybrid-ssd-$recipe $hybrid-bi-wkv6-$recipe
    configs/deeplabv3plus/mobilenet-v2-d16_deeplabv3plus_1xb8-500_camvid-180x240.py"

python tools/profile_model.py $others --baseline $twin --sizes 360x480 --batch 1 --device cuda --dtype bf16 --no-operators \
    --rounds 30 --max-seconds 30 --out $out
python tools/profile_model.py $others --baseline $twin --sizes 360x480 --batch 16 --train --device cuda --dtype bf16 --no-operators \
    --rounds 10 --max-seconds 30 --append --out $out
python runs/train_seeds.py work_dirs/camvid-500_gpu $out/accuracy.json $twin $others --seeds 0 1 2 --max-minutes 20 --cfg-options \
    "model.data_preprocessor.size=(360,480)" "train_dataloader.dataset.pipeline.2.scale=(480,360)" \
    "train_dataloader.dataset.pipeline.3.crop_size=(360,480)" "val_dataloader.dataset.pipeline.1.scale=(480,360)" \
    "test_dataloader.dataset.pipeline.1.scale=(480,360)" train_dataloader.batch_size=16 train_dataloader.num_workers=12 \
    val_dataloader.num_workers=4 test_dataloader.num_workers=4 optim_wrapper.type=MixedPrecisionOptimWrapper optim_wrapper.precision=bf16
