"""Files of logits, as others write them."""

import numpy as np


def write_llama_file(path, logits, tokens, n_context):
    """Write what llama.cpp's perplexity tool does by --kl-divergence-base; returns what it kept.

    logits: (n_chunks, n_context, n_vocabulary), of which the second half of each chunk is kept.
    """
    n_chunks, _, n_vocabulary = logits.shape
    first = n_context // 2
    kept = logits[:, first : n_context - 1].reshape(-1, n_vocabulary).astype(np.float32)
    highest = kept.max(axis=1, keepdims=True)
    lowest = np.maximum(kept.min(axis=1, keepdims=True), highest - 16)
    normalizer = np.log(np.exp(kept - highest, dtype=np.float64).sum(axis=1, keepdims=True)).astype(
        np.float32
    )
    scale = (highest - lowest) / np.float32(65535)
    quantised = np.rint(np.maximum(kept - lowest, 0) / scale).astype(np.uint16)
    rows = np.zeros((len(kept), 2 * ((n_vocabulary + 1) // 2) + 4), np.uint16)
    rows[:, :4] = np.hstack([scale, lowest - highest - normalizer]).astype(np.float32).view(np.uint16)
    rows[:, 4 : 4 + n_vocabulary] = quantised
    with path.open("wb") as file:
        file.write(b"_logits_")
        file.write(np.array([n_context, n_vocabulary, n_chunks], np.uint32).tobytes())
        file.write(tokens.astype(np.int32).tobytes())
        file.write(rows.tobytes())
    return scale * quantised + (lowest - highest - normalizer)
