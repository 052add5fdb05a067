"""The report on a user's data: made before anything is trained, printed once, and recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.data_report import DataReport
from ..core.spec import RunSpec

if TYPE_CHECKING:
    from ..training.stages.stages import Stages


def report_data(spec: RunSpec, stages: Stages) -> dict[str, Any] | None:
    """Print what was read, skipped, dropped and cut; return it as it is recorded.

    Returns:
        The record, without the text of any prompt; None for a suite that reads no data.

    Raises:
        UsageError: The limits of the suite exceed the positions of the model, or a token has no
            embedding.
    """
    from ..training.stages.data_check import check_positions, check_vocabulary, measure

    report: DataReport | None = stages.suite.data_report()
    if report is None:
        check_vocabulary(0, stages.tokens, stages.base)
        if stages.tokens.chat is not None:
            form = stages.tokens.form_of([p.text for p in stages.suite.prompts("test")])
            stages.stage_runtime.say(f"prompts are {form}")
        return None
    report.measured = measure(stages.suite, stages.tokens)
    check_positions(report.measured, stages.base)
    check_vocabulary(report.measured.largest, stages.tokens, stages.base)
    report.unused, report.lowered = _unused(spec, stages), spec.quick
    for line in report.lines():
        stages.stage_runtime.say(line)
    for warning in report.warnings():
        stages.stage_runtime.tell(warning)
    return report.record()


def _unused(spec: RunSpec, stages: Stages) -> str:
    """Return what to say of pairs that are withheld for a judge that this run does not use."""
    withheld = stages.suite.judge_preferences()
    own = stages.suite.judge_name
    if not withheld or spec.judge in (None, own):
        return ""
    return (
        f"{len(withheld)} pairs are withheld for the judge {own}, which this run does not use."
        " --suite-set judge_share=0 gives them to the methods."
    )
