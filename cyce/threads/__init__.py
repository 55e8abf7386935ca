"""How many threads a call gets: the budget, its account among all calls, Python workers around BLAS."""
