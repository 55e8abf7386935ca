"""The cross-entropy of a linear layer's logits, and its gradients, without the logits as a whole.

`options` says how the work is cut, `arguments` checks a call, `chunks` does the work, and `evaluate` is the
one way in.
"""
