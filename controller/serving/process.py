"""How the interpreter has to be run to hold thousands of streams.

Measured with 10,000 of them, one change to all (docs/scale.md): the garbage collector as it comes walks every
object of every stream again and again, which costs as much as sending. Reference counts free nearly all that
there is; cycles are few and young, but for what an hour's look finds.
"""

import asyncio
import gc
from collections.abc import Coroutine
from importlib import import_module, util
from typing import Any, NoReturn

# Objects made and not freed before the youngest are looked at; generations after that.
_YOUNG = 20_000
_KEEP_EVERY = 10.0
_WHOLE_EVERY = 3600.0


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine as the whole work of this process; on uvloop where that is installed."""
    factory = import_module("uvloop").new_event_loop if util.find_spec("uvloop") else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


async def spare_the_old() -> NoReturn:
    """Keep the collector to what is young; what has lived for a while is set aside."""
    gc.set_threshold(_YOUNG, 20, 1000)
    while True:
        gc.unfreeze()
        gc.collect()
        for _ in range(int(_WHOLE_EVERY / _KEEP_EVERY)):
            gc.freeze()
            await asyncio.sleep(_KEEP_EVERY)
            gc.collect(1)
