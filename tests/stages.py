"""Which cases run in the README's tests, and which in the integration stage of .ci/run only."""

import pytest


def one_in(every, cases):
    """Return parameters: one in `every` case for the README's tests, the others for the integration stage.

    cases: a list of what may be shown as it is, or a dictionary of these by their names.
    """
    named = cases.items() if isinstance(cases, dict) else ((str(case), case) for case in cases)
    return [
        pytest.param(case, id=name, marks=[pytest.mark.integration] if number % every else [])
        for number, (name, case) in enumerate(named)
    ]
