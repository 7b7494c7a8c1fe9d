#!/usr/bin/env bash
# Renew envs/strata.lock: the newest releases that pyproject.toml allows, resolved by pip in an empty environment.
# No hashes and no local versions (torch's +cpu), so that a CUDA machine gets its own torch from the same lock.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
pip="$scratch/venv/bin/python -m pip --disable-pip-version-check"
$pip install --quiet torch==2.13.0
cp -r pyproject.toml workflow "$scratch"  # setuptools builds beside what it is given
$pip install --quiet setuptools "$scratch[dev]"
{
  echo "# Written by envs/lock.sh from pyproject.toml. Install: pip install -r envs/strata.lock"
  $pip freeze --all --exclude pip --exclude strata-dus | sed 's/+cpu$//; s/+cu[0-9]*$//' \
    | grep -v -E '^(nvidia-|triton|cuda-)' | sort -f
} > "$scratch/lock"
mv "$scratch/lock" envs/strata.lock
