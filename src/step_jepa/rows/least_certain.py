"""Which pairs of an example are kept, by the entropy of the next token where their step ends."""

from collections import Counter
from collections.abc import Mapping, Sequence

# Of an example's index: of each step, the entropy in nats of the token after it; nan where none is looked at
StepEntropies = Mapping[int, Sequence[float]]


def least_certain(entropies: Sequence[float], rows: Sequence[int], count: int) -> list[int]:
    """Places of the `count` highest entropies of each row, in order; of equal ones the earlier."""
    highest_first = sorted(range(len(entropies)), key=lambda place: -entropies[place])
    taken: Counter[int] = Counter()
    kept = []
    for place in highest_first:
        taken[rows[place]] += 1
        if taken[rows[place]] <= count:
            kept.append(place)
    return sorted(kept)
