"""Evaluation of logits: in memory, from files larger than memory, in pieces, beside another model."""
