"""Bugs in `figures`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
