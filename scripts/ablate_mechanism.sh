#!/bin/sh
# Which noise? Independent noise on every client in every round, against correlated
# noise (banded, and buffered Toeplitz) on cohorts of a third in one kept order, and
# against independent noise on the same cohorts. Correlated noise is made for one run,
# so these are runs of `train`, one after the other.
#   sh scripts/ablate_mechanism.sh FOLDER/ml-1m runs/mechanism
set -e
run() {
  name=$1; shift
  for seed in 0 1; do
    fedjaxrec train --flagfile=scripts/private_movielens_1m.flags \
      --data.path="$data" --seed=$seed --workdir="$out/$name-$seed" "$@"
  done
}
data=$1; out=$2
cyclic='--cohort.size=2014 --cohort.sampler=cyclic --rounds=36'
run gaussian_all
run gaussian_cyclic $cyclic
run banded $cyclic --privacy.mechanism=banded --privacy.bands=3
run blt $cyclic --privacy.mechanism=blt --privacy.buffers=3
python scripts/plot_runs.py "$out"/* --out="$out/mechanism.svg"
