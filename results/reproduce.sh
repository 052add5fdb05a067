#!/usr/bin/env bash
# Every table and picture in results/ and in the README, from nothing: about fifteen minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
harness=${HARNESS:-harness}

for seed in 0 1 2; do
  for method in sft ppo dpo best_of_n; do
    $harness run --method "$method" --suite summarization --seed "$seed" --results results/main
  done
  $harness run -p examples/hinge.py --method hinge --suite summarization --seed "$seed" --results results/main
done
$harness table --results results/main --output results/summarization.md
$harness table --results results/main --format csv --output results/summarization.csv
$harness plot --results results/main --output results/summarization.png

# over-optimisation: without a KL penalty the proxy rises while gold peaks and falls; with one it is held
for beta in 0 0.1; do
  $harness run --method ppo --suite summarization --set beta=$beta --snapshots 8 --results results/leash
done
$harness table --results results/leash --output results/leash.md
$harness plot --results results/leash --output results/leash.png

# length hacking: a labeller with a taste for length, and PPO with a weak and a strong penalty
for beta in 0.03 0.3; do
  $harness run --method ppo --suite summarization --suite-set labeller_bias=0.12 --set beta=$beta --snapshots 8 --results results/length
done
$harness table --results results/length --output results/length.md
$harness plot --results results/length --output results/length.png

python3 results/readme.py  # the README shows the first table
