"""Bugs in `derivations`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
