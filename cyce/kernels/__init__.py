"""The compiled code: see docs/architecture.md for the rooms, `dispatch` for the choice of a level."""
