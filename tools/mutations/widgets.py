"""Bugs in `widgets`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
