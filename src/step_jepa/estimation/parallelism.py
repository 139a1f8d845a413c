"""What FSDP2, DeepSpeed and DDP keep on each of several devices.

Axes: n processes, one device each.
"""

from dataclasses import dataclass
from typing import Literal

from step_jepa.estimation.profile import Profile

ParallelismName = Literal["ddp", "fsdp2", "zero2", "zero3"]
BUCKET = 5 * 10**8  # numbers that DeepSpeed collects before it sends them: its default reduce_bucket_size


@dataclass(frozen=True)
class Parallelism:
    """Which parts are divided by n.

    parameters, others  the parameters; gradients and the optimiser's states
    masters             whether the optimiser has a float32 copy of the parameters that it trains
    """

    parameters: bool
    others: bool
    masters: bool


PARALLELISMS: dict[ParallelismName, Parallelism] = {
    "ddp": Parallelism(parameters=False, others=False, masters=False),
    "fsdp2": Parallelism(parameters=True, others=True, masters=False),
    "zero2": Parallelism(parameters=False, others=True, masters=True),
    "zero3": Parallelism(parameters=True, others=True, masters=True),
}


def parts(profile: Profile, name: ParallelismName, processes: int) -> dict[str, int]:
    """Bytes on each device at the moment when they are most together."""
    divided = PARALLELISMS[name]
    of_parameters = processes if divided.parameters else 1
    of_others = processes if divided.others else 1
    # FSDP2 keeps what it shards in float32; DeepSpeed the copy that its optimiser has.
    stored, stored_trained = (profile.wide, profile.wide_trained) if name == "fsdp2" else (1, 1)
    moment = max(profile.moments, key=lambda each: each.gradients * stored_trained / of_others + each.others)
    found = {
        "parameters": profile.parameters * stored / of_parameters,
        "predictor tokens and head": profile.predictors * stored / of_parameters,
        "gradients": moment.gradients * stored_trained / of_others,
        "optimiser": (profile.optimizer + divided.masters * profile.trained) * profile.wide_trained / of_others,
        "target encoder": profile.target_encoder / of_parameters,
        "activations": moment.others,
        "gathered to compute": _buffers(profile, name) if processes > 1 or divided.masters else 0,
    }
    return {part: round(size) for part, size in found.items()}


def _buffers(profile: Profile, name: ParallelismName) -> float:
    """What it gathers, and collects to be sent."""
    if name == "ddp":
        return profile.trained  # buckets of gradients, beside the gradients
    of_layers = profile.root + 2 * profile.layer  # one at work, the next one on its way
    sent = BUCKET * profile.itemsize
    if name == "zero2":
        return sent
    gradients = (profile.root + profile.layer) * profile.trained / profile.parameters
    return of_layers + (sent if name == "zero3" else gradients)
