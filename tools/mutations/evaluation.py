"""Bugs in `evaluation`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
