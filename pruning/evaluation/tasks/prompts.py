"""Questions and answers as token ids, formatted with the model's chat template or as plain text.

Plain text is "Question: ..." and "Answer:" on two lines; the prompt of a behaviour task is sent unchanged.
"""

from collections.abc import Sequence
from typing import Any

from pruning.data.encoder import Encoder
from pruning.evaluation.tasks.task import BehaviourTask, Message, Task

Ids = tuple[int, ...]


class Prompts:
    """Encodes the prompts of `task` with the tokenizer and chat template of one model."""

    def __init__(self, encoder: Encoder, task: Task) -> None:
        self._encoder = encoder
        self._task: Any = task
        self._chat = getattr(task, "chat", True)

    def question(self, text: str) -> Ids:
        """The prompt up to where the answer begins; with an empty `text`, the prompt without a question."""
        if self._chat:
            return self.conversation([*self._turns(), Message("user", text)])
        if isinstance(self._task, BehaviourTask):
            shown = text
        else:
            turns = [f"Question: {turn.question}\nAnswer: {turn.answer}\n\n" for turn in self._task.examples]
            shown = f"{''.join(turns)}Question: {text}\nAnswer:"
        system = f"{self._task.system}\n\n" if self._task.system else ""
        return (*self._encoder.start, *self._encoder.ids(system + shown))

    def answer(self, text: str) -> Ids:
        """The answer that follows a question."""
        return tuple(self._encoder.ids(text if self._chat else f" {text}"))

    def conversation(self, messages: Sequence[Message]) -> Ids:
        """A conversation up to where the assistant's next turn begins."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return tuple(self._encoder.prompt(turns))

    def count(self, text: str) -> int:
        """The number of tokens of `text` alone."""
        return len(self._encoder.ids(text))

    def spells_special(self, text: str) -> bool:
        """Whether `text` spells a special token."""
        return self._encoder.spells_special(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return self._encoder.decode(ids)

    def _turns(self) -> list[Message]:
        """The system prompt and the few-shot examples."""
        turns = [Message("system", self._task.system)] if self._task.system else []
        for example in self._task.examples:
            turns += [Message("user", example.question), Message("assistant", example.answer)]
        return turns
