#!/bin/sh
# All families at about 25 M parameters against DeiT-S at 512 and 1024 pixels: docs/model_zoo.md "Speed on a CPU".
# 2 CPU threads on an idle machine, about 12 minutes. Untrained weights; nothing is random in what is measured.
# Writes to work_dirs/families_cpu-2threads_fp32; OUT=results/families_cpu-2threads_fp32 renews the committed rows, moved away before.
set -e
out=${OUT:-work_dirs/families_cpu-2threads_fp32}
python tools/profile_model.py vrwkv:small vrwkv6:small vim:small hybrid:small:bi_wkv hybrid:small:attention vmamba:tiny vssd:tiny \
    timm:swin_tiny timm:convnext_tiny timm:mambaout_tiny --baseline timm:deit_small --sizes 512,1024 --threads 2 --rounds 5 --max-seconds 170 \
    --out $out "$@"
