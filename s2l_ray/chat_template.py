"""A tokenizer's own chat template: what a conversation looks like to the model, and where its answers stand in it.

A template is a program of the tokenizer's authors and may do anything with a turn: trim it, move it, add to it. So
every turn is marked before it goes in, with characters that Unicode keeps for private use, and found again by its
marks in what comes out; the same template without marks must give the same text. Strings in the data that look like
special tokens are marked too, and stay text. The idea of such marks is that of `sanitize_control_tokens` in
transformers.
"""

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2l_ray.artifacts import Artifact
from s2l_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]

_PRIVATE = re.compile("[\U000f0000-\U000ffffd]")
_TEXT_OPENS, _TEXT_ENDS = "\U000f0000", "\U000f0001"
_FIRST_TURN = 0xF0002
_MAX_TURNS = 32_000
_TODAY = """\
{%- macro strftime_now(format) -%}
{{- "2024-07-26" if format == "%Y-%m-%d" else "26 Jul 2024" -}}
{%- endmacro -%}
"""
"""Llama 3's own default. Templates that print the date would give other tokens every day."""


class UnusableChatError(Exception):
    """A conversation that the template refuses, or leaves something out of; the text is the reason."""


@dataclass(frozen=True)
class Chat:
    """A conversation as its model reads it, up to the end of its last answer.

    Attributes:
        text: what the template wrote.
        data: stretches [start, stop) of `text` in which a special token's name is the data's, and only text.
        answers: stretches [start, stop) of `text` that the loss counts, each with the token that ends a turn.
        invited: the starts of those that a generating model would be asked for: what stands before is its prompt.
        ended: whether the last answer has such a token; where the template writes none, the end-of-sequence token is
            due.
    """

    text: str
    data: tuple[tuple[int, int], ...]
    answers: tuple[tuple[int, int], ...]
    invited: tuple[int, ...]
    ended: bool


class ChatTemplate:
    """The chat template of a tokenizer folder, tried on a question and an answer."""

    def __init__(self, folder: Path) -> None:
        """Open it.

        Raises:
            ConfigError: there is none, or it does not take a question and an answer.
        """
        from transformers import AutoTokenizer

        self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
        source = self._tokenizer.chat_template
        if isinstance(source, dict):
            source = source.get("default")
        if not source:
            raise ConfigError(
                "tokens.template is chat, but the tokenizer has no chat template. Use the instruction-tuned version "
                "of the model, or tokens.template: alpaca (tokens.proxy_template, where only the proxy has none)."
            )
        self._source = (_TODAY if "strftime_now" in source else "") + source
        special = {str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        self._special = _any_of(special)
        self.turn_end: str | None = None
        """The token that ends an answer, where the template writes one."""
        self._opening = ""
        try:
            self._try()
        except UnusableChatError as error:
            raise ConfigError(
                f"tokens.template is chat, but the tokenizer's template does not take a question and an answer: "
                f"{error}. Use tokens.template: alpaca."
            ) from error

    def _try(self) -> None:
        question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        asked, invited = self._apply([question]), self._apply([question], add_generation_prompt=True)
        if invited.startswith(asked):
            # What stands between a question and its answer; a model that generates is given it.
            self._opening = invited[len(asked) :]
        marked = self._apply([question, {**answer, "content": _mark(0, "b")}])
        after = marked.partition(_end(0))[2]
        if found := self._special.search(after):
            self.turn_end = found[0]
        ends = {self.turn_end, self._tokenizer.eos_token} - {None}
        self._ends = _any_of({str(end) for end in ends})

    def render(self, turns: Sequence[tuple[str, str]]) -> Chat:
        """Lay out a conversation.

        Args:
            turns: (role, content) with the roles of `turns`, but `text`.

        Raises:
            UnusableChatError: the template refuses it, leaves out a turn, or changes a text in such a way that its
                answers cannot be told from the rest.
        """
        messages, tools = _messages(turns)
        if len(messages) > _MAX_TURNS or any(_PRIVATE.search(content) for _, content in turns):
            raise UnusableChatError("a turn holds a character for private use (U+F0000 to U+FFFFD), or too many turns")
        wanted = self._apply(messages, tools)
        marked = self._apply(self._marked(messages), self._texts(tools))
        if _PRIVATE.sub("", marked) != wanted:
            # Many templates trim a turn, which its marks prevent.
            messages = [{**message, "content": message["content"].strip()} for message in messages]
            marked = self._apply(self._marked(messages), self._texts(tools))
        if _PRIVATE.sub("", marked) != wanted:
            raise UnusableChatError("the template changes texts so that answers cannot be told from the rest")
        return self._located(messages, marked)

    def _apply(self, messages: Sequence[Message], tools: Any = None, **options: Any) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), tools=tools, chat_template=self._source, tokenize=False, **options
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise UnusableChatError(f"the template refuses it: {error}") from error
        return str(text)

    def _marked(self, messages: Sequence[Message]) -> list[Message]:
        return [self._marked_message(turn, message) for turn, message in enumerate(messages)]

    def _marked_message(self, turn: int, message: Message) -> Message:
        content = self._texts(message["content"])
        if "tool_calls" not in message:
            return {**message, "content": _mark(turn, content)}
        # Templates ask whether there is any content, so what is empty stays so; the last name is always written.
        calls = self._texts(message["tool_calls"])
        function = calls[-1].get("function", calls[-1])
        function["name"] += _end(turn)
        return {**message, "content": content and _start(turn) + content, "tool_calls": calls}

    def _texts(self, value: Any) -> Any:
        """Mark what looks like a special token in all texts of a value."""
        match value:
            case str():
                return self._special.sub(_as_text, value)
            case dict():
                return {name: self._texts(item) for name, item in value.items()}
            case list():
                return [self._texts(item) for item in value]
        return value

    def _located(self, messages: Sequence[Message], marked: str) -> Chat:
        text, place, data = _unmarked(marked)
        answers: list[tuple[int, int]] = []
        invited: list[int] = []
        ended = True
        after = 0  # the end of the turn before
        for turn, message in enumerate(messages):
            start, stop = place.get(_start(turn)), place.get(_end(turn))
            if stop is None:
                raise UnusableChatError(f"the template leaves out turn {turn + 1} ({message['role']})")
            if message["role"] == "assistant":
                begin = self._invited(text, after, start, stop)
                if begin is not None:
                    invited.append(begin)
                elif start is None:
                    raise UnusableChatError(f"the template changes the beginning of turn {turn + 1} (assistant)")
                later = [place[mark] for mark in (_start(turn + 1), _end(turn + 1)) if mark in place]
                ends = self._ends.finditer(text, stop, later[0] if later else len(text))
                end = next((end for end in ends if end.span() not in data), None)
                answers.append((begin or start or 0, end.end() if end else stop))
                ended = end is not None
            after = stop
        last = answers[-1][1]
        spans = tuple(span for span in data if span[1] <= last)
        return Chat(text[:last], spans, tuple(answers), tuple(invited), ended)

    def _invited(self, text: str, after: int, start: int | None, stop: int) -> int | None:
        """Return where an answer begins with all that the template adds to it: after what invites it, if that is there.

        Args:
            after: end of the turn before.
            start: where the answer's own text begins; None where the template took it apart.
            stop: where it ends.
        """
        if not self._opening:
            return None
        found = text.find(self._opening, after, stop) if start is None else text.rfind(self._opening, after, start)
        return None if found < 0 else found + len(self._opening)


