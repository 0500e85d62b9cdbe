"""Which texts are the same, nearly the same, or hold a passage of another: by hashes, so that no text is kept.

Near-duplicates: bottom-k sketches (Broder 1997, "On the resemblance and containment of documents"): of a text's hashed
word 5-grams the 64 smallest. Two sketches estimate the Jaccard resemblance of the two sets of n-grams (exactly, where
both have at most 64). Texts are compared when they share one of their 4 smallest hashes: of two with a resemblance of
0.8 that misses about one pair in 600.

Passages: 13-grams of words, as in the decontamination of GPT-3 (Brown et al. 2020, appendix C).
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import groupby, pairwise

SHINGLE = 5  # words
SKETCH = 64  # hashes kept of each text, 4 bytes each
KEYS = 4  # of these, how many find candidates
RESEMBLANCE = 0.8
SIDE, SIDE_RESEMBLANCE = 32, 0.5  # the same of each answer of a pair by itself
MIN_SHINGLES = 10  # a shorter text is like too many others
NEIGHBOURS = 20  # compared with each, where many texts share a hash (boilerplate)

# Scripts without spaces: each letter is a word (as in rlaif.checks).
_UNSPACED = "\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")


def words(text: str) -> list[str]:
    """Runs of letters and digits, in small letters."""
    return _WORD.findall(text.lower())


def text_hash(*texts: str) -> int:
    """64 bits of the texts."""
    sha = blake2b(digest_size=8)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        sha.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(sha.digest(), "little")


def gram_hashes(tokens: Sequence[str], n: int, bits: int = 64) -> Iterator[int]:
    """The hash of each run of ``n`` words. Of hashes of the words, each made once: words repeat, runs do not."""
    each = [_word_hash(token) for token in tokens]
    mask = (1 << bits) - 1
    for run in zip(*(each[i:] for i in range(n)), strict=False):
        yield hash(run) & mask  # of integers: the same in every process


@lru_cache(maxsize=2**17)
def _word_hash(word: str) -> int:
    return text_hash(word)


def shingles(text: Sequence[str]) -> set[int]:
    """The hashes of a text's n-grams."""
    return set(gram_hashes(text, SHINGLE, bits=32))


Alike = Callable[[int, int], bool]


class Sketches:
    """The sketches of many texts; `groups` finds those that resemble one another. ``size``: hashes kept of each."""

    def __init__(self, size: int = SKETCH, resemblance: float = RESEMBLANCE) -> None:
        self._size, self._resemblance = size, resemblance
        self._hashes = array("I")
        self._ends = array("Q", [0])

    def add(self, text: Sequence[str]) -> None:
        """A document, as a list of words."""
        self.add_shingles(shingles(text))

    def add_shingles(self, found: Collection[int]) -> None:
        """A document, by the hashes of its n-grams."""
        if len(found) >= MIN_SHINGLES:
            self._hashes.extend(sorted(found)[: self._size])
        self._ends.append(len(self._hashes))

    def groups(self, use: Sequence[int], alike: Alike | None = None) -> list[list[int]]:
        """Of the documents ``use`` (by number), those that resemble one another, in groups of two and more.
        ``alike``: what else must hold of two of them."""
        # Key and document in one number: a dict of lists would take ten times the memory.
        holders = sorted(key << 32 | document for document in use for key in self._of(document)[:KEYS])
        parents = _Union()
        for _, together in groupby(holders, key=lambda holder: holder >> 32):
            # Sorted by content, so that which are compared does not depend on the order of the rows.
            documents = sorted((holder & 0xFFFFFFFF for holder in together), key=self._of)
            for i, one in enumerate(documents):
                for other in documents[i + 1 : i + 1 + NEIGHBOURS]:
                    if parents.root(one) != parents.root(other) and self._both(one, other, alike):
                        parents.join(one, other)
        return parents.groups()

    def repeats(self, use: Sequence[int], alike: Alike | None = None) -> dict[int, int]:
        """Of the documents ``use``, in this order, each that resembles one before it which itself repeats none: that
        one. Where many share a hash, it is compared with the last `NEIGHBOURS` of them."""
        holders = sorted(key << 32 | document for document in use for key in self._of(document)[:KEYS])
        shared = {h >> 32 for h, other in pairwise(holders) if h >> 32 == other >> 32}
        staying: dict[int, list[int]] = {key: [] for key in shared}
        found: dict[int, int] = {}
        for document in use:
            keys = [key for key in self._of(document)[:KEYS] if key in shared]
            candidates = sorted({other for key in keys for other in staying[key][-NEIGHBOURS:]})
            original = next((other for other in candidates if self._both(other, document, alike)), None)
            if original is not None:
                found[document] = original
                continue
            for key in keys:
                staying[key].append(document)
        return found

    def _of(self, document: int) -> "array[int]":
        return self._hashes[self._ends[document] : self._ends[document + 1]]

    def _both(self, one: int, other: int, alike: Alike | None) -> bool:
        return bool(self.alike(one, other)) and (alike is None or alike(one, other))

    def alike(self, one: int, other: int) -> bool | None:
        """Whether two documents resemble each other; None where one of them is too short to tell."""
        a, b = set(self._of(one)), set(self._of(other))
        if not a or not b:
            return None
        if len(a & b) < self._resemblance * max(len(a), len(b)):  # as many as can count, of as few as there can be
            return False
        smallest = sorted(a | b)[: self._size]
        return sum(h in a and h in b for h in smallest) >= self._resemblance * len(smallest)


