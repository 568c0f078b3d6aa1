"""Questions and answers as the token ids that a model sees: with its own chat template, or as plain text.

Plain text is `Question: ...`, a new line, `Answer:`; a prompt without a wanted answer stands as it is.
"""

from collections.abc import Sequence
from typing import Any

from pruning.data.encoder import Encoder
from pruning.evaluation.tasks.task import Behaviour, Message, Task

Ids = tuple[int, ...]


class Prompts:
    """Writes the prompts of `task` for the model that `encoder` belongs to."""

    def __init__(self, encoder: Encoder, task: Task) -> None:
        self._encoder = encoder
        self._task: Any = task
        self._chat = getattr(task, "chat", True)

    def question(self, text: str) -> Ids:
        """What stands before the answer to a question; an empty question leaves what all prompts have in common."""
        if self._chat:
            return self.before([*self._turns(), Message("user", text)])
        if isinstance(self._task, Behaviour):
            shown = text
        else:
            turns = [f"Question: {turn.question}\nAnswer: {turn.answer}\n\n" for turn in self._task.examples]
            shown = f"{''.join(turns)}Question: {text}\nAnswer:"
        system = f"{self._task.system}\n\n" if self._task.system else ""
        return (*self._encoder.start, *self._encoder.ids(system + shown))

    def answer(self, text: str) -> Ids:
        """An answer after its question."""
        return tuple(self._encoder.ids(text if self._chat else f" {text}"))

    def before(self, messages: Sequence[Message]) -> Ids:
        """A conversation up to where the assistant speaks."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return tuple(self._encoder.prompt(turns))

    def text(self, ids: Sequence[int]) -> str:
        """What a reader sees of `ids`."""
        return self._encoder.decode(ids)

    def _turns(self) -> list[Message]:
        """The system prompt and the examples."""
        turns = [Message("system", self._task.system)] if self._task.system else []
        for example in self._task.examples:
            turns += [Message("user", example.question), Message("assistant", example.answer)]
        return turns
