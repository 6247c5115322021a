"""What RSO's losses aim at: every line holds, every wrong line is seen to fail, in worlds of another seed too."""

import pytest

from rlhf_lab.derivations import pair_losses

DERIVATIONS = [pair_losses.gamma_is_the_target, pair_losses.hinge_forgets_how_much]


@pytest.mark.parametrize("derivation", DERIVATIONS, ids=lambda d: d.key)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_line_holds_and_every_wrong_line_fails(derivation, seed):
    checked = derivation.check(worlds=60, seed=seed, strict=True)
    assert checked.ok


def test_the_file_holds_these_and_their_keys_are_new():
    from rlhf_lab.derivations import Derivation, library

    here = {d.key for d in vars(pair_losses).values() if isinstance(d, Derivation)}
    assert here == {d.key for d in DERIVATIONS}
    elsewhere = [key for key, d in library().items() if d not in DERIVATIONS]
    assert not here & set(elsewhere)
