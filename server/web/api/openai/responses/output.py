"""The items of a response's output while they are written: a message with its text, and calls of functions."""

from collections.abc import Sequence
from typing import Any, Protocol

from server.chat.choices.logprobs import TokenLogprob
from server.knowledge.grounding.citations import Citation


class Item(Protocol):
    """An item of the output."""

    id: str
    index: int
    status: str

    def written(self, status: str) -> dict[str, Any]:
        """The item as JSON."""


class Text:
    """A message."""

    def __init__(self, hex: str, index: int) -> None:
        self.id = f"msg_{hex}{index:02}"
        self.index = index
        self.status = "in_progress"
        self.logprobs: list[TokenLogprob] = []
        self.annotations: list[dict[str, Any]] = []
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._parts)

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        """Append text."""
        self._parts.append(text)
        self.logprobs.extend(logprobs)

    def cite(self, citation: Citation) -> dict[str, Any]:
        """Add the annotation of a passage that supports the text; returns it."""
        place = {"start_index": citation.start, "end_index": citation.end}
        self.annotations.append({"type": "url_citation", "url": citation.passage.url, "title": citation.title, **place})
        return self.annotations[-1]

    @property
    def part(self) -> dict[str, Any]:
        """The part of the message's content."""
        about = {"annotations": list(self.annotations), "logprobs": written(self.logprobs)}
        return {"type": "output_text", "text": self.text, **about}

    def written(self, status: str) -> dict[str, Any]:
        """The message, without content while it is in progress."""
        content = [] if status == "in_progress" else [self.part]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}


class Call:
    """A call of a function."""

    def __init__(self, hex: str, index: int, call_id: str, name: str) -> None:
        self.id = f"fc_{hex}{index:02}"
        self.index = index
        self.status = "in_progress"
        self.arguments = ""
        """JSON."""
        self._call_id = call_id
        self._name = name

    def written(self, status: str) -> dict[str, Any]:
        """The call with its arguments so far."""
        call = {"id": self.id, "type": "function_call", "status": status, "call_id": self._call_id}
        return {**call, "name": self._name, "arguments": self.arguments}


class Output:
    """The items of one response; at most the last is open. `hex` makes their ids."""

    def __init__(self, hex: str) -> None:
        self.items: list[Item] = []
        self._hex = hex

    @property
    def last(self) -> Item | None:
        """The open item, or None."""
        return self.items[-1] if self.items and self.items[-1].status == "in_progress" else None

    def begin_text(self) -> Text:
        """A new message."""
        item = Text(self._hex, len(self.items))
        self.items.append(item)
        return item

    def begin_call(self, call_id: str, name: str) -> Call:
        """A new call."""
        item = Call(self._hex, len(self.items), call_id, name)
        self.items.append(item)
        return item

    def close(self, status: str) -> Item | None:
        """End the open item; returns it, or None."""
        item = self.last
        if item is not None:
            item.status = status
        return item


def written(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """Log probabilities as responses have them: without null bytes."""
    return [
        {
            "token": token.token,
            "bytes": token.bytes or (),
            "logprob": token.logprob,
            "top_logprobs": [
                {"token": top.token, "bytes": top.bytes or (), "logprob": top.logprob} for top in token.top_logprobs
            ],
        }
        for token in logprobs
    ]
