#!/usr/bin/env bash
# What a machine with a CUDA device shows in minutes: whether numbers are right there, and how fast they come.
#
#   tests/gpu/first_light.sh [--rehearse] [PART...]     all parts where none is named; each has a time limit of its own
#
# The machine needs Python with torch and CUDA (2.10 or later) and numpy; the rest comes from the folder first-light/ in the
# checkout, which `python tests/gpu/pack_first_light.py PICTURES` makes. Results: $OUT/first_light.json and $OUT/log.txt
# (OUT: first-light-result by default). BUDGET is the time for all in seconds, 420 by default. --rehearse runs all that can be
# run without CUDA, as small as can be.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
OUT=${OUT:-first-light-result} BUDGET=${BUDGET:-420}
python=${PYTHON:-python3}

# Right or wrong first, in one go where there are cores for it: nothing there is timed, and compiling takes most of it.
# Then what is timed, one after the other, the most telling first.
together=(doctor tests backends flex-shapes warm)
alone=(flowers eager attention profile sampling imagenet resume)
declare -A limit=(
  [doctor]=170 [tests]=170 [backends]=150 [flex-shapes]=150 [warm]=170
  [flowers]=80 [eager]=45 [attention]=30 [profile]=35 [sampling]=60 [imagenet]=60 [resume]=60
)

options=() named=() slower=1
for word in "$@"; do
  case $word in
    --rehearse) options+=(--rehearse) slower=10 ;; # a machine of any speed
    *)
      if [[ -z ${limit[$word]:-} ]]; then
        printf 'no part %s; there are: %s\n' "$word" "${together[*]} ${alone[*]}" >&2
        exit 2
      fi
      named+=("$word")
      ;;
  esac
done

named_out=$OUT
if ! mkdir -p "$OUT" || ! OUT=$(cd "$OUT" && pwd) || ! : >"$OUT/log.txt"; then
  printf 'no results can be written to %s: set OUT to another folder\n' "$named_out" >&2
  exit 2
fi
log=$OUT/log.txt
work=$(mktemp -d) && mkdir "$work/results" || exit 2
trap 'rm -rf "$work"' EXIT

if compgen -G "first-light/wheels/*.whl" >/dev/null; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$work/site" \
    first-light/wheels/*.whl >>"$log" 2>&1 || printf 'wheels: not installed, see %s\n' "$log"
fi
export PYTHONPATH=$work/site:$PWD:$PWD/tests/gpu${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONPYCACHEPREFIX=$work/pycache
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton HDIT_CACHE=$work/cache
[[ -f first-light/data/manifest.json ]] && options+=(--data first-light/data)

left() { printf '%d' $((BUDGET * slower - SECONDS)); }

part() { # NAME: runs it within its limit and what is left of the time; notes how it ended
  local name=$1 seconds=$((limit[$1] * slower)) rc=0
  (($(left) < seconds)) && seconds=$(left)
  if ((seconds < 5)); then
    printf 'not run: no time left\n' >"$work/results/$name.ended"
    return
  fi
  timeout -k 5 "$seconds" "$python" tests/gpu/first_light.py "$name" --result "$work/results/$name.json" \
    --work "$work/$name" "${options[@]}" >"$work/$name.log" 2>&1 || rc=$?
  case $rc in
    0) printf 'done\n' ;;
    124 | 137) printf 'stopped after %d s\n' "$seconds" ;;
    *) printf 'failed, exit code %d\n' "$rc" ;;
  esac >"$work/results/$name.ended"
  rm -rf "${work:?}/$name"
}

tell() { # the results so far into $OUT, which may be all that comes back
  "$python" tests/gpu/first_light.py merge "$work/results" "$OUT/first_light.json" >"$work/table"
  for name in "$@"; do
    { printf '\n== %s\n' "$name" && tail -c 60000 "$work/$name.log"; } >>"$log" 2>/dev/null
  done
}

wanted() { # PART: whether it was named, or none was
  ((${#named[@]} == 0)) && return 0
  for each in "${named[@]}"; do [[ $each == "$1" ]] && return 0; done
  return 1
}

cores=$(nproc 2>/dev/null || echo 1)
jobs=() first=()
for name in "${together[@]}"; do
  wanted "$name" || continue
  first+=("$name")
  if ((cores >= 8)); then
    part "$name" &
    jobs+=($!)
  else
    part "$name"
    tell "$name"
  fi
done
for job in "${jobs[@]}"; do wait "$job"; done
((${#jobs[@]})) && tell "${first[@]}"
for name in "${alone[@]}"; do
  wanted "$name" || continue
  part "$name"
  tell "$name"
done

cat "$work/table"
printf '%d s in all; %s\n' "$SECONDS" "$OUT/first_light.json"
for ended in "$work"/results/*.ended; do
  [[ $(<"$ended") == done ]] || exit 1
done
