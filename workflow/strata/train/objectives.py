"""What training minimises: the loss of the next token, and the loss of preferences (DPO).

Everything here returns sums, in float32: the loop divides once, by what the whole step holds, so that accumulation
and the number of ranks change nothing but rounding.
"""

from __future__ import annotations

import math
from typing import Any

from strata.train.batch import IGNORED

FIRST_LOSS = math.log(2)  # of DPO, before the policy has left its reference


def language_loss(logits: Any, labels: Any) -> Any:
    """The sum over targets of -log p in nats, a float32 scalar.

    Args:
        logits: (B, T, V). labels: (B, T), the token to predict at each position, or IGNORED.
    """
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def answer_logps(logits: Any, labels: Any) -> Any:
    """The log-probability of each row's targets, summed: (B,) in float32. Arguments as in `language_loss`."""
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return -losses.view(labels.shape).sum(-1)


def preference_loss(chosen: Any, rejected: Any, reference: Any, beta: float, smoothing: float) -> tuple[Any, Any]:
    """The sum over pairs of the DPO loss (Rafailov et al., arXiv 2305.18290, eq. 7), and each pair's margin (P,).

    The margin is beta * (log-ratio of the chosen answer - that of the rejected one), against the reference. With
    `smoothing` a pair counts as mislabelled with that probability (conservative DPO, Mitchell 2023).

    Args:
        chosen, rejected: (P,) log-probabilities under the policy. reference: (P, 2), those of the reference.
    """
    from torch.nn.functional import logsigmoid

    margins = beta * ((chosen - reference[:, 0]) - (rejected - reference[:, 1]))
    losses = -(1 - smoothing) * logsigmoid(margins) - smoothing * logsigmoid(-margins)
    return losses.sum(), margins.detach()
