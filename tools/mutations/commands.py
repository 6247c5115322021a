"""Bugs in `commands` and `cli`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
