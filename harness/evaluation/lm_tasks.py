"""Tasks of lm-evaluation-harness, run on a trained policy and on the start checkpoint.

The package reads tasks, poses them and computes metrics. Its outcomes per document are kept, so
that policies are compared document by document.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..api.contracts import Policy
from ..core.digests import digest_of
from ..core.errors import HarnessError, UsageError
from ..core.files import write_text
from ..core.global_state import put_back
from ..core.meter import Meter
from ..core.progress import EVALUATION, STAGES, activity
from ..core.settings import EvaluationOptions
from ..core.task_files import PACKAGE, is_path, task_files
from ..models.flops import pass_flops
from ..models.lora import Adapted, adapter_of, switched
from ..models.tokens import Tokens
from ..statistics.over_prompts import PromptEstimate, mean_interval
from ..training.lab import Runtime
from ..training.stages.stages import Stages
from .answer_tasks import MISSING, answering

SEED = 1234  # of few shots and of sampled answers, as in the command of lm-evaluation-harness
BATCH = 16  # requests of one forward pass
OUTCOMES = "outcomes.json"
SUBJECT = "lm-evaluation-harness"
LIKELIHOOD = "perplexity"  # its outcome per document is a log-likelihood in nats


@dataclass
class TaskOutcomes:
    """The outcomes of one policy: a row for each task, filter and document."""

    rows: list[dict[str, Any]]
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)  # what lm-eval says of each
    missing: str = ""  # why a policy has no outcomes


NOTHING = TaskOutcomes([])


# -- loading ---------------------------------------------------------------------------------------


def check_loadable(options: EvaluationOptions) -> None:
    """Load the tasks and let them go; raise UsageError where that fails. Nothing is run."""
    if options.tasks:
        with _quiet():
            _load(options)


def _load(options: EvaluationOptions) -> Any:
    """Return the loaded tasks of lm-evaluation-harness."""
    from lm_eval.tasks import TaskManager

    names = [name for name in options.tasks if not is_path(name)]
    files = [str(file) for file in task_files(options.tasks)]
    metadata = {"data": str(Path(options.task_data).resolve())} if options.task_data else {}
    manager = TaskManager(include_defaults=bool(names), metadata=metadata)
    try:
        loaded = manager.load([*names, *files])
    except Exception as error:  # of the package, of data sets, of the hub, or of task files
        raise UsageError(
            f"--tasks {','.join(options.tasks)}: lm-evaluation-harness could not load them:"
            f" {_first_line(error)}. Stock tasks read their data from the hub; task files read it"
            " where they say, or in --task-data."
        ) from error
    if not loaded["tasks"]:
        raise UsageError(f"--tasks {','.join(options.tasks)}: there is no task in them.")
    return loaded


def _first_line(error: Exception) -> str:
    text = str(error).strip() or repr(error)
    return f"{type(error).__name__}: {text.splitlines()[0]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Put back what the package changes: random numbers, log levels, progress bars."""
    logger = logging.getLogger(PACKAGE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with put_back(SUBJECT, PACKAGE), _own_streams():
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _own_streams() -> Iterator[None]:
    """Seed the random numbers of the process, and put them back."""
    streams = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    try:
        yield
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])
        torch.set_rng_state(streams[2])


# -- running ---------------------------------------------------------------------------------------


def policy_outcomes(
    policy: Policy, tokens: Tokens, options: EvaluationOptions, runtime: Runtime
) -> TaskOutcomes:
    """Return the outcomes of a trained policy; `tokens` are the start checkpoint's."""
    own = policy.language_model(tokens.tokenizer)
    with runtime.meter.phase("evaluate"), activity(EVALUATION, "evaluation: tasks"):
        if own is None:
            return _run(answering(policy, tokens, runtime), None, options, runtime)
        return model_outcomes(*own, options, runtime)


def model_outcomes(
    model: torch.nn.Module, tokenizer: Any, options: EvaluationOptions, runtime: Runtime
) -> TaskOutcomes:
    """Return the outcomes of a language model, in a phase that counts their cost."""
    from lm_eval.models.huggingface import HFLM

    with causal_model(model) as whole:
        with _quiet():
            lm = HFLM(pretrained=whole, tokenizer=copy.deepcopy(tokenizer), batch_size=BATCH)
        return _run(lm, whole, options, runtime)


