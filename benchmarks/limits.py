"""What a limit is worth when calls run side by side: eight of 100 tokens each against a limit of 150, with a
goal's token budget, pydantic-ai's `UsageLimits` and litellm's budgets, each used as its documentation says.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from decimal import Decimal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from benchmarks.measure import Figure, Scale
from goal_state import BudgetExceededError, GoalStore

__all__ = ["run"]

GROUP = "limits"
CALLS: Final = 8
TOKENS: Final = 100
LIMIT: Final = 150
SECONDS: Final = 0.002
"""How long the fake model takes."""
SETTLED_SECONDS: Final = 0.1
"""Between calls one after another: some add up in the background."""
PRICE: Final = Decimal("0.000001")
"""Of a token, where a limit is one of money."""


@dataclass(frozen=True, slots=True)
class Side:
    """A limit, and how it is asked before a call."""

    name: str
    package: str
    use: Callable[[Path, bool], Model]
    """Makes the calls, all at once or one after another."""
    guarantee: str


class Model:
    """A fake model that counts what is really asked of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = 0

    @property
    def tokens(self) -> int:
        """What all calls have used."""
        return self.calls * TOKENS

    def count(self) -> None:
        """Notes a call that the model answers."""
        with self._lock:
            self.calls += 1

    def call(self) -> None:
        """A call."""
        self.count()
        time.sleep(SECONDS)


