"""Texts as tokens: the words of the training texts make a vocabulary, which numbers all texts."""

from __future__ import annotations

import collections
import dataclasses
import functools
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mhd_jax.core.errors import ConfigError
from mhd_jax.core.validation import is_integer
from mhd_jax.core.warned import warn

PADDING, UNKNOWN = 0, 1  # tokens of no word, and of any word that the vocabulary lacks
_RESERVED = ("<padding>", "<unknown>")
_MOST_WORDS = 10_000
_LONGEST = 256
# Scripts that are written without spaces: each character counts as a word.
_UNSPACED = ("CJK UNIFIED", "HIRAGANA", "KATAKANA")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The words that texts are written in, by number.

    Attributes:
      words: the word of each token in 0 … V − 1; token 0 fills texts up, and 1 stands for all words
        that are not among these.
      length: L, how many tokens a text has. Of longer texts the first L words are read.
    """

    words: tuple[str, ...]
    length: int

    def __call__(self, texts: Sequence[str] | np.ndarray) -> np.ndarray:
        """Returns the tokens of N texts, int32 [N, L]."""
        rows = np.full((len(texts), self.length), PADDING, np.int32)
        for row, text in zip(rows, texts, strict=True):
            found = [self._numbers.get(word, UNKNOWN) for word in words_of(text)[: self.length]]
            row[: len(found)] = found
        return rows

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def __repr__(self) -> str:
        return f"Vocabulary of {len(self.words):,} words, for texts of {self.length:,}"


def vocabulary_of(
    texts: Sequence[str] | np.ndarray, size: int | None = None, length: int | None = None
) -> Vocabulary:
    """Returns the vocabulary of training texts: their most frequent words, the first ones first.

    Args:
      texts: N texts.
      size: V, the most tokens there may be, two of which are no words; by default 10,000.
      length: L; by default the length of the longest text, and at most 256.

    Raises:
      ConfigError: a size or a length that is no count, or texts without a word.
    """
    for name, value, least in (("vocabulary_size", size, 3), ("text_length", length, 1)):
        if value is not None and (not is_integer(value) or value < least):
            raise ConfigError(
                f"{name} must be an integer and at least {least} for texts, not {value!r}."
            )
    each = [words_of(text) for text in texts]
    counts = collections.Counter(word for words in each for word in words)
    if not counts:
        raise ConfigError("the texts have no words; give another column as text.")
    most = (_MOST_WORDS if size is None else int(size)) - len(_RESERVED)
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
    if length is None:
        cut = sum(len(words) > _LONGEST for words in each)
        if cut:
            warn(
                f"{cut:,} of {len(each):,} training texts have more than {_LONGEST} words, of which the first "
                f"{_LONGEST} are read; give text_length to read more, or the same without this warning."
            )
        length = min(max(map(len, each)), _LONGEST)
    return Vocabulary((*_RESERVED, *by_frequency[:most]), int(length))


def words_of(text: str) -> list[str]:
    """Returns the words of a text, in small letters and without marks of punctuation."""
    return unicodedata.normalize("NFKC", text).casefold().translate(_LETTERS).split()


class _Letters(dict[int, str]):
    """What `str.translate` makes of each character, looked up once: letters, or a space."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character in "'’":  # don’t is one word
            letter = ""
        elif unicodedata.category(character)[0] not in "LMN":
            letter = " "
        elif unicodedata.name(character, "").startswith(_UNSPACED):
            letter = f" {character} "
        else:
            letter = character
        self[code] = letter
        return letter


_LETTERS = _Letters()


def texts_in(inputs: Any) -> list[str] | None:
    """Returns the texts that are given as a list or an array, and None for anything else.

    Raises:
      ConfigError: a single text.
    """
    if isinstance(inputs, str):
        raise ConfigError(f"give a list of texts, like [{inputs!r:.60}], instead of one text.")
    if isinstance(inputs, Mapping) or not isinstance(inputs, Iterable):
        return None
    if getattr(getattr(inputs, "dtype", None), "kind", "O") not in "OUT":  # an array of numbers
        return None
    listed = list(inputs)
    are_texts = bool(listed) and all(isinstance(text, str) for text in listed)
    return list(map(str, listed)) if are_texts else None
