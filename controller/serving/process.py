"""How the process has to be run to hold thousands of streams.

Measured with 10,000 of them, one change to all (docs/scale.md): the garbage collector as it comes walks every
object of every stream again and again, which costs as much as sending. Reference counts free nearly all that
there is; cycles are few and young, but for what an hour's look finds.
"""

import asyncio
import gc
import os
from collections.abc import Coroutine
from importlib import import_module, util
from typing import Any, NoReturn

# Objects made and not freed before the youngest are looked at; generations after that.
_YOUNG = 20_000
_KEEP_EVERY = 10.0
_WHOLE_EVERY = 3600.0
# What arrives is read by the thread that waits for it, not handed to a pool of others: a join costs a
# twelfth less.
_ONE_READER = "-event_engine_listener"


def settle_grpc() -> None:
    """Say how gRPC is to read, unless the environment says it. It looks once, when it is imported.

    A name that a later gRPC does not know any more is logged there and does nothing
    (doc/environment_variables.md of gRPC).
    """
    os.environ.setdefault("GRPC_EXPERIMENTS", _ONE_READER)


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