@contextmanager
def causal_model(model: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield what computes as a model does and has the whole interface of Hugging Face's models: in
    place of a model with an adapter, its base with the adapter on.
    """
    if not isinstance(model, Adapted):
        yield model
        return
    with switched(model.base_model, adapter_of(model)), causal_model(model.base) as base:
        yield base


def _run(lm: Any, model: Any, options: EvaluationOptions, runtime: Runtime) -> TaskOutcomes:
    """Run the tasks in the main process, and give all processes the outcomes."""
    distributed = runtime.distributed
    own = _evaluated(lm, model, options, runtime.meter) if distributed.main else NOTHING
    return distributed.broadcast_from_main(own)


def _evaluated(lm: Any, model: Any, options: EvaluationOptions, meter: Meter) -> TaskOutcomes:
    from lm_eval.evaluator import evaluate

    with _quiet(), _counted(model, meter):
        loaded = _load(options)
        wanted = [name for name, task in loaded["tasks"].items() if _can(lm, task)]
        if not wanted:
            return TaskOutcomes([], missing=MISSING)
        chosen = {name: _seeded(loaded["tasks"][name]) for name in wanted}
        try:
            results = evaluate(
                lm,
                {"tasks": chosen, "groups": {}},
                limit=options.task_documents or None,
                apply_chat_template=options.task_chat,
                bootstrap_iters=0,
            )
        except Exception as error:  # of the package, of a task file, or of a metric
            raise HarnessError(
                f"lm-evaluation-harness failed on {', '.join(wanted)}: {_first_line(error)}. The"
                " policy is kept: mend the task, and evaluate again."
            ) from error
    rows = [_row(task, sample) for task in wanted for sample in results["samples"][task]]
    about = {task: _about(loaded["tasks"][task], results, task) for task in wanted}
    return TaskOutcomes(rows, about, MISSING if len(wanted) < len(loaded["tasks"]) else "")


def _seeded(task: Any) -> Any:
    """Return a task with the seed of its few shots: that of lm-evaluation-harness's command."""
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEED)
    return task


def _can(lm: Any, task: Any) -> bool:
    """Return whether a policy can do a task: one that only answers gives no likelihoods."""
    return task.OUTPUT_TYPE == "generate_until" or not getattr(lm, "only_answers", False)