def _messages(turns: Sequence[tuple[str, str]]) -> tuple[list[Message], Any]:
    """Return turns and tools as the templates take them: what belongs to the message before it joins that."""
    messages: list[Message] = []
    tools = None
    before = ""
    for role, content in turns:
        if role == "tools":
            tools = json.loads(content)
        elif role == "input":
            messages[-1]["content"] += f"\n{content}"
        elif role == "tool_calls":
            if before != "assistant":
                messages.append({"role": "assistant", "content": ""})
            messages[-1]["tool_calls"] = [_call(call) for call in json.loads(content)]
        else:
            messages.append({"role": role, "content": content})
        before = role
    return messages, tools


def _call(call: Any) -> Any:
    """Return a call of a tool as templates expect it: nested, and with its arguments as an object."""
    function = dict(call.get("function", call))
    if isinstance(arguments := function.get("arguments"), str):
        with suppress(ValueError):
            function["arguments"] = json.loads(arguments)
    return {"type": "function", **(call if "function" in call else {}), "function": function}


def _any_of(words: set[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _start(turn: int) -> str:
    return chr(_FIRST_TURN + 2 * turn)


def _end(turn: int) -> str:
    return chr(_FIRST_TURN + 2 * turn + 1)


def _mark(turn: int, content: str) -> str:
    return f"{_start(turn)}{content}{_end(turn)}"


def _as_text(found: re.Match[str]) -> str:
    return f"{_TEXT_OPENS}{found[0]}{_TEXT_ENDS}"


def _unmarked(marked: str) -> tuple[str, dict[str, int], list[tuple[int, int]]]:
    """Return a text without its marks, where each stood, and the stretches between those for data."""
    place: dict[str, int] = {}
    opened: list[int] = []
    closed: list[int] = []
    marks = [(0, 0), *((found.start(), found.end()) for found in _PRIVATE.finditer(marked)), (len(marked),) * 2]
    parts = [marked[stop:start] for (_, stop), (start, _) in pairwise(marks)]
    position = 0
    for part, (start, _) in zip(parts, marks[1:-1], strict=False):
        position += len(part)
        mark = marked[start]
        if mark in (_TEXT_OPENS, _TEXT_ENDS):
            (opened if mark == _TEXT_OPENS else closed).append(position)
        elif place.setdefault(mark, position) != position:
            raise UnusableChatError("the template repeats a turn")
    if len(opened) != len(closed):
        raise UnusableChatError("the template takes a text apart within the name of a special token")
    return "".join(parts), place, list(zip(opened, closed, strict=True))


@lru_cache(maxsize=2)
def opened_chat_template(tokenizer: Artifact) -> ChatTemplate:
    """Open the template of a `tokenizer` once per process."""
    with tokenizer.local_folder("") as folder:
        return ChatTemplate(folder)
