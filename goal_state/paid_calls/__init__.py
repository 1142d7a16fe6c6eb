"""A model call that a goal pays for: a hold before it is sent, a settlement by what the response says.

What the adapters of agent SDKs share, and what you write one with for an SDK that has none:

    payer = Payer(store, thread_id="thread-1")
    with payer.begin(prompt_tokens(messages), model="some-model", output_tokens=2_000) as paid:
        reply = client.ask(messages, max_tokens=paid.output_tokens)
        paid.answered(reply.usage, response_id=reply.id)
"""

from goal_state.paid_calls.call import AsyncPaidCall, PaidCall
from goal_state.paid_calls.payer import Payer
from goal_state.paid_calls.prompt import prompt_tokens

__all__ = ["AsyncPaidCall", "PaidCall", "Payer", "prompt_tokens"]
