"""A principle that a program decides: its ``check`` is run on both completions and no model is asked."""

from rlaif.checks import compare_by_check, degree
from rlaif.types import Comparison, Judgement, Principle, Verdict

JUDGE = "check"


def judge_by_check(comparison: Comparison, principle: Principle) -> Judgement:
    """The completion that satisfies the check, or comes nearer to it; a tie where both are equally near."""
    assert principle.check is not None
    choice = compare_by_check(principle.check, comparison.a.text, comparison.b.text)
    near = [f"{degree(principle.check, text):.3g}" for text in (comparison.a.text, comparison.b.text)]
    return Judgement(
        prompt_id=comparison.prompt.id,
        a=comparison.a.id,
        b=comparison.b.id,
        principles=(principle.id,),
        judge=JUDGE,
        template=JUDGE,
        order=None,
        outcome=Verdict(
            choice=choice,
            p_a={"a": 1.0, "b": 0.0, "tie": 0.5}[choice],
            method="check",
            rationale=f"satisfied to {near[0]} (a) and {near[1]} (b)",
        ),
    )
