"""Does a training loss say that something was learnt from the pictures? Pure: losses and truths in, a sentence out.

A model that knows the form of the answer and how frequent each class is pays the entropy of the labels and no more,
whatever the picture. Only a loss clearly below that has looked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

LEAST_GAIN = 0.15
"""Share of the labels' entropy, or of the first loss, that has to be gone."""
USUAL_RATE = 2e-4
"""Of LLaVA's own LoRA recipes; 2e-5 is their rate for full fine-tuning."""


def label_entropy(truths: Sequence[Mapping[str, str]]) -> float:
    """Entropy of the scored fields together, in nats per row."""
    counts = Counter(tuple(sorted(truth.items())) for truth in truths)
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


def nothing_learnt(
    first: float, last: float, answer_tokens: float, entropy: float | None, learning_rate: float
) -> str | None:
    """Why the adapter is probably useless, or None.

    `first` and `last` are mean losses in nats per answer token at the start and the end, `answer_tokens` the mean
    length of an answer, `entropy` that of the labels in nats per row, or None when answers hold more than labels.
    """
    advice = "add rows, raise fineTune.epochs, or look at data/report.html"
    if learning_rate < USUAL_RATE:
        advice = (
            f"raise fineTune.learningRate ({learning_rate:g}; LoRA is usually trained with {USUAL_RATE:g})"
        )
    if last > (1 - LEAST_GAIN) * first:
        return f"the training loss has hardly fallen, {first:.3f} to {last:.3f} nats a token: {advice}"
    if entropy is not None and entropy > 0 and last * answer_tokens > (1 - LEAST_GAIN) * entropy:
        return (
            f"the training loss, {last * answer_tokens:.2f} nats an answer, is hardly below the {entropy:.2f} of "
            f"guessing by frequency, so nothing was learnt from the pictures: {advice}"
        )
    return None
