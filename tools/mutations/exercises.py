"""Bugs in `exercises`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
