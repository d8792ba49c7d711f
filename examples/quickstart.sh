#!/usr/bin/env bash
# From no pictures at all to a trained model, in one go: draw, prepare, train, sample, score, export.
#
#   bash examples/quickstart.sh [FOLDER]      everything is written under FOLDER (default: quickstart)
#
# Run it again after a stop and it goes on; run it again when it is done and training is not repeated.
set -euo pipefail

examples=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "${1:-quickstart}"
folder=$(cd "${1:-quickstart}" && pwd)

if ! command -v hdit >/dev/null; then
  echo "hdit is not installed here; in the folder of the project: pip install ." >&2
  exit 1
fi

# threads that wait asleep: on a machine that is busy with other things, PyTorch's threads are several times slower otherwise
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

step() { printf '\n== %s\n' "$*"; }

step "draw 400 flowers of 4 classes"
python "$examples/draw_flowers.py" "$folder/flowers"

step "prepare: pictures to a data set"
hdit prepare "$folder/flowers" --size 32 --format png --out "$folder/data"

step "train a small class-conditional HDiT with neighborhood attention"
hdit train smoke/quickstart --data "$folder/data" --run "$folder/run"

step "sample: 12 pictures of each class"
hdit sample "$folder/run" --class all -n 48 --out "$folder/samples" --force
python "$examples/nearest_class.py" "$folder/samples" "$folder/flowers" --at-least 0.9

step "score: sliced Wasserstein distance of 200 new pictures to the data, less is better"
hdit eval-fid "$folder/run" --metrics swd -n 200

step "export: for other software, and as a torch.export program"
hdit export "$folder/run" --to safetensors --out "$folder/export/quickstart.safetensors" --force
hdit export "$folder/run" --to torch-export --out "$folder/export/quickstart.pt2" --force

step "done in $SECONDS seconds"
echo "look at    $folder/samples/grid.png"
echo "the run    $folder/run (recipe.toml, metrics.jsonl, samples/, ckpt.safetensors)"
echo "exported   $folder/export"
