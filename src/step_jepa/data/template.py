"""The chat template of a run: the tokenizer's own, one from a file, or none, with its arguments, date and end of turn.

All that is said of it is written into its text, which is saved with the model: so every command, and every other
engine, frames conversations as training did.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import CHAT_TEMPLATE_FILE

from step_jepa.data.rendering import ChatFormat, placeholder, rendered
from step_jepa.errors import UserError, say_once
from step_jepa.options import option, option_fields

# A chat template without any framing, for base models: the contents of the turns, one to a line, and eos at the end.
PLAIN_TEMPLATE = (
    "{{ messages | map(attribute='content') | join('\n') }}{{ '\n' if add_generation_prompt else eos_token }}"
)

# Before a template that refuses a system turn. The line break ends a block: Jinja takes it out.
SYSTEM_TO_USER = (
    "{% if messages[0]['role'] == 'system' and messages[1:] and messages[1]['role'] == 'user' %}"
    "{% set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + messages[1]['content']}]"
    " + messages[2:] %}{% endif %}\n"
)
# Before a template that wants each content in parts, as those of models that see pictures do.
CONTENT_TO_PARTS = (
    "{% set whole = namespace(turns=[]) %}{% for turn in messages %}"
    "{% set parts = [{'type': 'text', 'text': turn['content']}] if turn['content'] is string else turn['content'] %}"
    "{% set whole.turns = whole.turns + [dict(turn, content=parts)] %}{% endfor %}{% set messages = whole.turns %}\n"
)
_DATE = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


@dataclass(kw_only=True)
class TemplateOptions:
    """What frames conversations."""

    chat_template: str | None = option(
        None,
        help="Jinja file of a chat template, in place of the tokenizer's own.",
        group="Data",
        is_path=True,
        standalone=True,
        of_training=True,
        changes_views=True,
    )
    chat_template_kwargs: dict[str, Any] | str | None = option(
        None,
        help="Arguments of the chat template, as JSON such as '{\"enable_thinking\": false}'; the saved template has "
        "them as defaults.",
        group="Data",
        standalone=True,
        of_training=True,
        changes_views=True,
    )
    chat_template_date: str | None = option(
        None,
        help="What templates that write today's date take for it, as 2026-11-28; by default the day on which the run "
        "was begun.",
        group="Data",
        free_on_resume=True,
        standalone=True,
        of_training=True,
        changes_views=True,
    )
    end_of_turn: str | None = option(
        None,
        help="Special token that ends an answer, for chat templates that write none.",
        group="Data",
        standalone=True,
        of_training=True,
        changes_views=True,
    )


def settle_template(
    tokenizer: PreTrainedTokenizerBase, options: TemplateOptions | None = None, *, plain: bool = False
) -> None:
    """Give the tokenizer the chat template that the options ask for, with the day's date in it where it writes one, and
    with a place for a system turn where it has none.

    Args:
        tokenizer: any; one without a template keeps none.
        options: by default the tokenizer's own template without arguments.
        plain: no framing.

    Raises:
        UserError: the options contradict each other or the template.
    """
    options = options or TemplateOptions()
    for name in ("chat_template", "chat_template_kwargs") if plain else ():
        if getattr(options, name):
            raise UserError(f"--plain and --{name} contradict each other: leave one out")
    if options.chat_template:
        tokenizer.chat_template = _read(options.chat_template)
        rendered(tokenizer, [{"role": "user", "content": "a"}])  # a line of the file is named, before any is added
    if plain:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if not tokenizer.chat_template:
        return
    _put_before(tokenizer, _defaults(options.chat_template_kwargs))
    _pin_date(tokenizer, options.chat_template_date)
    if _wants_parts(tokenizer):
        _put_before(tokenizer, CONTENT_TO_PARTS)
    if _refuses_system(tokenizer):
        _put_before(tokenizer, SYSTEM_TO_USER)
    if options.end_of_turn:
        _end_turns_with(tokenizer, options.end_of_turn)


def template_identity(options: TemplateOptions) -> dict[str, Any]:
    """What two calls must have in common to frame conversations alike: a file counts by what it holds. Raises
    UserError."""
    values = {each.name: getattr(options, each.name) for each in option_fields(TemplateOptions)}
    held = _read(options.chat_template) if options.chat_template else ""
    return values | {"chat_template": held and sha256(held.encode()).hexdigest()}


def check_same_template(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> None:
    """Raises UserError where a checkpoint was trained with another chat template, or another date in it."""
    saved = Path(folder, CHAT_TEMPLATE_FILE)
    if saved.exists() and saved.read_text(encoding="utf-8") != tokenizer.chat_template:
        raise UserError(
            f"{folder} was begun with another chat template: give its --chat_template, --chat_template_kwargs, "
            "--chat_template_date and --end_of_turn"
        )


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--chat_template {file} cannot be read: give a Jinja file ({error})") from error


def _change(tokenizer: PreTrainedTokenizerBase, change: Any) -> None:
    """Change the text of the template, or of each where a tokenizer has several by name."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        tokenizer.chat_template = {name: change(text) for name, text in template.items()}
    else:
        tokenizer.chat_template = change(template)


