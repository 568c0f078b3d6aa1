"""Plans which tokens the next forward pass computes: requests take turns, at most `batch_tokens` a pass.

No clocks, threads or tensors, so that tests can drive it with random traffic in milliseconds."""

from collections import Counter, deque
from collections.abc import Iterator, Set
from collections.abc import Sequence as Ids
from typing import NamedTuple

from server.engine.batch import Batch, Chunk
from server.engine.blocks import BLOCK, Blocks, CacheSize, blocks_for
from server.engine.scheduling.fairness import guest_places, next_waiting
from server.engine.scheduling.prefill_budget import SHORT_PASS_SECONDS, PrefillBudget
from server.engine.scheduling.speculation import MOST_ROWS, MOST_SEQUENCES, PromptLookup
from server.engine.sequence import Finish, Sequence
from server.errors import ConfigError, Overloaded

MOST_PROMPT_ROWS = 64
"""The most prompt positions scored in a pass; the logits of a long prompt are never in memory together."""


class Accepted(NamedTuple):
    """An id that was appended to its sequence."""

    sequence: Sequence
    token: int
    row: int | None
    """Its row of the logits; None if its grammar forced it."""
    finish: Finish | None
    """Set if it ends the reply."""
    complete: bool
    """Whether it is text although it ends the reply with `stop`."""


