#!/usr/bin/env bash
# Every table and picture in results/ and in the README, from nothing: about an hour on two cores, two runs at a time.
# Killed, it goes on when started again. HARNESS names another command, JOBS another number of runs at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
export HARNESS=${HARNESS:-harness}

together() {  # run each line of the input as the arguments of `harness run`, JOBS at a time
  xargs -P "${JOBS:-2}" -I{} sh -c '$HARNESS run --threads 1 {} || echo "FAILED: {}" >&2'
}

offline="dpo ipo kto slic rrhf simpo orpo"
on_policy="ppo grpo rloo reinforce_pp raft online_dpo"

# 1. all methods on the embedded suites; on summarization three seeds of the first four, a stranger's method, controls
{
  for seed in 0 1 2; do
    for method in sft best_of_n ppo dpo; do echo "--method $method --suite summarization --seed $seed --results results/all"; done
  done
  for method in $offline $on_policy rlaif; do
    case $method in ppo | dpo) ;; *) echo "--method $method --suite summarization --results results/all" ;; esac
  done
  echo "--method rlaif --set optimiser=dpo --suite summarization --results results/all"
  echo "-p examples/hinge.py --method hinge --suite summarization --results results/all"
  echo "--method dpo --set shuffle_labels=true --suite summarization --results results/all"
  echo "--method raft --set selection=random --suite summarization --results results/all"
  for suite in arithmetic helpfulness; do
    for method in sft best_of_n $offline $on_policy rlaif; do echo "--method $method --suite $suite --results results/all"; done
  done
  echo "--method rlvr --suite arithmetic --results results/all"
} | together
for suite in summarization arithmetic helpfulness; do
  $HARNESS table --results results/all --suite $suite --output results/$suite.md
  $HARNESS table --results results/all --suite $suite --each --format csv --output results/$suite.csv
  $HARNESS plot --results results/all --suite $suite --output results/$suite.png
done

# 2. over-optimisation: without a KL penalty the proxy rises while gold peaks and falls; with one it is held
# 3. length hacking: a labeller with a taste for length, and PPO with a weak and a strong penalty
{
  for beta in 0 0.1; do echo "--method ppo --suite summarization --set beta=$beta --snapshots 8 --results results/leash"; done
  for beta in 0.03 0.3; do
    echo "--method ppo --suite summarization --suite-set labeller_bias=0.12 --set beta=$beta --snapshots 8 --results results/length"
  done
} | together
for study in leash length; do
  $HARNESS table --results results/$study --output results/$study.md
  $HARNESS plot --results results/$study --output results/$study.png
done

python3 results/readme.py  # the README shows the first table
