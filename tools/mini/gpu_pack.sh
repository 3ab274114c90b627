#!/usr/bin/env bash
# Gather what the 128 px run carries to a GPU machine into .mini-gpu/ (git-ignored): about 15 MiB.
#
#     tools/mini/gpu_pack.sh WORK [PYTHON]
#
# WORK is a work folder with the artwork packed. Tokenizer and text tower are those of the shipped
# `mini`, which travels with the repository. The wheels are what a bare PyTorch 2.11 / Python 3.12
# image that has transformers lacks.
set -euo pipefail
work=$1 python=${2:-python3}
cd "$(dirname "$0")/../.."
out=.mini-gpu
rm -rf $out && mkdir -p $out/work $out/wheels
cp "$work/concepts.json" "$work/masters.npz" $out/work/
"$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 -d $out/wheels \
    diffusers==0.42.1 importlib_metadata
exclude=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
grep -qxs "/$out/" "$exclude" || echo "/$out/" >>"$exclude"
du -sh $out
