"""What a request offers the model to call, in OpenAI's form: `tools`, `tool_choice` and their older names."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from server.errors import InvalidRequest

NAME = r"^[A-Za-z0-9_-]{1,64}$"
MOST_TOOLS = 128
EMPTY: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
CHOICES = "none, auto, required, or an object that names a function"


class Definition(Struct, frozen=True):
    """A function as the caller describes it."""

    name: Annotated[str, Meta(pattern=NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema of the arguments; left out, there are none."""
    strict: bool | None = None
    """Whether arguments must match the schema; here they always do."""


class Tool(Struct, frozen=True):
    """One of `tools`."""

    function: Definition
    type: Literal["function"] = "function"

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.name

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its arguments, an object's."""
        return {**EMPTY} if not self.function.parameters else {"type": "object", **self.function.parameters}

    @property
    def plain(self) -> dict[str, Any]:
        """The tool as chat templates read it."""
        described = {"name": self.name, "description": self.function.description or "", "parameters": self.schema}
        return {"type": "function", "function": described}


class Named(Struct, frozen=True):
    """A function's name."""

    name: str


class Allowed(Struct, frozen=True):
    """The subset of the tools that may be called."""

    mode: Literal["auto", "required"]
    tools: list["Chosen"]


class Chosen(Struct, frozen=True):
    """A `tool_choice` that is an object."""

    type: Literal["function", "allowed_tools"] = "function"
    function: Named | None = None
    allowed_tools: Allowed | None = None


Choice = Literal["none", "auto", "required"] | Chosen


class Offer(Struct, frozen=True):
    """What the model may call in one reply."""

    tools: tuple[Tool, ...] = ()
    """Shown to the model."""
    callable: tuple[Tool, ...] = ()
    """What the reply may call."""
    required: bool = False
    """Whether it must call one."""
    parallel: bool | None = None
    """Whether it may call several; None: if the model's own template writes several."""
    legacy: bool = False
    """Whether the caller used the older fields `functions` and `function_call`."""

    @property
    def plain(self) -> tuple[dict[str, Any], ...]:
        """The tools as chat templates read them."""
        return tuple(tool.plain for tool in self.tools)


class Asked(Struct, frozen=True):
    """The fields of a request that offer tools."""

    tools: list[Tool] = field(default_factory=list)
    tool_choice: Choice = "auto"
    parallel_tool_calls: bool | None = None
    functions: list[Definition] = field(default_factory=list)
    function_call: Literal["none", "auto"] | Named = "auto"


def offer_of(asked: Asked) -> Offer:
    """What `asked` offers the model; raises InvalidRequest naming the field."""
    if asked.tools and asked.functions:
        raise InvalidRequest("Set `tools` or the older `functions`, not both.", param="functions")
    if asked.functions:
        chosen = asked.function_call
        choice = chosen if isinstance(chosen, str) else Chosen(function=chosen)
        tools = tuple(Tool(function) for function in asked.functions)
        return _offer(tools, choice, "functions", "function_call", legacy=True)
    offered = _offer(tuple(asked.tools), asked.tool_choice, "tools", "tool_choice")
    return offered if offered.parallel is False else replace(offered, parallel=asked.parallel_tool_calls)


def _offer(tools: tuple[Tool, ...], choice: Choice, field: str, choice_field: str, *, legacy: bool = False) -> Offer:
    """The offer of `tools` with a `choice` among them; the fields' names are for errors."""
    _check(tools, field)
    mode, callable = _chosen(tools, choice, choice_field)
    if mode == "none":
        return Offer()
    one = legacy or (isinstance(choice, Chosen) and choice.type == "function")
    return Offer(tools, callable, mode == "required", parallel=False if one else None, legacy=legacy)


def _check(tools: Sequence[Tool], field: str) -> None:
    """Raise InvalidRequest for too many tools, two of one name, or a schema that is not an object's."""
    if len(tools) > MOST_TOOLS:
        raise InvalidRequest(f"`{field}` has {len(tools)} functions; at most {MOST_TOOLS} are allowed.", param=field)
    names = [tool.name for tool in tools]
    for index, tool in enumerate(tools):
        place = f"{field}[{index}]" if field == "functions" else f"{field}[{index}].function"
        if tool.name in names[:index]:
            raise InvalidRequest(f"Two functions are named {tool.name!r}.", param=f"{place}.name")
        if tool.schema["type"] != "object":
            raise InvalidRequest(
                "The schema of a function's parameters must have the type object.", param=f"{place}.parameters"
            )


def _chosen(tools: tuple[Tool, ...], choice: Choice, field: str) -> tuple[str, tuple[Tool, ...]]:
    """The mode of a choice, and the tools that may be called; raises InvalidRequest for an unknown one."""
    if isinstance(choice, str):
        mode, wanted = choice, None
    elif choice.type == "allowed_tools" and choice.allowed_tools:
        mode = choice.allowed_tools.mode
        wanted = [one.function.name for one in choice.allowed_tools.tools if one.function]
    elif choice.function:
        mode, wanted = "required", [choice.function.name]
    else:
        raise InvalidRequest(f"`{field}` must be {CHOICES}.", param=field)
    names = [tool.name for tool in tools]
    for name in wanted or ():
        if name not in names:
            raise InvalidRequest(
                f"`{field}` names {name[:64]!r}, which is not among the offered functions.", param=field
            )
    if mode == "required" and not tools:
        raise InvalidRequest(f"`{field}` demands a call, and no functions are offered.", param=field)
    return ("none" if not tools else mode), tuple(tool for tool in tools if wanted is None or tool.name in wanted)