def _put_before(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    _change(tokenizer, lambda template: text + template)


def _defaults(arguments: Mapping[str, Any] | str | None) -> str:
    """Jinja that sets each argument which whoever renders the template does not give."""
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"": None}
    named = arguments or {}
    if not isinstance(named, Mapping) or not all(str(name).isidentifier() for name in named):
        raise UserError("--chat_template_kwargs: give JSON such as '{\"enable_thinking\": false}'")
    default = "{{% if {0} is not defined %}}{{% set {0} = {1!r} %}}{{% endif %}}\n"
    return "".join(default.format(name, value) for name, value in named.items())


def today() -> str:
    """The date, as --chat_template_date takes it."""
    return date.today().isoformat()


def _pin_date(tokenizer: PreTrainedTokenizerBase, day: str | None) -> None:
    try:
        pinned = date.fromisoformat(day or today())
    except ValueError as error:
        raise UserError(f"--chat_template_date {day}: give a date such as 2026-11-28") from error
    before = tokenizer.chat_template
    _change(tokenizer, lambda text: _DATE.sub(lambda call: repr(pinned.strftime(call[2])), text))
    if tokenizer.chat_template != before:
        say_once(f"the chat template writes the date: {pinned} is kept with the model (--chat_template_date)")


def _wants_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template leaves out contents that are text, and writes those that are a list of parts."""
    contents = {role: placeholder(turn, thinks=False) for turn, role in enumerate(("user", "assistant"))}
    in_parts = {role: [{"type": "text", "text": content}] for role, content in contents.items()}
    if all(content in _rendered_turns(tokenizer, contents) for content in contents.values()):
        return False
    return all(content in _rendered_turns(tokenizer, in_parts) for content in contents.values())


def _rendered_turns(tokenizer: PreTrainedTokenizerBase, contents: Mapping[str, Any]) -> str:
    return rendered(tokenizer, [{"role": role, "content": content} for role, content in contents.items()]) or ""


def _refuses_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    system, *turns = [{"role": role, "content": "a"} for role in ("system", "user", "assistant")]
    return rendered(tokenizer, [system, *turns]) is None and rendered(tokenizer, turns) is not None


def _end_turns_with(tokenizer: PreTrainedTokenizerBase, token: str) -> None:
    """Have the template write the token behind an answer that ends a conversation, unless it does so by itself."""
    if token not in tokenizer.get_vocab():
        raise UserError(f"--end_of_turn {token} is no token of the tokenizer: give one, such as {tokenizer.eos_token}")
    if token not in tokenizer.all_special_tokens:
        tokenizer.add_special_tokens({"extra_special_tokens": [token]}, replace_extra_special_tokens=False)
    written = _end_of_turn(tokenizer)
    if written not in (None, token):
        raise UserError(f"--end_of_turn {token}: the chat template ends turns with {written}: leave it out")
    if written is None:
        condition = "not add_generation_prompt and messages[-1]['role'] == 'assistant'"
        suffix = f"{{% if {condition} %}}{{{{ {token!r} }}}}{{% endif %}}"
        _change(tokenizer, lambda text: text.removesuffix("\n") + suffix)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that the template writes behind an answer, if any."""
    answer = placeholder(1, thinks=False)
    text = rendered(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]) or ""
    found = ChatFormat.of(tokenizer).special.search(text.partition(answer)[2])
    return found[0] if found else None
