"""Bugs in `experiments`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