def run(directory: Path, scale: Scale) -> Iterator[Figure]:
    # A process for each: some change what the whole process uses, or its folder.
    context = multiprocessing.get_context("spawn")
    for number, side in enumerate(SIDES):
        name = f"{side.name}: {CALLS} parallel calls of {TOKENS} tokens, limit {LIMIT}"
        try:
            name = f"{side.name} {version(side.package)}{name.removeprefix(side.name)}"
            used: list[float] = []
            for attempt in range(max(scale.rounds // 5, 1) + 1):
                place = directory / f"{number}-{attempt}"
                place.mkdir()
                with ProcessPoolExecutor(1, mp_context=context) as process:
                    used.append(process.submit(_used, number, place, attempt > 0).result())
            in_turn, *used = used
        except PackageNotFoundError:
            yield Figure(GROUP, name, [], note="not installed")
        except Exception as error:  # a side that breaks is a line of the report, not its end
            yield Figure(GROUP, name, [], note=f"failed: {type(error).__name__}: {error}")
        else:
            yield Figure(
                GROUP,
                name,
                used,
                unit="tokens",
                target=LIMIT if side.package == "goal-state" else None,
                behind=f"one after another {in_turn:.0f} tokens",
                note=side.guarantee,
            )


def _used(number: int, place: Path, at_once: bool) -> int:
    logging.disable(logging.CRITICAL)
    os.chdir(place)
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched
    with redirect_stdout(None):
        return SIDES[number].use(place, at_once).tokens


def _in_threads(work: Callable[[], object], at_once: bool) -> None:
    if not at_once:
        for _ in range(CALLS):
            work()
            time.sleep(SETTLED_SECONDS)
        return
    barrier = threading.Barrier(CALLS)

    def one() -> None:
        barrier.wait()
        work()

    with ThreadPoolExecutor(CALLS) as pool:
        for future in [pool.submit(one) for _ in range(CALLS)]:
            future.result()


def _in_tasks(
    work: Callable[[], Coroutine[Any, Any, None]], at_once: bool
) -> Coroutine[Any, Any, None]:
    async def every() -> None:
        if at_once:
            await asyncio.gather(*(work() for _ in range(CALLS)))
            return
        for _ in range(CALLS):
            await work()
            await asyncio.sleep(SETTLED_SECONDS)

    return every()


# -- the limits --------------------------------------------------------------------------------------


def _goal(place: Path, at_once: bool) -> Model:
    model = Model()
    with GoalStore.open(place / "goals.db") as store:
        store.create("thread-1", "Ship the parser", token_budget=LIMIT)

        def call() -> None:
            with suppress(BudgetExceededError), store.reserve("thread-1", tokens=TOKENS) as hold:
                model.call()
                hold.settle(tokens=TOKENS)

        _in_threads(call, at_once)
    return model


def _pydantic_ai(_: Path, at_once: bool) -> Model:
    from pydantic_ai import Agent, UsageLimitExceeded
    from pydantic_ai.messages import ModelResponse, TextPart
    from pydantic_ai.models.function import FunctionModel
    from pydantic_ai.usage import RequestUsage, RunUsage, UsageLimits

    model = Model()

    async def answer(_messages: Any, _info: Any) -> ModelResponse:
        model.count()
        await asyncio.sleep(SECONDS)
        return ModelResponse(
            parts=[TextPart("done")],
            usage=RequestUsage(input_tokens=TOKENS // 2, output_tokens=TOKENS // 2),
        )

    agent = Agent(FunctionModel(answer))
    shared = RunUsage()

    async def one() -> None:
        with suppress(UsageLimitExceeded):
            await agent.run("go", usage=shared, usage_limits=UsageLimits(total_tokens_limit=LIMIT))

    asyncio.run(_in_tasks(one, at_once))
    return model


def _litellm() -> dict[str, Any]:
    """How a model that answers by itself, at a known price, is called."""
    import litellm

    litellm.telemetry = False
    price = {"input_cost_per_token": float(PRICE), "output_cost_per_token": float(PRICE)}
    litellm.register_model({"openai/fake": {**price, "litellm_provider": "openai", "mode": "chat"}})
    usage = litellm.Usage(
        prompt_tokens=TOKENS // 2, completion_tokens=TOKENS // 2, total_tokens=TOKENS
    )
    choices: Any = [{"message": {"role": "assistant", "content": "done"}}]
    return {
        "messages": [{"role": "user", "content": "go"}],
        "mock_response": litellm.ModelResponse(model="openai/fake", choices=choices, usage=usage),
        "mock_delay": SECONDS,
    }


def _litellm_budget_manager(_: Path, at_once: bool) -> Model:
    import litellm

    asked, model = _litellm(), Model()
    budget = litellm.BudgetManager(project_name="benchmark")
    budget.create_budget(total_budget=float(LIMIT * PRICE), user="ada")

    def call() -> None:
        if budget.get_current_cost(user="ada") <= budget.get_total_budget("ada"):
            reply = litellm.completion(model="openai/fake", **asked)
            model.count()
            budget.update_cost(completion_obj=reply, user="ada")

    _in_threads(call, at_once)
    return model


def _litellm_router(_: Path, at_once: bool) -> Model:
    import litellm

    asked, model = _litellm(), Model()

    async def every() -> None:
        budget = litellm.types.utils.BudgetConfig(
            budget_limit=float(LIMIT * PRICE), time_period="1d"
        )
        router = litellm.Router(
            model_list=[
                {
                    "model_name": "fake",
                    "litellm_params": {"model": "openai/fake", "api_key": "none"},
                }
            ],
            provider_budget_config={"openai": budget},
            num_retries=0,
        )

        async def one() -> None:
            with suppress(ValueError, litellm.BudgetExceededError):
                await router.acompletion(model="fake", **asked)
                model.count()

        await _in_tasks(one, at_once)

    asyncio.run(every())
    return model


SIDES: Final = (
    Side(
        "goal_state reserve",
        "goal-state",
        _goal,
        "no call is sent that the budget has no room for, in threads, tasks and processes",
    ),
    Side(
        "pydantic-ai UsageLimits",
        "pydantic-ai-slim",
        _pydantic_ai,
        "checked before each request against what has come back, and again after it: calls in flight"
        " are not counted; in memory",
    ),
    Side(
        "litellm BudgetManager",
        "litellm",
        _litellm_budget_manager,
        "the caller asks before, and adds after, a call: calls in flight are not counted; a JSON file,"
        " written in the background",
    ),
    Side(
        "litellm Router provider budget",
        "litellm",
        _litellm_router,
        "checked before each call against what was added up after earlier ones: calls in flight are not"
        " counted; in memory, or Redis",
    ),
)
