"""Bugs in `rewards`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
