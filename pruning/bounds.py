"""Numbers within bounds, as recipes and tasks give them."""

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Bucket = Annotated[int, Meta(ge=0, le=9)]
