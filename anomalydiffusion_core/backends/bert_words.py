"""Words to the ids of BERT's vocabulary, which latent diffusion's text-to-image model reads.

The vocabulary is a file of its own (``vocab.txt`` of bert-base-uncased, 30522 lines) that no checkpoint holds. Without
it the words that the method itself needs are known all the same: those of the usual templates, the placeholder and
the words that trainings start from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError

VOCABULARY = "vocab.txt"
VOCABULARY_WORDS = 30522
PADDING, UNKNOWN, START, END, MASK = 0, 100, 101, 102, 103
_SPECIAL = {"[PAD]": PADDING, "[UNK]": UNKNOWN, "[CLS]": START, "[SEP]": END, "[MASK]": MASK}
# Lines of bert-base-uncased, counted from 0.
_KNOWN = {
    "*": 1008, ",": 1010, "-": 1011, ".": 1012, "a": 1037, "the": 1996, "of": 1997, "and": 1998, "in": 1999,
    "on": 2006, "with": 2007, "an": 2019, "my": 2026, "one": 2028, "up": 2039, "part": 2112, "good": 2204,
    "small": 2235, "without": 2302, "black": 2304, "large": 2312, "white": 2317, "close": 2485, "dark": 2601,
    "low": 2659, "cut": 3013, "glass": 3221, "surface": 3302, "metal": 3384, "oil": 3514, "color": 3609,
    "normal": 3671, "broken": 3714, "image": 3746, "nice": 3835, "picture": 3861, "gray": 3897, "industrial": 3919,
    "damage": 4053, "missing": 4394, "bright": 4408, "clean": 4550, "cool": 4658, "object": 4874, "hole": 4920,
    "wood": 3536, "damaged": 5591, "resolution": 5813, "cable": 5830, "bottle": 5835, "leather": 5898,
    "rough": 5931, "plastic": 6081, "print": 6140, "bent": 6260, "photo": 6302, "fault": 6346, "dirty": 6530,
    "weird": 6881, "mask": 7308, "grid": 8370, "crack": 8579, "carpet": 10135, "screw": 11224, "thread": 11689,
    "scratch": 11969, "tile": 14090, "zip": 14101, "rendering": 14259, "texture": 14902, "depiction": 15921,
    "pill": 17357, "capsule": 18269, "rendition": 19187, "stain": 21101, "defect": 21262, "dent": 21418,
    "glue": 25238, "anomaly": 28685,
}  # fmt: skip


class BertWords:
    """A tokenizer of BERT's vocabulary: lower case, words cut into pieces, [CLS] and [SEP] around them."""

    bos_token_id, eos_token_id, pad_token_id = START, END, PADDING

    def __init__(self, vocabulary: Path | None = None, wanted: Path | None = None) -> None:
        """vocabulary: the file, None for the words that are known without; wanted: where it should lie, for messages.

        Raises InputError for a file that is not such a vocabulary.
        """
        try:
            from tokenizers import BertWordPieceTokenizer
        except ImportError as error:
            raise InputError(
                "text encoder: it needs the package tokenizers, which comes with transformers. Install it, for "
                "example by pip."
            ) from error

        self._whole, self._wanted = vocabulary is not None, wanted
        words: Mapping[str, int] = dict(_SPECIAL | _KNOWN)
        if vocabulary is not None:
            words = read_vocabulary(vocabulary)
        self._words = dict(words)
        self._tokenizer = BertWordPieceTokenizer(dict(words), lowercase=True)

    def __call__(self, text: str, truncation: bool = False) -> dict[str, list[int]]:
        """``input_ids`` with start and end. Raises InputError for a word that is unknown without the vocabulary."""
        found = self._tokenizer.encode(text)
        if not self._whole and UNKNOWN in found.ids:
            start, end = found.offsets[found.ids.index(UNKNOWN)]
            where = f" as {self._wanted}" if self._wanted else ""
            raise InputError(
                f"text: the word '{text[start:end]}' needs BERT's vocabulary, which is missing. Put the file "
                f"{VOCABULARY} of bert-base-uncased ({VOCABULARY_WORDS} lines){where}; without it only these words "
                f"are known: {', '.join(sorted(word for word in _KNOWN if word.isalpha()))}."
            )
        return {"input_ids": list(found.ids)}

    def get_vocab(self) -> dict[str, int]:
        """Words and their ids."""
        return dict(self._words)


def read_vocabulary(path: Path) -> dict[str, int]:
    """Words by line. Raises InputError, naming the line, for a file that is not bert-base-uncased's vocabulary."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"vocabulary: {path} cannot be read ({error}). Use another copy.") from error
    words = {line.strip("\r"): number for number, line in enumerate(lines) if line.strip("\r")}
    wrong = [word for word, number in (_SPECIAL | _KNOWN).items() if words.get(word) != number]
    if wrong:
        word = wrong[0]
        raise InputError(
            f"vocabulary: {path} has '{word}' in line {words.get(word)}, expected is {(_SPECIAL | _KNOWN)[word]} "
            "(counted from 0). Use the vocab.txt of bert-base-uncased."
        )
    return words


def find_vocabulary(folders: Sequence[Path]) -> Path | None:
    """The first ``vocab.txt`` in these folders."""
    return next((folder / VOCABULARY for folder in folders if (folder / VOCABULARY).is_file()), None)


def bert_words(folders: Sequence[Path]) -> BertWords:
    """The tokenizer with the vocabulary found in these folders, or with the words that are known without."""
    return BertWords(find_vocabulary(folders), folders[0] / VOCABULARY if folders else None)


def as_tokenizer(words: BertWords) -> Any:
    """Something that ComfyUI makes a tokenizer of: ``from_pretrained`` of any path gives ``words``."""

    class Made:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> BertWords:
            return words

    return Made
