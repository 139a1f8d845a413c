"""Which column of a raw record is the question, the solution, the thinking and the truth: by its name, and where a name
is used for a solution and for a truth (`answer`, `solution`), by what it holds.

Names are looked up in small letters; "a.b" is a key of the object under "a"; the first that holds something counts.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from step_jepa.data.choices import LETTERS, is_index, lettered, names_one, options_of
from step_jepa.data.raw_record import RawRecord, Rejected, column, required_text, short_answer
from step_jepa.data.reading_options import ReadArguments
from step_jepa.data.records import NOT_USED, Answer, Message, Reading, Record, cut_into_steps
from step_jepa.data.steps import final_answer, stated_answer
from step_jepa.data.turns import REASONING, is_turns, required_messages, tools_of

QUESTION = (
    "question.stem", "question", "problem", "query", "prompt", "instruction", "input", "question_stem", "q_text",
)  # fmt: skip
CONTEXT = ("body", "passage", "context", "table")  # stands before the question
OPTIONS = ("options", "choices", "question.choices")
_OPTION = re.compile(r"(?:q_op|option|opt|choice)_?[a-e1-5]|op[a-e]", re.IGNORECASE)
SYSTEM = ("system", "system_prompt")

# Thinking and the answer that belongs to it: those of one model, never of two.
RESPONSES = (
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("thinking_trajectories", "attempt"),
    ("gemini_thinking_trajectory", "gemini_attempt"),
    ("deepseek_reasoning", "deepseek_solution"),
)
THINKING = (*REASONING, "thoughts", "chain_of_thought", "complex_cot", "cot")
SOLUTION = (
    "deepseek_response", "generated_solution", "r1_solution_1", "generations", "response", "completion", "output",
    "generation", "rationale", "explanation", "canonical_solution", "taskb",
)  # fmt: skip
EITHER = ("solution", "answer", "ground_truth_solution")  # a solution or a truth, by what it holds
TRUTH = (
    "truth", "ground_truth", "ground_truth_answer", "expected_answer", "final_answer", "reference_answer", "gt_answer",
    "gold_answer", "gt_ans", "answer_number", "answerkey", "q_ans", "correct_answer", "correct answer",
    "target",
    "reward_model.ground_truth", "correct", "answer", "solution", "ground_truth_solution", "label",
)  # fmt: skip
RESULTS = ("answer", "final", "result", "truth", "gold", "target")  # in names of columns that are not known
# What says whether a solution is right; only what is known to mean yes is learned from.
VERDICTS = ("is_correct", "final_answer_correct", "solution_is_valid", "problem_is_valid", "deepseek_grade")
SWITCHES = ("label", "correct")  # the same, where they are true or false: others have a number or a letter there
_YES = ("yes", "true", "1", "1.0")

# What is said of a record
EARLIER_TURNS = "with earlier assistant turns: steps are those of the last"
SYSTEM_ADDED = "system turn added (--system_prompt)"
TAGS = "tags of thinking or answer left out, a blank line between the two"
BESIDE = "thinking that stands apart put before the answer, a blank line between the two"
WHITESPACE = "whitespace around the answer left out"

_LATEX = re.compile(r"\\(?:text|mathrm|textbf|begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass
class Columns:
    """The columns of one record, by their roles; `used` says which have been read as what."""

    raw: RawRecord
    used: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._held = {key.lower(): key for key in reversed(list(_filled(self.raw)))}

    def find(self, *names: str) -> str | None:
        """The key of the first name that holds something."""
        held = self._held
        for name in names:
            if name in held:
                return held[name]
        return None

    def value(self, key: str) -> Any:
        """What stands under the key."""
        return column(self.raw, key)

    def take(self, key: str, role: str) -> Any:
        """The same, and note what it is."""
        self.used[key.partition(".")[0]] = role
        return self.value(key)

    def take_text(self, key: str, role: str) -> str:
        """A text, or the only one of a list. Raises Rejected."""
        value = self.take(key, role)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        return required_text({key: str(value) if isinstance(value, int | float) else value}, key)

    def ignored(self) -> list[str]:
        """Those that hold something and are not used."""
        return [key for key, value in self.raw.items() if key not in self.used and value not in (None, "", [], {})]


def _filled(raw: RawRecord) -> Iterator[str]:
    """The keys that hold something, and those of objects inside."""
    for key, value in raw.items():
        if value not in (None, [], {}) and not (isinstance(value, str) and not value.strip()):
            yield key
        if isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner in value if value[inner] is not None)


def refuse_wrong(columns: Columns) -> None:
    """Raises Rejected for a record that says of its problem or its solution that it is wrong."""
    if columns.find(*VERDICTS, *SWITCHES) is None:
        return
    for name in (*VERDICTS, *SWITCHES):
        key = columns.find(name)
        if key is None or (name in SWITCHES and not isinstance(columns.value(key), bool)):
            continue
        verdict = columns.take(key, "verdict")
        if str(verdict).lower() not in _YES:
            raise Rejected(f"marked as wrong: {key} is {verdict}")


def solution_of(columns: Columns, args: ReadArguments) -> tuple[str | None, str | None]:
    """The keys of the thinking and of the solution; None where there is none."""
    for thinking, attempt in RESPONSES:
        keys = columns.find(thinking), columns.find(attempt)
        if all(keys):
            return keys
    thinking_key = columns.find(*THINKING)
    if thinking_key and not _is_thinking(columns.value(thinking_key)):
        thinking_key = None
    if any(ours == "solution" for ours, _ in args.renamed_columns):
        return thinking_key, "solution"
    solution = columns.find(*SOLUTION) or _either(columns)
    if thinking_key and not solution:
        return None, thinking_key
    is_one = solution and (thinking_key or solution.lower() not in EITHER or not is_result(columns.value(solution)))
    return thinking_key, solution if is_one else None


def _is_thinking(value: Any) -> bool:
    """One word, such as "on", is a switch."""
    return not isinstance(value, str) or len(value.split()) > 1


def _either(columns: Columns) -> str | None:
    """Of `solution` and `answer` the longer one."""
    solution, answer, reference = (columns.find(name) for name in EITHER)
    if solution and answer and _is_shorter(columns.value(answer), columns.value(solution)):
        return solution
    return answer or solution or reference


def _is_shorter(answer: Any, solution: Any) -> bool:
    text = str(answer).strip()
    return isinstance(solution, str) and "\n" not in text and len(text.split()) < len(solution.split())


def is_result(value: Any) -> bool:
    """Whether this is no more than a result: a number, a formula, a few words that are no sentence. What is marked as
    the final answer of a solution, by "####" or a box, is a solution."""
    if isinstance(value, list) and len(value) == 1:
        return is_result(value[0])
    if not isinstance(value, str):
        return isinstance(value, int | float)
    text = value.strip()
    words = _WORD.findall(_LATEX.sub(" ", text))
    is_phrase = len(text.split()) < 5 and not text.endswith((".", "!", "?"))
    return "\n" not in text and not final_answer(text) and (len(words) < 2 or is_phrase)


def truth_of(columns: Columns) -> str | None:
    """What the columns that are not used yet know of the short answer. Raises Rejected for one that is no answer."""
    for name in TRUTH:
        key = columns.find(name)
        if key is None or key.partition(".")[0] in columns.used:
            continue
        truth = _truth(columns, key)
        if truth is not None:
            columns.take(key, "truth")
            return truth
    return None


def _truth(columns: Columns, key: str) -> str | None:
    value = columns.value(key)
    options = columns.find(*OPTIONS)
    if key.lower() == "label" and not (options and isinstance(value, str)):
        return None  # of a class, or of steps
    if key.lower() == "answer" and options and is_index(value, options_of(columns.value(options), options)):
        return LETTERS[value]
    value = only_entry(value) if isinstance(value, str) else value
    if key.lower() in EITHER and key.lower() != "answer" and not isinstance(value, str | int | float):
        return None  # several solutions are no truth, but no fault either
    if key.lower() == "final_answer" and isinstance(value, list) and len(value) == 1:  # OlympiadBench's
        value = value[0]
    is_text = isinstance(value, str) and not is_result(value)
    if is_text and (key.lower() in EITHER or "\n" in value.strip()):
        return stated_answer(value)
    return short_answer({key: value}, key)


def only_entry(text: str) -> Any:
    """What a list holds that is written as JSON, as Skywork-OR1 has it; of several entries the list, else the text."""
    try:
        entries = json.loads(text) if text.startswith("[") else None
    except (ValueError, RecursionError):
        return text
    if not entries or not all(isinstance(entry, str) for entry in entries):
        return text
    return entries[0] if len(entries) == 1 else entries


def proposed_columns(raw: RawRecord) -> str:
    """What `--columns` may be for a record that no format fits, by its texts of several words: the question is the one
    that is called or ends so, else the first; the solution the longest other one. Nothing where there are no two."""
    texts = [key for key, value in raw.items() if isinstance(value, str) and len(value.split()) > 1]
    if len(texts) < 2:
        return ""
    question = min(texts, key=lambda key: (not _is_called(key, QUESTION, "q"), not raw[key].rstrip().endswith("?")))
    solution = max((key for key in texts if key != question), key=lambda key: len(raw[key]))
    results = [key for key in raw if _is_called(key, RESULTS) and key != solution and is_result(raw[key])]
    columns = {"question": question, "solution": solution} | ({"truth": results[0]} if results else {})
    return ",".join(f"{ours}={theirs}" for ours, theirs in columns.items() if ours != theirs)


def _is_called(key: str, names: Sequence[str], start: str = "\0") -> bool:
    return key.lower().startswith(start) or any(name in key.lower() for name in names)


class Reader:
    """One record on its way: its columns, and what is said of it in the end."""

    def __init__(self, raw: RawRecord, args: ReadArguments) -> None:
        self.columns, self.args = Columns(raw), args
        self.notes: list[str] = []
        refuse_wrong(self.columns)

    def reading(self, record: Record) -> Reading:
        """The record, with what became of the columns."""
        if isinstance(self.columns.raw.get("template"), int):
            self.columns.take("template", "template")
        if tools := self.columns.find("tools"):
            record["tools"] = tools_of(self.columns.take(tools, "tools"))
        turns = [message["role"] for message in record["messages"][:-1]]
        notes = [*self.notes, *([EARLIER_TURNS] if "assistant" in turns else [])]
        return Reading(record, self.columns.used, [*notes, *[NOT_USED + key for key in self.columns.ignored()]])

    def question(self) -> list[Message]:
        """The turns before the answer."""
        key = self.columns.find(*QUESTION) or QUESTION[0]
        value = self.columns.take(key, "question")
        if is_turns(value):
            return self.with_system(required_messages(self.columns.raw, key), add=False)
        parts = [required_text({key: value}, key).strip(), *self._beside(key)]
        for name in CONTEXT:
            if found := self.columns.find(name):
                parts.insert(0, self.columns.take_text(found, "question, before it").strip())
        return self.with_system([{"role": "user", "content": "\n\n".join(parts)}], add=True)

    def _beside(self, key: str) -> list[str]:
        """Alpaca's input, and the options of a question."""
        parts = []
        beside = self.columns.find("input")
        if beside and key.lower() == "instruction":
            parts.append(self.columns.take_text(beside, "question, after it").strip())
        if options := self._options():
            parts.append("\n".join(options))
        return parts

    def _options(self) -> list[str]:
        """What is to be chosen from, a line each, under whatever columns."""
        role = "question, after it"
        if key := self.columns.find(*OPTIONS):
            options = options_of(self.columns.take(key, role), key)
            answer = self.columns.find("answer", "correct", "label")
            return lettered(options) if answer and names_one(self.columns.value(answer), options) else options
        keys = [key for key in self.columns.raw if _OPTION.fullmatch(key) and self.columns.value(key) is not None]
        return lettered([self.columns.take_text(key, role).strip() for key in keys])

    def with_system(self, turns: list[Message], *, add: bool) -> list[Message]:
        """The turns behind the record's system text, or the one that is asked for where `add`."""
        if turns[0]["role"] in ("system", "developer"):
            return turns
        key = self.columns.find(*SYSTEM)
        given = self.columns.take_text(key, "system turn") if key else ""
        if add and not given and self.args.system_prompt:
            self.notes.append(SYSTEM_ADDED)
            given = self.args.system_prompt
        return [{"role": "system", "content": given}, *turns] if given else turns

    def cut(self, text: str, thinking: str = "") -> Answer:
        """The answer, with a note of what is left out around it."""
        answer = cut_into_steps(text, self.args, thinking)
        if thinking.strip():
            self.notes.append(BESIDE)
        elif answer.content != text:
            self.notes.append(WHITESPACE if answer.content == text.strip() else TAGS)
        return answer
