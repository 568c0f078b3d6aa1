"""How the tools of one reply are shown to a model, constrained and read: by its own template's form, or by ours."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from server.chat.tools.calls import CallReader
from server.chat.tools.grammar import tools_grammar
from server.chat.tools.offer import Offer
from server.chat.tools.prompt import offered, spelled
from server.text.chat_template import Message, TemplateOptions
from server.text.codec import TextCodec
from server.text.grammar.grammar import Grammar
from server.text.tool_form import HERMES, ToolForm


class ToolUse(Struct, frozen=True):
    """The tools of one reply of one model; `instead` is what a reply without calls must match."""

    offer: Offer
    form: ToolForm
    native: bool
    """Whether the model's template shows tools and calls itself."""
    instead: Grammar | None = None

    def shown(self, messages: Sequence[Message], options: TemplateOptions) -> tuple[list[Message], TemplateOptions]:
        """The messages and options for the template, with the tools, calls and results."""
        if self.native:
            return list(messages), replace(options, tools=self.offer.plain)
        system = [offered(self.offer.plain, self.form)] if self.offer.tools else []
        return [*spelled(messages, self.form), *system], options

    @property
    def grammar(self) -> Grammar | None:
        """What the reply must match; raises InvalidRequest for what cannot be combined."""
        if not self.offer.callable:
            return self.instead
        several = self.native if self.offer.parallel is None else self.offer.parallel
        return tools_grammar(self.offer, self.form, self.instead, several=several)

    @property
    def reader(self) -> CallReader | None:
        """A new reader of the reply's calls; None if it makes none."""
        if not self.offer.callable:
            return None
        return CallReader(self.form, required=self.offer.required, alone=self.instead is not None)


def tool_use(offer: Offer, codec: TextCodec, instead: Grammar | None) -> ToolUse:
    """Use `offer` in the form of the model's own template, or in ours.

    Ours is for templates without a form, and where calls as bare JSON could be mistaken for the JSON of `instead`.
    """
    own = codec.tool_form
    if own is None or (instead is not None and not own.trigger):
        return ToolUse(offer, HERMES, False, instead)
    return ToolUse(offer, own, True, instead)
