"""How conversations are tokenised and labelled."""

from dataclasses import dataclass
from typing import Literal

TrainTurns = Literal["last", "all"]


@dataclass(frozen=True)
class Encoding:
    """Options of `tokens.encode`. The last two repeat what the published code of LLM-JEPA does.

    turns           the two turns are rendered alone as well (Example.turns)
    train_turns     which turns of the assistant are labelled: the last, or all; steps are of the last
    train_all       every token of the trunk is labelled, the prompt's too
    unlabelled_end  no token that is the tokenizer's pad is labelled: where pad = eos, the end of turn is never learned
    double_bos      the tokenizer's own leading special tokens go before what the template wrote, which can have its BOS
    """

    turns: bool = False
    train_turns: TrainTurns = "last"
    train_all: bool = False
    unlabelled_end: bool = False
    double_bos: bool = False