@contextmanager
def _counted(model: torch.nn.Module | None, meter: Meter) -> Iterator[None]:
    """Count the FLOPs of every forward pass of a model."""
    if model is None:
        yield
        return

    def count(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        rows, width, _ = output.logits.shape
        cache = getattr(output, "past_key_values", None)
        keys = cache.get_seq_length() if cache is not None else width
        meter.add(flops=pass_flops(model, rows, width, keys))

    handle = model.register_forward_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _row(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return one outcome as it is recorded."""
    metrics = {name: _number(sample.get(name)) for name in sample["metrics"]}
    answer = sample["filtered_resps"]
    return {
        "task": task,
        "doc_id": int(sample["doc_id"]),
        "filter": str(sample["filter"]),
        "doc_hash": sample["doc_hash"],
        "prompt_hash": sample["prompt_hash"],
        "target": str(sample["target"]),
        "answer": [str(part) for part in answer],
        "metrics": metrics,
    }


def _number(value: Any) -> float | None:
    """Return the outcome of a document; None where a metric has no single number for it."""
    if isinstance(value, (bool, int, float, np.number)) and math.isfinite(value):
        return float(value)
    return None


def _about(task: Any, results: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the main metric of a task, and what lm-evaluation-harness computed of all."""
    first = next(iter(results["samples"][name]))
    metrics = [entry["metric"] for entry in task.config.metric_list or []]
    main = next((m for m in metrics if m in first["metrics"]), first["metrics"][0])
    values = {
        key: float(value)
        for key, value in results["results"][name].items()
        if isinstance(value, (int, float)) and "stderr" not in key
    }
    return {
        "metric": str(main),
        "filter": str(first["filter"]),
        "higher_is_better": bool(results["higher_is_better"].get(name, {}).get(main, True)),
        "version": str(results["versions"].get(name)),
        "aggregated": values,
    }


def start_outcomes(stages: Stages, options: EvaluationOptions) -> TaskOutcomes:
    """Return the outcomes of the start checkpoint: an artifact, the same for every method."""

    def make(out: Path, _: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        meter = stages.stage_runtime.meter()
        runtime = stages.stage_runtime.runtime(meter, 0)
        with meter.phase("evaluate"), activity(STAGES, "evaluation: tasks of the start checkpoint"):
            outcomes = model_outcomes(stages.start, stages.tokens.tokenizer, options, runtime)
        if stages.stage_runtime.distributed.main:
            write_text(out / OUTCOMES, json.dumps({"rows": outcomes.rows, "tasks": outcomes.tasks}))
        return {"outcomes": len(outcomes.rows)}, meter.snapshot()

    artifact = stages.task_outcomes(stages.spec.code["tasks"], make)
    kept = json.loads((artifact.folder / OUTCOMES).read_text(encoding="utf-8"))
    return TaskOutcomes(kept["rows"], kept["tasks"])


# -- figures ---------------------------------------------------------------------------------------


def task_figures(outcomes: TaskOutcomes, start: TaskOutcomes) -> dict[str, Any]:
    """Return the figures of each task of the start checkpoint, for a policy beside it."""
    figures: dict[str, Any] = {}
    for name, about in start.tasks.items():
        theirs = main_outcomes(start.rows, name, about)
        if name not in outcomes.tasks:
            figures[name] = {**about, "missing": outcomes.missing, "aggregated": {}}
            continue
        ours = main_outcomes(outcomes.rows, name, about)
        figures[name] = outcomes.tasks[name] | _estimates(ours, theirs)
        figures[name]["documents_digest"] = _digest(start.rows, name)
    return figures


def main_outcomes(
    rows: Sequence[Mapping[str, Any]], task: str, about: Mapping[str, Any]
) -> dict[int, float]:
    """Return {document: outcome} of a task's main metric."""
    return {
        row["doc_id"]: row["metrics"][about["metric"]]
        for row in rows
        if row["task"] == task
        and row["filter"] == about["filter"]
        and row["metrics"].get(about["metric"]) is not None
    }


def _estimates(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, Any]:
    """Return means with intervals over documents, and the paired difference to the start."""
    from ..statistics.compare import compare

    both = [document for document in ours if document in theirs]
    if len(both) < 2:
        return {"documents": len(both)}
    x, y = ([side[document] for document in both] for side in (ours, theirs))
    own: PromptEstimate = mean_interval(x)
    d = compare([x], [y])
    return {
        "documents": len(both),
        "mean": own.mean,
        "low": own.low,
        "high": own.high,
        "start": math.fsum(y) / len(y),
        "tax": {"difference": d.difference, "low": d.low, "high": d.high, "p": d.p},
    }


def _digest(rows: Sequence[Mapping[str, Any]], task: str) -> str:
    """Return the digest of a task's documents: rows of a table must have the same."""
    return digest_of([row["doc_hash"] for row in rows if row["task"] == task])[:16]


def recorded_rows(outcomes: TaskOutcomes, start: TaskOutcomes) -> list[dict[str, Any]]:
    """Return the rows of tasks.jsonl: each outcome with that of the start checkpoint beside it.

    Raises:
        HarnessError: The two are not of the same documents.
    """
    theirs = {(r["task"], r["filter"], r["doc_id"]): r for r in start.rows}
    rows = []
    for row in outcomes.rows:
        other = theirs.get((row["task"], row["filter"], row["doc_id"]))
        if other is None or other["doc_hash"] != row["doc_hash"]:
            raise HarnessError(
                f"The task {row['task']} gave the policy other documents than the start checkpoint."
                " Its data changed during the evaluation: repeat it."
            )
        rows.append({**row, "start": other["metrics"], "start_answer": other["answer"]})
    return rows
