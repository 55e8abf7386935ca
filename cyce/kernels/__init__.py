"""The compiled code.

Start at the list of rooms in cross_entropy.pyx, or at docs/architecture.md; `dispatch` chooses a level.
"""
