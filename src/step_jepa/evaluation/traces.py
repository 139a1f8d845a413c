"""Which answers of a teacher become records that are learned from, and why the others do not."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from step_jepa.data.conversion import to_reading
from step_jepa.data.raw_record import Rejected
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.records import with_answer
from step_jepa.evaluation.generation import Generation
from step_jepa.evaluation.judging import Match, judge

Keep = Literal["right", "all"]
CUT_OFF = "cut off at --max_new_tokens"
NO_ANSWER, WRONG, NO_TRUTH = "without an answer", "wrong", "of a problem without a known answer"
UNREADABLE = "no record that prepare reads"
SAME_TEXT, BEYOND = "the same text as another one", "more than --per_problem of a problem"
GOES_ON = "kept, though they go on after their answer"
_OF_PROBLEM = ("answer", "template")  # what a trace has of it beside the conversation


@dataclass
class Traces:
    """Those that are kept, in the order in which they were looked at.

    match         what is right
    keep          only what is right, or also the rest
    per_problem   the most that are kept of one; None for all
    kept          records, as `prepare` reads them
    counts        of the others, by why they are not; and of what is said of kept ones
    """

    match: Match = "math"
    keep: Keep = "right"
    per_problem: int | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _texts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # by problem

    @property
    def solved(self) -> int:
        """Problems that something was kept of."""
        return len(self._texts)

    def look_at(self, record: Mapping[str, Any], generation: Generation) -> None:
        """Keep the answer to a problem, or count why not. Problems with the same turns are one."""
        judged = judge(record, [generation], self.match)
        trace = _trace(record, generation.prediction)
        reason = self._fault(judged) or _unreadable(trace) or self._repeats(trace)
        if reason:
            self.counts[reason] += 1
            return
        self.kept.append(trace)
        self.counts.update([GOES_ON] if judged["over_generated"] else [])

    def _fault(self, judged: Mapping[str, Any]) -> str | None:
        if judged["truncated"]:
            return CUT_OFF
        if self.keep == "all" or judged["correct"]:
            return None
        if judged["correct"] is None:
            return NO_TRUTH
        return NO_ANSWER if judged["rule"] == "none" else WRONG

    def _repeats(self, trace: Mapping[str, Any]) -> str | None:
        """Why a trace adds nothing; one that does is taken note of. Texts that differ in whitespace are the same."""
        *context, last = trace["messages"]
        problem, text = json.dumps(context), " ".join(last["content"].split())
        if text in self._texts.get(problem, ()):
            return SAME_TEXT
        if len(self._texts.get(problem, ())) == self.per_problem:
            return BEYOND
        self._texts[problem].add(text)
        return None


def _trace(record: Mapping[str, Any], text: str) -> dict[str, Any]:
    of_problem = {key: record[key] for key in _OF_PROBLEM if record.get(key) is not None}
    return {**with_answer(record, text), **of_problem}


def _unreadable(trace: dict[str, Any]) -> str | None:
    try:
        to_reading(trace, ReadArguments())
    except Rejected as error:
        return f"{UNREADABLE}: {str(error).partition(':')[0]}"
    return None
