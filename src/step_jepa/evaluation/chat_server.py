"""Answers of a server that speaks OpenAI's chat completions: it frames conversations and decodes by itself."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any

from step_jepa import terminal
from step_jepa.data.records import Message
from step_jepa.data.turns import thinking_beside
from step_jepa.errors import UserError
from step_jepa.evaluation.generation import Generation, SamplingParameters

GOES_ON = "answers so far are kept, the same command goes on from there"


@dataclass(frozen=True)
class ChatPrompt:
    """One answer that is wanted.

    index      of the record
    sample     which of the record's answers, from 0
    messages   turns that precede it
    tools      what the assistant may call, or None
    """

    index: int
    sample: int
    messages: list[Message]
    tools: list[Any] | None = None

    def seed(self, seed: int) -> int:
        """Of what is drawn for this answer, in 31 bits, as all servers take it."""
        return Random(f"{seed} {self.sample} {self.messages}").getrandbits(31)


def require_openai() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        import openai
    except ImportError as error:
        raise UserError(f"--engine openai needs the package openai ({error}): pip install openai") from None
    return openai


class ChatServer:
    """A model behind a server. A request that fails is made again as the client does, twice.

    Args:
        model_name: what the server calls it.
        base_url: the server's, up to `/v1`; None for OpenAI's own. Its key is read from OPENAI_API_KEY.
        parameters: how answers are written; stop tokens are the server's.

    Raises:
        UserError: the client is not installed.
    """

    def __init__(self, model_name: str, base_url: str | None, parameters: SamplingParameters) -> None:
        self.openai = require_openai()
        key = os.environ.get("OPENAI_API_KEY", "none")  # servers of one's own ask for none, the client does
        self.client = self.openai.OpenAI(base_url=base_url, api_key=key)
        self.model_name, self.parameters = model_name, parameters

    def answers(self, prompts: Sequence[ChatPrompt], at_once: int) -> Iterator[Generation]:
        """In the order of the prompts, with so many requests under way at once.

        Raises:
            UserError: the server refuses or is gone; what it had answered by then has been given.
        """
        pool = ThreadPoolExecutor(at_once)
        asked = iter([pool.submit(self._answer, prompt) for prompt in prompts])
        try:
            for future in terminal.bar(asked, label="answering", unit="answer", total=len(prompts)):
                yield future.result()
        except (self.openai.OpenAIError, UserError) as error:
            pool.shutdown(cancel_futures=True)
            yield from (future.result() for future in asked if _is_answered(future))
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(f"{self.client.base_url}: {reason:.300}: {GOES_ON}") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, prompt: ChatPrompt) -> Generation:
        completion = self.client.chat.completions.create(
            model=self.model_name,
            messages=prompt.messages,
            max_tokens=self.parameters.max_new_tokens,
            temperature=self.parameters.temperature or 0.0,
            seed=prompt.seed(self.parameters.seed),
            **({"tools": prompt.tools} if prompt.tools else {}),
        )
        choices = getattr(completion, "choices", None)
        if not choices:
            raise UserError("that is no answer of chat completions: check --base_url, which mostly ends in /v1")
        choice = choices[0]
        return Generation(
            index=prompt.index,
            sample=prompt.sample,
            prediction=_text(choice.message.model_dump()),
            truncated=choice.finish_reason == "length",
            new_tokens=completion.usage.completion_tokens if completion.usage else 0,
        )


def _text(message: Mapping[str, Any]) -> str:
    """What the assistant says, behind what it thinks, as the models write it that the server parts."""
    thinking, content = thinking_beside(dict(message)), message["content"] or ""
    return f"<think>\n{thinking}\n</think>\n\n{content}" if thinking else content


def _is_answered(future: Future[Generation]) -> bool:
    return not future.cancelled() and future.exception() is None
