"""Conversations whose every turn sends the whole history again, as chat front ends do. Pure.

The same shape gives the same lengths whatever the salt, and another salt gives other text: runs can be compared, and
none finds the prompts of another run in a cache.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_SOUNDS = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the conversations look like. Lengths are characters, lognormal around their means with `sigma`; the tiny
    model counts one token for each character, usual ones about four characters for a token.

    `users` talk at the same time, each a conversation after the other, and think `think_s` seconds in the mean
    (exponential) between turns. `answer_tokens` is the length of every answer.
    """

    conversations: int = 30
    users: int = 6
    turns: int = 3
    first_chars: int = 1200
    user_chars: int = 300
    answer_tokens: int = 24
    sigma: float = 0.4
    think_s: float = 0.3
    seed: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What the user says, turn by turn, and how long he thinks before each but the first."""

    messages: tuple[str, ...]
    think_s: tuple[float, ...]


def conversations(shape: Shape, salt: str) -> list[Conversation]:
    """The conversations of a run."""
    lengths = random.Random(shape.seed)
    return [
        _conversation(shape, lengths, random.Random(f"{shape.seed}/{salt}/{i}")) for i in range(shape.conversations)
    ]


def _conversation(shape: Shape, lengths: random.Random, words: random.Random) -> Conversation:
    means = [shape.first_chars, *([shape.user_chars] * (shape.turns - 1))]
    return Conversation(
        messages=tuple(_text(words, _around(lengths, mean, shape.sigma)) for mean in means),
        think_s=tuple(lengths.expovariate(1 / shape.think_s) if shape.think_s else 0.0 for _ in means),
    )


def _around(rng: random.Random, mean: float, sigma: float) -> int:
    """A lognormal length with this mean, kept within a factor of 3 so that prompts fit the model's context."""
    drawn = mean * math.exp(rng.gauss(-(sigma**2) / 2, sigma))
    return int(min(3 * mean, max(mean / 3, drawn)))


def _text(rng: random.Random, chars: int) -> str:
    words: list[str] = []
    size = 0
    while size <= chars:
        words.append("".join(rng.choices(_SOUNDS, k=rng.randint(1, 4))))
        size += len(words[-1]) + 1
    return " ".join(words)[:chars]
