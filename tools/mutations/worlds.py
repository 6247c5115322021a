"""Bugs in `worlds`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
