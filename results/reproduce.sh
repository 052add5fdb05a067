#!/usr/bin/env bash
# Every table and picture in results/ and in the README, from nothing, two runs at a time on two cores:
#   results/reproduce.sh              all of it
#   results/reproduce.sh main leash   parts of it, in this order: main methods leash length checks
# Killed, it goes on when started again. HARNESS names another command, JOBS another number of runs at a time.
set -euo pipefail
cd "$(dirname "$0")/.."
export HARNESS=${HARNESS:-harness}

together() {  # run each line of the input as the arguments of `harness run`, JOBS at a time
  xargs -P "${JOBS:-2}" -I{} sh -c '$HARNESS run --threads 1 {} || echo "FAILED: {}" >&2'
}

tables() {  # of a results folder and its suites
  for suite in "${@:2}"; do
    $HARNESS table --results "results/$1" --suite "$suite" --output "results/$suite.md"
    $HARNESS table --results "results/$1" --suite "$suite" --each --format csv --output "results/$suite.csv"
    $HARNESS plot --results "results/$1" --suite "$suite" --output "results/$suite.png"
  done
}

main() {  # three seeds of the first methods, and of a stranger's in a plain file
  for seed in 0 1 2; do
    for method in sft best_of_n ppo dpo "hinge -p examples/hinge.py"; do
      echo "--method $method --suite summarization --seed $seed --results results/all"
    done
  done | together
  tables all summarization
}

leash() {  # over-optimisation: without a KL penalty the proxy rises while gold peaks and falls; with one it is held
  for beta in 0 0.1; do
    echo "--method ppo --suite summarization --set beta=$beta --snapshots 8 --results results/leash"
  done | together
  $HARNESS table --results results/leash --output results/leash.md
  $HARNESS plot --kind overoptimization --results results/leash --output results/leash.png
}

length() {  # length hacking: a labeller with a taste for length, and PPO with a weak and a strong penalty
  for beta in 0.03 0.3; do
    echo "--method ppo --suite summarization --suite-set labeller_bias=0.12 --set beta=$beta --snapshots 8 --results results/length"
  done | together
  $HARNESS table --results results/length --output results/length.md
  $HARNESS plot --kind overoptimization --results results/length --output results/length.png
}

methods() {  # one seed of every method on every embedded suite it can serve, and the controls
  {
    for suite in summarization helpfulness arithmetic; do
      for method in sft best_of_n ppo dpo rloo grpo reinforce_pp online_dpo raft kto ipo simpo slic orpo rrhf rlaif \
        "rlaif --set optimiser=dpo" sft_chosen "dpo --set shuffle_labels=true" "raft --set selection=random"; do
        echo "--method $method --suite $suite --results results/all"
      done
    done
    echo "--method rlvr --suite arithmetic --results results/all"
  } | together
  tables all summarization helpfulness arithmetic
}

checks() {  # what `harness check` says of every built-in method, suite and embedded labeller
  mkdir -p results/checks
  printf '%s\n' best_of_n dpo grpo ipo kto online_dpo orpo ppo raft reinforce_pp rlaif rloo rlvr rrhf sft sft_chosen simpo \
    slic summarization helpfulness arithmetic exact bradley_terry constitution | HARNESS_THREADS=1 \
    xargs -P "${JOBS:-2}" -I{} sh -c '$HARNESS check {} --output results/checks/{}.md || echo "FAILED: {}" >&2'
  cat results/checks/*.md > results/checks.md && rm -r results/checks
}

for part in "${@:-main methods leash length checks}"; do
  for one in $part; do "$one"; done
done
python3 results/readme.py  # the README shows the first table
