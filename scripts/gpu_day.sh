#!/usr/bin/env bash
# All that only a machine with a GPU can show, in under 25 minutes, as one JSON: tests, every configuration in mixed
# precision, two ranks, speed of training and sampling, an evaluation of 10,000 images.
#
#   PYTHON=.venv/bin/python scripts/gpu_day.sh gpu_day.json
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-gpu_day.json}")
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
work=$(mktemp -d)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { echo "gpu_day: there is no CUDA device." >&2; exit 1; }

# Runs a part for at most this many seconds; its output, exit status and time go to the JSON.
part() {
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    echo "== $name" >&2
    timeout "$limit" "$@" > "$work/$name.log" 2>&1
    echo "$? $((SECONDS - start))" > "$work/$name.status"
    tail -n 3 "$work/$name.log" >&2
}

part tests 360 "$python" -m pytest -q -m gpu
part precisions 300 "$python" scripts/precision_matrix.py --accelerator gpu --precisions bf16-mixed 16-mixed \
    --only folders.yaml glyphs.yaml baselines/unconditional.yaml baselines/class_conditional.yaml unet.yaml latent.yaml \
    --out "$work/precisions.json"
part ranks 120 "$python" scripts/two_ranks_on_a_gpu.py
part train_small 120 "$python" benchmarks/train_step.py --device cuda --sets 32 --out "$work/train_small.json"
part train_dit_b2 240 "$python" benchmarks/train_step.py --device cuda --case dit_b2 --sets 16 --profile --out "$work/train_dit_b2.json"
part sampling 120 "$python" benchmarks/sample.py --device cuda --num_images 4096 --out "$work/sampling.json"
part training 180 "$python" -m lightning_vfs fit --config configs/glyphs.yaml --trainer.precision bf16-mixed --trainer.max_epochs 4 \
    --trainer.logger.init_args.save_dir "$work/runs"
part evaluation 180 "$python" -m lightning_vfs evaluate --ckpt_path "$work/runs/glyphs/version_0/checkpoints/last.ckpt" \
    --fid.feature_extractor glyph-cnn --fid.num_images 10000 --fid.batch_size 2000 --precision bf16-mixed --fid.record "$work/evaluation.json"

"$python" - "$work" "$out" << 'PYTHON'
import json
import sys
from pathlib import Path

import torch

work, out = map(Path, sys.argv[1:])
parts = {}
for status in sorted(work.glob("*.status"), key=lambda path: path.stat().st_mtime):
    code, seconds = map(int, status.read_text().split())
    log = status.with_suffix(".log").read_text(errors="replace")
    figures = status.with_suffix(".json")
    parts[status.stem] = {
        "exit_status": code,
        "seconds": seconds,
        "figures": json.loads(figures.read_text()) if figures.is_file() else None,
        "end_of_log": log[-6000:],
    }
device = torch.cuda.get_device_properties(0)
machine = {"device": device.name, "memory_gib": round(device.total_memory / 2**30, 1), "torch": torch.__version__}
out.write_text(json.dumps(machine | {"parts": parts}, indent=2) + "\n")
failed = [name for name, part in parts.items() if part["exit_status"]]
print(f"{out}: {len(parts)} parts, failed: {', '.join(failed) or 'none'}")
sys.exit(bool(failed))
PYTHON
