#!/usr/bin/env bash
# The studies in results/ and what is made of them, from nothing, two runs at a time on two cores: tables, pictures, the
# README's table, and the estimates of `harness study --dry-run` (harness/experiments/study/costs.csv).
#   results/reproduce.sh               all of it (about five hours)
#   results/reproduce.sh main kl_penalty    parts of it, in this order: main kl_penalty length labels grounds checks
# Not made here: speed*, by python benchmarks/{speed,runs,threads,gpu}.py, and base_model.md, by python -m
# harness_suites.pretrain (results/README.md). Made and not committed: the report, results/raw/main.html, and what checks
# say, results/raw/checks.md. Killed, it goes on when started again. HARNESS and PYTHON name other commands
# (.venv/bin/harness, .venv/bin/python), JOBS another number of runs at a time. Pictures need the extra "plots".
set -euo pipefail
cd "$(dirname "$0")/.."
export HARNESS=${HARNESS:-harness} PYTHON=${PYTHON:-python3}

study() {  # carry out a study file; what is done already is not done again
  $HARNESS study "results/$1.toml" --results results/raw --jobs "${JOBS:-2}"
}

table() {  # of a study: its name, the name of the files, more options
  $HARNESS table --results results/raw --study "$1" --output "results/$2.md" "${@:3}"
  $HARNESS table --results results/raw --study "$1" --each --format csv --output "results/$2.csv" "${@:3}"
}

picture() {  # of a study: its name, the kind, the name of the file, more options
  $HARNESS plot --results results/raw --study "$1" --kind "$2" --output "results/$3.png" "${@:4}"
}

main() {  # all methods on three suites, five seeds each, and the controls
  study main
  local suite accuracy
  for suite in summarization helpfulness arithmetic; do
    accuracy=
    if [ "$suite" = arithmetic ]; then accuracy=,accuracy; fi  # the only one with a verifier
    table main "$suite" --suite "$suite"
    $HARNESS table --results results/raw --study main --suite "$suite" --format latex --output "results/$suite.tex" \
      --columns "method,seeds,win_rate,lc_win_rate,gold$accuracy,kl,length,flops,labels"
    picture main frontier "$suite" --suite "$suite"
  done
  $PYTHON results/textbook.py
  $PYTHON results/costs.py results/raw > results/raw/costs.csv
  mv results/raw/costs.csv harness/experiments/study/costs.csv
  $HARNESS report main --results results/raw
}

kl_penalty() {  # beta sweeps, best-of-n up to 64, over-optimisation, and PPO without a penalty under other constraints
  study kl_penalty
  table kl_penalty kl_penalty
  picture kl_penalty overoptimization kl_penalty
}

length() {  # a labeller with a taste for length: raw and length-controlled win-rate by method and mitigation
  study length
  table length length_fair --where suite.labeller_bias=0
  table length length --where suite.labeller_bias=0.12
}

grounds() {  # four methods, three seeds on each of three grounds, at the size of --quick
  study grounds
  table grounds grounds
}

labels() {  # win-rate against the number of labels, for the textbook table
  study labels
  $PYTHON results/textbook.py
}

checks() {  # what `harness check` says of every built-in method, suite and embedded labeller
  mkdir -p results/raw/checks
  printf '%s\n' best_of_n dpo grpo ipo kto online_dpo orpo ppo raft reinforce_pp rlaif rloo rlvr rrhf sft_chosen simpo \
    slic start summarization helpfulness arithmetic exact bradley_terry constitution | HARNESS_THREADS=1 \
    xargs -P "${JOBS:-2}" -I{} sh -c '$HARNESS check {} --output results/raw/checks/{}.md || echo "FAILED: {}" >&2'
  cat results/raw/checks/*.md > results/raw/checks.md && rm -r results/raw/checks
}

for part in "${@:-main kl_penalty length labels grounds checks}"; do
  for one in $part; do "$one"; done
done
$PYTHON results/readme.py  # the README shows rows of the first table
$PYTHON results/readme_picture.py
