"""The input of a response as messages of a chat completion: a text, or items of earlier turns."""

from typing import Any, NamedTuple

from server.errors import InvalidRequest

STATELESS = (
    "this server keeps no responses: send the earlier items themselves in `input`, as clients do with `store` false"
)


class Messages(NamedTuple):
    """Messages, and the path in the input that each came from."""

    messages: list[dict[str, Any]]
    places: list[str]


def messages_of(given: Any) -> Messages:
    """The messages of an `input`; raises InvalidRequest naming the item."""
    if isinstance(given, str):
        return Messages([{"role": "user", "content": given}], ["input"])
    if not isinstance(given, list):
        raise InvalidRequest("Expected `str | array`: `input`.", param="input")
    found = Messages([], [])
    for index, item in enumerate(given):
        place = f"input[{index}]"
        if not isinstance(item, dict):
            raise InvalidRequest(f"Expected `object`: `{place}`.", param=place)
        add(item, place, found)
    if not found.messages:
        raise InvalidRequest("The input has no message.", param="input")
    return found


def add(item: dict[str, Any], place: str, found: Messages) -> None:
    """Append an item to the messages found before it; raises InvalidRequest for a kind that cannot be read."""
    match item.get("type") or "message":
        case "message":
            append({name: item.get(name) for name in ("role", "content") if name in item}, place, found)
        case "function_call":
            add_call(item, place, found)
        case "function_call_output":
            result = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
            append(result, place, found)
        case "reasoning":
            pass  # an earlier turn's thoughts are not shown to the model again
        case "item_reference":
            raise InvalidRequest(f"`item_reference` is not supported: {STATELESS}.", param=place, code="not_stored")
        case kind:
            shown = str(kind)[:64]
            raise InvalidRequest(
                f"Items of the type {shown!r} are not supported; message, function_call, function_call_output and "
                f"reasoning are: `{place}.type`.",
                param=f"{place}.type",
                code="unsupported_value",
            )


def add_call(item: dict[str, Any], place: str, found: Messages) -> None:
    """Append a call to the assistant's turn before it, or as a turn of its own."""
    function = {name: item.get(name) for name in ("name", "arguments")}
    call = {"id": item.get("call_id") or "", "type": "function", "function": function}
    last = found.messages[-1] if found.messages else {}
    if last.get("role") == "assistant":
        last["tool_calls"] = [*last.get("tool_calls", ()), call]
    else:
        append({"role": "assistant", "content": None, "tool_calls": [call]}, place, found)


def append(message: dict[str, Any], place: str, found: Messages) -> None:
    """Append a message with its place."""
    found.messages.append(message)
    found.places.append(place)
