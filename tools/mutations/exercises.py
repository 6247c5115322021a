"""Bugs in `exercises`."""

from mutations.mutation import Mutation, in_file

MUTATIONS: list[Mutation] = [
    *in_file(
        "exercises/checking.py",
        ["exercises/test_feedback.py", "exercises/test_exercises.py"],
        Mutation(
            "edge",
            "an answer with a relative error of 0.001 passes",
            "RELATIVE, ABSOLUTE = 1e-5, 1e-7",
            "RELATIVE, ABSOLUTE = 1e-2, 1e-2",
            near="exercises/test_exercises.py::test_each_classic_mistake_gets_its_own_message",
        ),
        Mutation(
            "data",
            "permuted entries have the same gradient",
            "weights = 1 + 0.1 * torch.arange(answer.numel(), dtype=answer.dtype).reshape(answer.shape)",
            "weights = torch.ones_like(answer)",
            near="exercises/test_feedback.py::test_entries_that_trade_places_have_another_gradient",
        ),
        Mutation(
            "edge",
            "a mistake is recognised by its first case alone",
            "    for case, answer in zip(exercise.cases, answers, strict=True):\n        try:",
            "    for case, answer in list(zip(exercise.cases, answers, strict=True))[:1]:\n        try:",
            near="exercises/test_exercises.py::test_each_classic_mistake_gets_its_own_message",
        ),
        Mutation(
            "data",
            "only the first case is judged",
            "    for case, answer in zip(exercise.cases, answers, strict=True):\n        text, by_value",
            "    for case, answer in list(zip(exercise.cases, answers, strict=True))[:1]:\n        text, by_value",
            near="exercises/test_feedback.py::test_the_input_that_is_named_is_the_first_one_that_fails",
        ),
        Mutation(
            "edge",
            "a correct answer of another shape passes",
            "    if numbers.shape != want.shape:\n",
            "    if numbers.numel() != want.numel():\n",
            near="exercises/test_feedback.py::test_every_broken_answer_gets_a_sentence_and_no_traceback",
        ),
        Mutation(
            "edge",
            "a gradient is not compared",
            'for name in exercise.differentiate if exercise.compare != "value" else ():',
            'for name in exercise.differentiate if exercise.compare == "value" else ():',
            near="exercises/test_feedback.py::test_gradients_are_compared_where_the_exercise_is_about_them",
        ),
    ),
    *in_file(
        "exercises/nb01_rlhf_review.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "swap",
            "solution: the larger surrogate is taken",
            "return torch.minimum(ratio * advantage, held * advantage)",
            "return torch.maximum(ratio * advantage, held * advantage)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb02_kl.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "sign",
            "solution: k3 with k's sign flipped",
            "return torch.exp(-k) - 1 + k",
            "return torch.exp(k) - 1 - k",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb03_optimal_policy.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "beta",
            "solution: the soft value without β in front",
            "return beta * torch.logsumexp(log_ref + (reward + next_value) / beta, -1)",
            "return torch.logsumexp(log_ref + (reward + next_value) / beta, -1)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
        Mutation(
            "swap",
            "solution: the regret is KL(π*‖π)",
            "return beta * (log_policy.exp() * (log_policy - log_star)).sum(-1)",
            "return beta * (log_star.exp() * (log_star - log_policy)).sum(-1)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb04_partition_function.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "norm",
            "solution: log Z of a sum, not of a mean",
            "return torch.logsumexp(reward / beta, -1) - math.log(reward.shape[-1])",
            "return torch.logsumexp(reward / beta, -1)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb05_dpo.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "norm",
            "solution: the robust loss without 1 − 2ε",
            "- epsilon * flipped) / (1 - 2 * epsilon)",
            "- epsilon * flipped)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
        Mutation(
            "mean",
            "solution: IPO's margin twice too large",
            "return (p - 0.5) / tau",
            "return (2 * p - 1) / tau",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb06_dpo_gradient.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "mask",
            "solution: padding counts",
            "return torch.where(mask, token_log_probs, 0.0).sum(-1)",
            "return token_log_probs.sum(-1)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb07_rejection_sampling.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "beta",
            "solution: acceptance without β",
            "return torch.exp((reward - reward.amax(-1, keepdim=True)) / beta)",
            "return torch.exp(reward - reward.amax(-1, keepdim=True))",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb08_rso.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "beta",
            "solution: the fit at γ is at β",
            "return torch.log_softmax(log_sft + reward / gamma, -1)",
            "return torch.log_softmax(log_sft + reward / beta, -1)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb09_rest.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "mean",
            "solution: best of n with one draw less",
            "return upto**n - (upto - p_ref) ** n",
            "return upto**n - (upto - p_ref) ** (n - 1)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb10_compared.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "sign",
            "solution: the point adds its KL",
            "return beta * log_z - (reward - beta * kl)",
            "return beta * log_z - (reward + beta * kl)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb11_language_models.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "data",
            "solution: the error over responses, not prompts",
            "return means.std() / len(means) ** 0.5",
            "return scores.std() / scores.numel() ** 0.5",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb13_non_static_environment.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "mean",
            "solution: the drift of all rounds, not of a round",
            "drift * sum(age**2 for age in ages) / every",
            "drift * sum(age**2 for age in ages)",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
    *in_file(
        "exercises/nb14_annotation_budget.py",
        ["exercises/test_solutions_in_notebooks.py", "exercises/test_exercises.py"],
        Mutation(
            "mean",
            "solution: the regret of both without ½",
            "return torch.trace(matters @ torch.linalg.pinv(known)) / (2 * beta)",
            "return torch.trace(matters @ torch.linalg.pinv(known)) / beta",
            near="exercises/test_solutions_in_notebooks.py::test_the_notebook_s_solution_passes_as_an_answer",
        ),
    ),
]
