"""Grounds requests in the knowledge of their skills: a written answer, or passages before the question."""

import time
from collections.abc import Callable, Sequence
from typing import Literal

from anyio import to_thread
from msgspec import Struct
from msgspec.structs import replace

from server.chat.request import ReplyRequest
from server.chat.worker import Worker
from server.knowledge.grounding.citations import Citation, citations
from server.knowledge.grounding.grounding import NEAREST, Grounding, Question, Searchable, ground
from server.knowledge.grounding.quotations import quoted_only
from server.knowledge.grounding.quoting import fitting, with_passages
from server.knowledge.passages import Passage, is_link
from server.models.rollout import Model
from server.skills.skill import Skill
from server.text.chat_template import Message
from server.text.tokenizer import Tokenizer

EARLIER = 2
"""User turns that are considered: the question, and the one that it may lean on."""
PARAGRAPHS = "\n\n"


class Answer(Struct, frozen=True):
    """An answer that no model writes."""

    text: str
    outcome: Literal["refused", "verbatim"]


class Grounded(Struct, frozen=True):
    """A request with what was found for it."""

    request: ReplyRequest
    """With the passages before its question."""
    grounding: Grounding
    passages: tuple[Passage, ...]
    """What the reply may cite."""
    seconds: float
    """What the search took, and choosing what may be quoted."""
    tokens: int = 0
    """Prompt tokens that the passages take."""
    answer: Answer | None = None
    """None if the model answers."""

    def cite(self, text: str) -> tuple[Citation, ...]:
        """What a reply with this text cites: a stored answer its passage, a refusal nothing, a model its overlaps."""
        if self.answer is None:
            return tuple(citations(text, self.passages))
        return (Citation(self.passages[0], 0, len(text)),) if self.answer.outcome == "verbatim" else ()


class Grounder:
    """Searches off the event loop; `find` gives the open knowledge of a skill, or None. Belongs to the asyncio loop.

    `note` keeps refused questions for the authors of the pages; it is called in a thread.
    """

    def __init__(
        self,
        find: Callable[[Skill], Searchable | None],
        note: Callable[[Skill, Literal["refused"], str], None] = lambda skill, why, text: None,
        *,
        threads: int = 2,
    ) -> None:
        self._find = find
        self._note = note
        self._worker = Worker("knowledge", threads=threads, waiting=128)

    async def ground(self, request: ReplyRequest, model: Model) -> Grounded | None:
        """What `request` is answered from; None if its skill has no knowledge or it asks no question.

        Raises Overloaded if too many searches wait, ArtifactError if the knowledge cannot be read.
        """
        knowledge = self._find(request.skill)
        questions = questions_of(request)
        if knowledge is None or not questions:
            return None
        found: Grounded = await self._worker.run(grounded, knowledge, request, questions, model.tokenizer)
        if found.grounding.kind == "refused":
            await to_thread.run_sync(self._note, request.skill, "refused", questions[-1])
        return found


def questions_of(request: ReplyRequest) -> tuple[str, ...]:
    """The last questions of the user; empty for raw prompts, and where the reply continues a turn."""
    if request.prompts or request.template.continued:
        return ()
    if request.questions:
        return request.questions[-EARLIER:]
    return tuple(message["content"] for message in request.messages if message["role"] == "user")[-EARLIER:]


def grounded(
    knowledge: Searchable, request: ReplyRequest, questions: tuple[str, ...], tokenizer: Tokenizer
) -> Grounded:
    """Search and decide; a reply that must have a form is always the model's, from the best passages."""
    started = time.perf_counter()
    found = ground(knowledge, Question(questions, request.groups))
    passages = tuple(one.passage for one in found.found)
    own_words = request.grammar is None and not request.tools.tools
    answer = written(request.skill, found) if own_words and found.kind != "passages" else None
    quoted = () if answer else tuple(fitting(passages, request.skill.knowledge_tokens, tokenizer.count))
    if answer is None and own_words and request.skill.answers == "quoted":
        grammar = quoted_only(knowledge, found.query, quoted, tokenizer.spells_special)
        if grammar is None:  # the model may say nothing of its own
            answer = Answer(refusal(request.skill, passages[:NEAREST]), "refused")
        request = replace(request, grammar=grammar, messages=_without_talk(request.messages, found, questions))
    seconds = time.perf_counter() - started
    if answer is not None or not quoted:
        return Grounded(request, found, passages if answer else (), seconds, answer=answer)
    place = max(index for index, message in enumerate(request.messages) if message["role"] == "user")
    asked = request.messages[place]
    text = with_passages(asked["content"], quoted)
    messages = (*request.messages[:place], {**asked, "content": text}, *request.messages[place + 1 :])
    tokens = tokenizer.count(text) - tokenizer.count(asked["content"])
    return Grounded(replace(request, messages=messages), found, quoted, seconds, tokens)


def _without_talk(messages: tuple[Message, ...], found: Grounding, questions: tuple[str, ...]) -> tuple[Message, ...]:
    """`messages` from the last question on, with the instructions before it, if the question was found alone.

    A small model that chooses a quotation otherwise repeats the one of an earlier turn.
    """
    if not questions[-1].startswith(found.query):  # it was searched with the one before
        return messages
    place = max(index for index, message in enumerate(messages) if message["role"] == "user")
    instructions = (message for message in messages[:place] if message["role"] not in ("user", "assistant", "tool"))
    return (*instructions, *messages[place:])


def written(skill: Skill, found: Grounding) -> Answer:
    """The answer without the model: the stored one, or the refusal."""
    passages = [one.passage for one in found.found]
    if found.kind == "verbatim":
        return Answer(passages[0].text, "verbatim")
    return Answer(refusal(skill, passages), "refused")


def refusal(skill: Skill, nearest: Sequence[Passage]) -> str:
    """The skill's sentence of refusal, with links to the nearest documents."""
    links = "\n".join(f"- [{_plain(passage)}](<{passage.url}>)" for passage in nearest if is_link(passage.url))
    return PARAGRAPHS.join(filter(None, (skill.refusal, links)))


def _plain(passage: Passage) -> str:
    """A link's text without Markdown of its own."""
    text = passage.heading.rpartition(" > ")[2] or passage.title or passage.url
    return "".join(" " if letter in "[]\\`*_<>\n" else letter for letter in text).strip()