class PairSketches:
    """The sketches of pairs. Two are nearly the same where both answers together are, and each by itself at least half:
    two pairs of a ranking may have a long answer in common, and are not."""

    def __init__(self) -> None:
        self._whole = Sketches()
        self._sides = Sketches(SIDE, SIDE_RESEMBLANCE), Sketches(SIDE, SIDE_RESEMBLANCE)
        self._texts = array("Q"), array("Q")

    def add(self, chosen: Sequence[str], rejected: Sequence[str]) -> None:
        """A pair, as two lists of words."""
        found = shingles(chosen), shingles(rejected)
        self._whole.add_shingles(found[0] | found[1])
        for side, texts, some, words_ in zip(self._sides, self._texts, found, (chosen, rejected), strict=True):
            side.add_shingles(some)
            texts.append(text_hash(" ".join(words_)))

    def groups(self, use: Sequence[int]) -> list[list[int]]:
        """As of `Sketches`."""
        return self._whole.groups(use, self._sides_alike)

    def repeats(self, use: Sequence[int]) -> dict[int, int]:
        """As of `Sketches`."""
        return self._whole.repeats(use, self._sides_alike)

    def _sides_alike(self, one: int, other: int) -> bool:
        for side, texts in zip(self._sides, self._texts, strict=True):
            alike = side.alike(one, other)
            if not (texts[one] == texts[other] if alike is None else alike):
                return False
        return True


class _Union:
    def __init__(self) -> None:
        self._parents: dict[int, int] = {}

    def root(self, item: int) -> int:
        while (parent := self._parents.get(item, item)) != item:
            self._parents[item] = self._parents.get(parent, parent)
            item = parent
        return item

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._parents[second] = first

    def groups(self) -> list[list[int]]:
        found: defaultdict[int, list[int]] = defaultdict(list)
        for item in self._parents:
            found[self.root(item)].append(item)
        return [sorted({root, *items}) for root, items in found.items()]


class Passages:
    """The n-grams of a benchmark's texts, to look for in others."""

    def __init__(self, texts: Iterable[str], n: int) -> None:
        self._n = n
        self._grams: set[int] = set()
        self.texts = self.short = 0
        for text in texts:
            tokens = words(text)
            self.texts += 1
            self.short += len(tokens) < n
            self._grams.update(gram_hashes(tokens, n))

    def found_in(self, tokens: Sequence[str]) -> bool:
        return bool(self._grams) and any(h in self._grams for h in gram_hashes(tokens, self._n))
