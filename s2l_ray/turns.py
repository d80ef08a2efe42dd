"""A row's texts as turns: who speaks, and what.

Roles: `system`, `user`, `input` (the second half of an alpaca prompt), `assistant`, `tool` (what a tool answered),
`tools` (the tools that may be called, as JSON), `tool_calls` (those that the assistant calls, as JSON), `text` (plain
text, which answers nothing). A model learns `assistant`, `tool_calls` and `text`.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from s2l_ray.evaluation_sets import SETS
from s2l_ray.formats.row import Row, UnusableRowError, bad_type, kind_of, missing_column, text_of
from s2l_ray.input_files import shown
from s2l_ray.layouts import OPTIONAL, REQUIRED, Layout

_ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "function_call": "tool_calls",
    "observation": "tool",
}
"""The roles of OpenAI's messages, of ShareGPT, and of LLaMA-Factory's ShareGPT with tools."""

LEARNED = ("assistant", "tool_calls", "text")
"""The roles whose turns a model is to say itself."""


class Turn(NamedTuple):
    """One turn of an example."""

    role: str
    content: str


def last_exchange(turns: Sequence[Turn]) -> tuple[str, str]:
    """Return what was asked last, and the answer to it; the question is empty where nothing was."""
    answer = max(n for n, turn in enumerate(turns) if turn.role in LEARNED)
    first = max((n + 1 for n, turn in enumerate(turns[:answer]) if turn.role in LEARNED), default=0)
    asked = [turn.content for turn in turns[first:answer] if turn.role in ("user", "input")]
    return "\n".join(asked), turns[answer].content


def lost_an_answer(turns: Sequence[Turn], spans: int) -> bool:
    """Return whether fewer responses are left of a row that was cut than it has answers."""
    return spans < sum(turn.role in LEARNED for turn in turns)


def turns_of(row: Row, layout: Layout) -> tuple[Turn, ...]:
    """Return the turns of a row.

    Raises:
        UnusableRowError: with a short code, a colon and the details.
    """
    match layout.name:
        case "messages" | "sharegpt":
            (column,) = (layout.columns[our] for our in REQUIRED[layout.name])
            return (*_preamble(row, layout), *_chat_turns(row, column))
        case "text":
            return (Turn("text", _answer(row, layout.columns["text"])),)
        case name if name in SETS:
            return _of_set(row, layout)
        case _:
            return (*_preamble(row, layout), *_history(row, layout), *_question_and_answer(row, layout))


def _of_set(row: Row, layout: Layout) -> tuple[Turn, ...]:
    """Return question and answer of a row of an evaluation set, which knows its columns by their own names."""
    mapped = {our: row[its] for our, its in layout.columns.items() if its in row}
    ours = {*REQUIRED[layout.name], *OPTIONAL[layout.name]}
    question, answer = SETS[layout.name].read({its: row[its] for its in row if its not in ours} | mapped)
    if not answer or answer.isspace():
        raise UnusableRowError("blank_output: the answer has no text")
    return (Turn("user", question), Turn("assistant", answer))


def _preamble(row: Row, layout: Layout) -> list[Turn]:
    """Return what columns of their own say of the whole conversation."""
    turns = []
    if tools := _tools(layout.columns.get("tools", ""), layout.value_in(row, "tools")):
        turns.append(Turn("tools", tools))
    if layout.value_in(row, "system") not in (None, ""):
        turns.append(Turn("system", text_of(row, layout.columns["system"])))
    return turns


def _tools(column: str, value: object) -> str:
    """Return a list of tools as JSON; nothing where there are none."""
    if value in (None, ""):
        return ""
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise UnusableRowError(f"bad_tools: column `{shown(column)}` holds text that is no JSON: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise bad_type(column, value, "a list of tools, or its JSON")
    if not tools:
        return ""
    return value if isinstance(value, str) else _json_of(tools, f"column `{shown(column)}`")


def _json_of(value: object, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise UnusableRowError(f"bad_tools: {where} holds what JSON cannot: {error}") from error


def _history(row: Row, layout: Layout) -> list[Turn]:
    """Return earlier questions and answers, which alpaca rows may have as a list of pairs."""
    pairs = layout.value_in(row, "history") or []
    column = layout.columns.get("history", "")
    if not isinstance(pairs, list):
        raise bad_type(column, pairs, "a list of [question, answer]")
    turns: list[Turn] = []
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UnusableRowError(f"bad_turn: pair {number} of `{shown(column)}` is no [question, answer] of texts")
        if not pair[1].strip():
            raise UnusableRowError(f"blank_output: the answer of pair {number} of `{shown(column)}` has no text")
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    return turns


def _question_and_answer(row: Row, layout: Layout) -> list[Turn]:
    prompt, response = (layout.columns[our] for our in REQUIRED[layout.name])
    turns = [Turn("user", text_of(row, prompt))]
    if layout.value_in(row, "input") is not None:
        more = text_of(row, layout.columns["input"])
        if more:
            turns.append(Turn("input", more))
    turns.append(Turn("assistant", _answer(row, response)))
    return turns


def _answer(row: Row, column: str) -> str:
    answer = text_of(row, column)
    if not answer or answer.isspace():
        raise UnusableRowError(f"blank_output: column `{shown(column)}` has no text")
    return answer


def _chat_turns(row: Row, column: str) -> tuple[Turn, ...]:
    messages = row.get(column)
    if column not in row:
        raise missing_column(row, column)
    if not isinstance(messages, list):
        raise bad_type(column, messages, "a list of turns")
    if not messages:
        raise UnusableRowError(f"empty_messages: column `{shown(column)}` is an empty list")
    turns = tuple(turn for number, message in enumerate(messages, start=1) for turn in _chat_turn(number, message))
    if not any(turn.role in LEARNED for turn in turns):
        raise UnusableRowError(f"no_assistant_turn: the roles are {', '.join(turn.role for turn in turns[:8])}")
    return turns


def _chat_turn(number: int, message: object) -> list[Turn]:
    """Return a message as turns: its text, and the tools that it calls."""
    if not isinstance(message, dict):
        raise UnusableRowError(f"bad_turn: turn {number} is {kind_of(message)}, expected {{role, content}}")
    # Parquet gives every turn all keys, null where a turn has none, so a key that is there says nothing.
    is_sharegpt = message.get("role") is None and message.get("from") is not None
    role_key, text_key = ("from", "value") if is_sharegpt else ("role", "content")
    role, content = message.get(role_key), message.get(text_key)
    if not isinstance(role, str) or role not in _ROLES:
        found = f"`{shown(role)}`" if isinstance(role, str) else kind_of(role)
        raise UnusableRowError(f"bad_role: turn {number} has the role {found}, expected one of {', '.join(_ROLES)}")
    calls = _calls(number, message.get("tool_calls")) if _ROLES[role] == "assistant" else None
    if calls and content in (None, ""):
        return [calls]
    if not isinstance(content, str):
        what = "a list of parts" if isinstance(content, list) else kind_of(content)
        raise UnusableRowError(f"bad_turn: the {text_key} of turn {number} is {what}, expected text")
    if _ROLES[role] == "tool_calls":
        if (asked := _calls(number, content)) is None:
            raise UnusableRowError(f"bad_turn: turn {number} calls no tool, expected {{name, arguments}}")
        return [asked]
    if _ROLES[role] == "assistant" and (not content or content.isspace()):
        raise UnusableRowError(f"blank_output: turn {number} (assistant) has no text")
    return [Turn(_ROLES[role], content), *([calls] if calls else [])]


def _calls(number: int, calls: Any) -> Turn | None:
    """Return calls of tools as one turn, if there are any; each names its function, as OpenAI or LLaMA-Factory do."""
    if not calls:
        return None
    try:
        found = json.loads(calls) if isinstance(calls, str) else calls
    except (ValueError, RecursionError) as error:
        raise UnusableRowError(f"bad_turn: the tool calls of turn {number} are no JSON: {error}") from error
    found = found if isinstance(found, list) else [found]
    if not found:
        return None
    for call in found:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise UnusableRowError(
                f"bad_turn: a tool call of turn {number} names no function, expected {{name, arguments}}"
            )
    return Turn("tool_calls", _json_of(found, f"turn {number}"))
