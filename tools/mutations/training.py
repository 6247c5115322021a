"""Bugs in `training`."""

from mutations.mutation import Mutation

MUTATIONS: list[Mutation] = []
