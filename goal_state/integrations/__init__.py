"""Adapters of agent SDKs: each call of a model is held to its goal's budgets, and paid by what it used.

One module for each SDK, which knows nothing of the others; each needs the extra of its name.
"""
