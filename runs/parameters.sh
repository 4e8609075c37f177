#!/bin/sh
# Parameters of every architecture: README "Backbones", docs/model_zoo.md "Parameters".
# Any machine, under a minute of one core; exact counts on shapes, nothing is timed or random.
# Writes to work_dirs/parameters; OUT=results/parameters renews the committed rows, moved away before.
set -e
out=${OUT:-work_dirs/parameters}/backbones.json
python runs/counts.py $out hybrid:tiny:bi_wkv hybrid:small:bi_wkv hybrid:base:bi_wkv hybrid:large:bi_wkv --options mlp_ratio=2
python runs/counts.py $out vrwkv:tiny vrwkv:small vrwkv:base vrwkv:large vrwkv6:tiny vrwkv6:small vrwkv6:base vim:tiny vim:small vim:base \
    vmamba:tiny vmamba:tiny_s2l5 vmamba:small vmamba:base vmamba:tiny_v0 vmamba:small_v0 vmamba:base_v0 vmamba:tiny_m0 vmamba:small_m0 \
    vmamba:base_m0 vssd:micro vssd:tiny vssd:small vssd:base
python runs/counts.py $out vrwkv:tiny vrwkv:small vrwkv:base vrwkv:large --adapter
