"""Bugs in `algorithms`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