class Scheduler:
    """Continuous batching over `slots` sequences of at most `context` ids.

    A sequence gets all its blocks on admission, so none is ever preempted; while every slot is taken, a skill below its
    fair share has guest places, where there are blocks for them. Sequences of one skill share the blocks of
    its shared prefix, and those of one cache salt also later ones; each is computed once. With `look_up`, passes of a
    few sequences also verify guesses; later passes overwrite the keys and values of wrong ones.
    """

    def __init__(
        self, *, slots: int, context: int, batch_tokens: int, max_waiting: int, look_up: PromptLookup | None = None
    ) -> None:
        if slots < 1 or batch_tokens < slots:
            raise ConfigError(f"slots is {slots} and batch_tokens is {batch_tokens}; need 1 <= slots <= batch_tokens.")
        self.context = context
        self.batch_tokens = batch_tokens
        self.max_waiting = max_waiting
        self.slots = slots
        self.look_up = look_up
        self.prefill_budget = PrefillBudget()
        size = CacheSize(slots, context)
        self.blocks = Blocks(size.count, size.pinned)
        self.free = list(range(slots + min(guest_places(slots), batch_tokens - slots)))
        """Numbers of the slots and guest places without a sequence."""
        self.waiting: deque[deque[Sequence]] = deque()
        """The queued sequences of each request, the next to be admitted first."""
        self.running: list[Sequence] = []
        self._for_quiet = False
        """Whether the last pass had only prompts of skills without a queue."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.waiting and not self.running

    def add(self, *sequences: Sequence) -> None:
        """Queue the sequences of one request; raises Overloaded if `max_waiting` of the skill wait beyond free slots.

        All or none are queued; a request counts once, however many sequences it has.
        """
        assert all(0 < len(one.prompt) <= self.context - one.sampling.max_tokens for one in sequences)
        before = sum(request[0].skill == sequences[0].skill for request in self.waiting)
        if before >= self.max_waiting + max(self.slots - len(self.running), 0):
            rounds = 1 + before // self.slots  # a round of replies takes at least a second
            raise Overloaded(f"{before} requests are already waiting; try again later.", retry_after=rounds)
        self.waiting.append(deque(sequences))

    def schedule(self) -> Batch:
        """Admit what fits, then plan one pass: a token of each decoding sequence, and prefill with the rest.

        While sequences decode, `prefill_budget` limits the pass. Beside a queue, a prompt of its skills makes it short,
        and one of another skill has every other pass for itself.
        """
        while self.waiting and self.free and (request := self._next_waiting()) and self._admit(request[0]):
            self._take(request)
        decoding = sum(1 for sequence in self.running if sequence.generated)
        remaining = sum(sequence.remaining for sequence in self.running)
        if self.look_up and decoding == len(self.running) <= MOST_SEQUENCES and remaining <= self.batch_tokens:
            return self._decode_with_guesses(self.look_up)
        budget = self.prefill_budget.tokens(decoding, self.batch_tokens)
        queued = {request[0].skill for request in self.waiting}
        short = self.prefill_budget.tokens(decoding, self.batch_tokens, SHORT_PASS_SECONDS) if queued else budget
        order = self._turn(queued)
        decoding = sum(1 for sequence in order if sequence.generated)
        scored = MOST_PROMPT_ROWS
        chunks: list[Chunk] = []
        for sequence in order:
            if sequence.follows_unfinished_prompt:
                continue
            self._reuse_computed(sequence)
            follows = bool(chunks) and not chunks[-1].sequence.generated
            decoding -= 1 if sequence.generated else 0
            room = (short if sequence.skill in queued else budget) - decoding  # one for each that decodes after it
            if sequence.scores_prompt and not sequence.generated:
                room = min(room, scored)
            count = _chunk_size(sequence, min(sequence.remaining, room), follows)
            if count > 0:
                chunks.append(_chunk(sequence, count))
                budget -= count
                short -= count
                scored -= chunks[-1].prompt_rows
        return Batch(tuple(chunks))

    def commit(self, batch: Batch, tokens: Ids[int]) -> list[Accepted]:
        """Apply a computed pass and its sampled ids, one for each logits row; returns the accepted ones.

        Ids after a wrong guess or after the end of a reply are dropped, as are those of sequences aborted meanwhile.
        """
        accepted: list[Accepted] = []
        row = 0
        for chunk in batch.chunks:
            if chunk.sequence.slot is not None:
                accepted += self._accept(chunk, row, tokens[row : row + chunk.rows])
            row += chunk.rows
        assert row == len(tokens)
        return accepted

    def abort(self, sequence: Sequence) -> None:
        """Drop a queued or running sequence; its slot is free for the next pass. Idempotent."""
        if sequence.slot is not None:
            self._release(sequence)
        elif request := next((request for request in self.waiting if sequence in request), None):
            request.remove(sequence)
            if not request:
                self.waiting.remove(request)

    def _next_waiting(self) -> deque[Sequence] | None:
        """The request whose first sequence is the next to run, if one may."""
        running = (sequence.skill for sequence in self.running)
        return next_waiting(self.waiting, running, lambda request: request[0].skill, self.slots)

    def _turn(self, queued: Set[str]) -> list[Sequence]:
        """The sequences of the next pass, in their order; `queued` are the skills whose requests wait.

        Replies come first, since a long prompt must not stall what is being read, then prompts of a queued skill, so
        that no stream of others starves them, or of the skill with the fewest sequences.
        """
        quiet = [one for one in self.running if queued and not one.generated and one.skill not in queued]
        self._for_quiet = bool(quiet) and not self._for_quiet
        if self._for_quiet:
            return quiet
        busy = Counter(sequence.skill for sequence in self.running)
        return sorted(self.running, key=lambda one: () if one.generated else (one.skill not in queued, busy[one.skill]))

    def _take(self, request: deque[Sequence]) -> None:
        """Remove the sequence that was admitted; if its request has more, the request queues behind."""
        self.waiting.remove(request)
        request.popleft()
        if request:
            self.waiting.append(request)

    def _decode_with_guesses(self, look_up: PromptLookup) -> Batch:
        """Plan a decode pass in which the sequences share the room for guesses."""
        chunks: list[Chunk] = []
        room = min(MOST_ROWS, self.batch_tokens) - sum(sequence.remaining for sequence in self.running)
        for number, sequence in enumerate(self.running):
            guesses = look_up.guess(sequence, room // (len(self.running) - number))
            if sequence.constraint:
                guesses = guesses[: sequence.constraint.allowed(guesses)]
            chunks.append(_chunk(sequence, sequence.remaining, guesses))
            room -= len(guesses)
        return Batch(tuple(chunks))

    def _accept(self, chunk: Chunk, row: int, tokens: Ids[int]) -> list[Accepted]:
        """Append a chunk's accepted ids to its sequence; `row` is its first logits row."""
        sequence = chunk.sequence
        if chunk.wants_logits and sequence.sampling.max_tokens == 0:  # only the prompt is wanted
            sequence.finish, tokens = "length", ()
        count = chunk.accepted(tokens) if tokens else 0
        accepted: list[Accepted] = []
        for place, token in enumerate(tokens[:count]):
            if sequence.finish is None:
                sequence.append(token)
                accepted.append(Accepted(sequence, token, row + place, sequence.finish, sequence.complete))
        sequence.computed = chunk.end - (chunk.rows - len(accepted))
        if accepted:
            accepted += _forced(sequence)
        self._register(sequence)
        if self.look_up and chunk.guesses:
            self.look_up.record(sequence, chunk.guesses, count - 1)
        if sequence.finish:
            self._release(sequence)
        return accepted

    def _admit(self, sequence: Sequence) -> bool:
        """Give a sequence its slot and blocks; False if too few blocks are free, which guests may have taken."""
        sequence.extend_hashes(len(sequence.prompt) // BLOCK)
        # The last id's logits are needed, so at least that id is computed again.
        reusable = 0 if sequence.scores_prompt else (len(sequence.prompt) - 1) // BLOCK
        shared = self.blocks.prefix(sequence.hashes[:reusable])
        needed = blocks_for(len(sequence.prompt) + max(1, sequence.sampling.max_tokens) - 1)
        if needed - len(shared) > self.blocks.spare(shared):
            return False
        for block in shared:
            self.blocks.hold(block)
        sequence.blocks = [*shared, *(self.blocks.allocate() for _ in range(needed - len(shared)))]
        sequence.cached = sequence.computed = len(shared) * BLOCK
        sequence.slot = self.free.pop(0)
        if sequence.sampling.constraint:
            sequence.constraint = sequence.sampling.constraint.begin()
        self.running.append(sequence)
        return True

    def _reuse_computed(self, sequence: Sequence) -> None:
        """Skip prompt blocks that another sequence has computed since this one was admitted."""
        if sequence.scores_prompt:
            return
        while sequence.computed % BLOCK == 0 and sequence.computed + BLOCK < len(sequence.prompt):
            index = sequence.computed // BLOCK
            block = self.blocks.find(sequence.hashes[index])
            if block is None:
                return
            self.blocks.hold(block)
            self.blocks.release(sequence.blocks[index])
            sequence.blocks[index] = block
            sequence.computed += BLOCK
            sequence.cached += BLOCK

    def _register(self, sequence: Sequence) -> None:
        """Register the sequence's newly full blocks in the prefix cache; pins those of the skill's shared prefix."""
        full = sequence.computed // BLOCK
        sequence.extend_hashes(full)
        for index in range(sequence.registered, full):
            pin = index < sequence.shared_blocks
            self.blocks.register(sequence.blocks[index], sequence.hashes[index], pin=pin)
        sequence.registered = max(sequence.registered, full)

    def _release(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        if self.look_up:
            self.look_up.forget(sequence)
        for block in reversed(sequence.blocks):  # so that a prefix is evicted from its end
            self.blocks.release(block)
        sequence.blocks = []
        self.free.append(sequence.slot)
        self.running.remove(sequence)
        sequence.slot = None


def _forced(sequence: Sequence) -> Iterator[Accepted]:
    """Append the ids that the grammar forces; the next pass computes them together."""
    while (token := sequence.forced) is not None:
        sequence.append(token)
        yield Accepted(sequence, token, None, sequence.finish, sequence.complete)


def _chunk_size(sequence: Sequence, count: int, follows: bool) -> int:
    """At most `count`, cut at a block boundary if the prompt goes on, since only full blocks can be shared.

    With `follows`, another prompt's chunk precedes in the pass and may compute the same partial block; it is left out.
    """
    end = sequence.computed + count
    if end >= len(sequence.prompt):
        return count
    full = end - end % BLOCK - sequence.computed
    return max(0, full) if full >= BLOCK or follows else count


def _chunk(sequence: Sequence, count: int, guesses: tuple[int, ...] = ()) -> Chunk:
    assert sequence.slot is not None
    start, end = sequence.computed, sequence.computed + count
    ids = (*sequence.tokens[start:end], *guesses)
    wants_logits = end == len(sequence.tokens)
    scored = count - wants_logits if sequence.scores_prompt and start < len(sequence.prompt) else 0
    return Chunk(sequence, sequence.slot, start, ids, wants_logits, tuple(sequence.blocks), len(guesses), scored)
