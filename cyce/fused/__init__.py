"""Loss and gradient in one pass: what the functions and `value_and_grad` call.

Each function is named as the public function that it computes, so that Python's messages about missing
and unknown arguments name that.
"""
