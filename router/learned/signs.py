"""What can be counted in a prompt: its structure, its numbers, its wording. The hand-made half of the learned features.

One pass of compiled patterns over at most `FOCUS_CHARS` characters; nothing here needs numpy or a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from router.features import read

Kind = Literal["choice", "problem", "open"]

_OPTION = re.compile(r"^[ \t]*\(?([A-J])[.):][ \t]*(.*)$", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_SENTENCE = re.compile(r"[.!?](?:\s|$)|[\u3002\uff01\uff1f]")
_ROMAN = re.compile(r"\b(?:I{1,3}|IV|V)\.[ \t]|\b(?:I{1,3}|IV) (?:and|only)\b")
_CAPITALISED = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+")
_YEAR = re.compile(r"\b1[0-9]{3}s?\b|\b20[0-2][0-9]\b")
_FORMULA = re.compile(r"[=+*/^<>\u2260\u2264\u2265\u2200-\u22ff]|\\[a-z]+")
_DIGIT, _UPPER = re.compile(r"[0-9]"), re.compile(r"[A-Z]")
_ALL_NONE = re.compile(r"\b(?:all|none|both|neither|two|some) of (?:the|these)\b|\bnone\b", re.IGNORECASE)
_UNIT = re.compile(
    r"(?<=\d) ?(?:%|percent|cm|mm|km|m|kg|g|mg|lbs?|pounds?|miles?|feet|inch(?:es)?|hours?|minutes?|seconds?|"
    r"days?|weeks?|"
    r"months?|years?|dollars?|cents?|liters?|gallons?|mol|K|J|N|V|Hz|\u00b0[CF]?)\b"
)

_IN_WORDS: dict[str, str] = {
    "negation": r"not|except|least|never|neither|nor|false|incorrect|cannot|\w+n['\u2019]t",
    "comparison": r"more|less|fewer|greater|larger|smaller|than|twice|thrice|double|triple|half",
    "rate": r"each|every|per|apiece",
    "fraction": r"(?:third|quarter|fifth|two-thirds|three-quarters|three-fourths)s?",
    "money": r"dollars?|cents?",
    "percent": r"percent|percentage",
    "remainder": r"remaining|left|rest|remainder|after|before|then|initially|originally|total|altogether",
    "spread": r"average|mean|median|ratio|proportion|probability|equally|evenly|discount|interest|profit|tax",
    "conditional": r"if|suppose|assume|unless|provided|when",
    "cause": r"because|therefore|thus|hence|since|causes?|effects?",
    "modal": r"would|should|could|might|may|must|likely|best|primarily|mainly",
    "definition": r"definition|term|means",
    "following": r"following|below|above",
    "statement": r"statements?",
    "scenario": r"scenarios?",
    "all_none": r"none|neither",
    "true_false": r"true|false|wrong|right|correct",
    "passage": r"passage|excerpt",
    "legal": r"plaintiff|defendant|court|statute|statutory|contract|liab\w+|negligen\w+|constitution\w*|jury|"
    r"sued?|deed|"
    r"easement|tort|crime|convicted|trial|testif\w+|admissib\w+|landlord|seller|buyer|owner",
    "clinical": r"patient|year-old|physician|symptoms?|diagnos\w+|blood|pain|therapy|treatment|examination",
    "moral": r"moral\w*|ethic\w*|virtue|duty|rights?|justice|argues?",
    "logic": r"argument|premises?|conclusion|valid|fallacy|proposition\w*|entails?|deduc\w+|infer\w*",
    "puzzle": r"riddle|puzzle|overt[ao]k\w*|brothers?|sisters?|taller|older|younger|faster|shorter|slower|"
    r"heavier|tallest|"
    r"oldest|youngest|behind|opposite",
    "proof": r"prove|proof|theorem|lemma|polynomials?|matrix|vectors?|integral|derivative|equations?|integers?|primes?|"
    r"divisible|modulo|irrational|converges?",
    "compute": r"calculate|compute|solve|evaluate|simplify|determine",
    "physics": r"velocity|force|mass|energy|voltage|current|resistance|pressure|temperature|frequency|wave\w*|"
    r"acceleration|"
    r"momentum|charge|electron\w*|magnetic|orbit\w*",
    "programming": r"python|java(?:script)?|sql|html|css|code|coding|function|program|script|algorithm|array|"
    r"string|regex|api|"
    r"compiler?|debug|bug|implement|rust|golang|typescript|bash",
    "creative": r"poem|story|stories|haiku|lyrics|song|novel|joke|slogan|essay|blog|e-?mail|letter|speech|"
    r"headlines?|compose|"
    r"draft|rewrite|rephrase|imagine|creative|vivid|persuasive|paragraphs?|limerick|dialogue|tagline",
    "persona": r"role-?play|pretend|embody|persona",
    "extraction": r"extract|json|csv|yaml|table|classify|categori[sz]e|label|identify|entity|entities",
    "explain": r"explain|describe|discuss|outline|overview|compare|contrast|analy[sz]e|why",
    "facts": r"who|when|where|capital|invented|discovered|born|founded|population|named",
    "listing": r"list|name|give|provide|suggest|recommend",
    "steps": r"steps?|step-by-step",
    "second_person": r"your?",
    "first_person": r"i|my|me|mine",
}
_IN_TEXT: dict[str, str] = {
    "comparison": r"times as\b",
    "fraction": r"\d/\d",
    "percent": r"%",
    "money": r"[$\u20ac\u00a3]",
    "conditional": r"given that",
    "cause": r"due to|leads? to|results? in",
    "definition": r"is called|known as|refers? to|defined as",
    "which_of": r"(?:which|what) of (?:the following|these)\b",
    "all_none": r"(?:all|both|two|some) of (?:the|these)\b",
    "blank": r"_{2,}|\.{4,}",
    "passage": r"according to the|the author|this question refers",
    "logic": r"truth table",
    "puzzle": r"who (?:is|lives|owns|was)\b|left of|right of|in front of|next to",
    "proof": r"\blet [a-z]\b|function f|\bgroup g|square root",
    "compute": r"find the|find [a-z]\b|how (?:many|much|old|long|far|fast|tall|heavy|big|high|deep|wide)\b|"
    r"what (?:is|was) the "
    r"(?:value|sum|area|probability|number|total|product|average|remainder|combined)",
    "programming": r"\bc\+\+|\bc#|linked list|binary tree|hash map",
    "persona": r"\bact as|\byou are (?:an?|the|now)\b|assume the (?:role|persona)|in the style of|as if you|"
    r"your (?:role|character)\b",
    "extraction": r"given the following|from the text|count how many|in the format|return (?:only|a list|your)\b",
    "explain": r"what are|how (?:do|does|did|can)\b",
    "quoted": r"[\"\u201c\u201d]",
}
_WORD_SENSES = {name: re.compile(pattern) for name, pattern in _IN_WORDS.items()}
_TEXT_SENSES = {name: re.compile(pattern) for name, pattern in _IN_TEXT.items()}
_SHOUTED = re.compile(r"\b(?:NOT|EXCEPT|LEAST|FALSE|INCORRECT)\b")
_SENSES = tuple(dict.fromkeys((*_IN_WORDS, *_IN_TEXT)))


@lru_cache(maxsize=50_000)
def _senses_of(word: str) -> tuple[str, ...]:
    """Which signs a case-folded word is one of. The cache makes a prompt's words cost a look-up each."""
    return tuple(name for name, pattern in _WORD_SENSES.items() if pattern.fullmatch(word))


def _counted(stem: str, words: Sequence[str]) -> dict[str, float]:
    counts = dict.fromkeys(_SENSES, 0.0)
    for word in words:
        for name in _senses_of(word):
            counts[name] += 1
    folded = stem.casefold()
    for name, pattern in _TEXT_SENSES.items():
        counts[name] += len(pattern.findall(folded))
    counts["shouted_negation"] = float(len(_SHOUTED.findall(stem)))
    return counts


_OPENERS = (
    "what", "which", "who", "when", "where", "why", "how", "if", "is", "are", "can", "the", "a", "an", "in", "find",
    "write", "explain", "describe", "this", "for",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """stem: the text without its lettered options; options: their texts; words: of the stem, case-folded, in order."""

    text: str
    stem: str
    options: tuple[str, ...]
    words: tuple[str, ...]
    numbers: tuple[float, ...]


def shape_of(text: str) -> Shape:
    found = list(_OPTION.finditer(text))
    # Lettered options run A, B, C...: a line "I. Introduction" or a lone "A: hello" is none.
    run = 0
    for match in found:
        if match[1] == "ABCDEFGHIJ"[run : run + 1]:
            run += 1
    options = tuple(match[2].strip() for match in found) if run >= 3 and run >= len(found) - 1 else ()
    stem = text[: found[0].start()] if options else text
    words = tuple(word.casefold() for word in _WORD.findall(stem))
    numbers = tuple(float(n.replace(",", "")) for n in _NUMBER.findall(stem)[:60] if len(n) < 16)
    return Shape(text, stem, options, words, numbers)


def kind_of(shape: Shape, found: Mapping[str, float]) -> Kind:
    """`choice` (lettered options), `problem` (a story with quantities that asks for a number) or `open`. `found` are
    its `signs`: the experts of the first two were trained on such prompts alone."""
    if shape.options:
        return "choice"
    quantities = len(shape.numbers) - found["years"] + found["spelt_numbers"] + found["fraction"]
    # Three quantities and a question are a sum too, however the question is put.
    asks = found["compute"] > 0 or (0 < found["questions"] <= 2 and quantities >= 3)
    plain = found["code"] < 0.6 and found["notation"] < 0.8 and found["persona"] == 0 and found["programming"] <= 1
    told = 16 <= len(shape.words) < 250 and found["proof"] == 0 and found["formulas"] <= 3
    return "problem" if asks and plain and told and quantities >= 2 else "open"


_SPELT = re.compile(
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|fifty|hundred|thousand|dozen|half|twice)\b",
    re.IGNORECASE,
)


def signs(shape: Shape) -> dict[str, float]:
    """By name; all finite."""
    text, stem, words = shape.text, shape.stem, shape.words
    count = max(1, len(words))
    turn = read(stem)
    lengths = [len(word) for word in words] or [0]
    sentences = max(1, len(_SENTENCE.findall(stem)))
    opener = words[0] if words else ""
    last = _WORD.findall(re.split(r"(?<=[.!?])\s+", stem.strip())[-1].casefold())
    values = {
        "chars_log": math.log1p(len(text)),
        "stem_chars_log": math.log1p(len(stem)),
        "words_log": math.log1p(len(words)),
        "sentences": float(sentences),
        "sentence_words": count / sentences,
        "word_length": sum(lengths) / len(lengths),
        "long_words": sum(length > 9 for length in lengths) / count,
        "longest_word": float(max(lengths)),
        "distinct_words": len(set(words)) / count,
        "lines": math.log1p(stem.count("\n")),
        "digits": len(_DIGIT.findall(stem)) / (len(stem) + 1),
        "upper": len(_UPPER.findall(stem)) / (len(stem) + 1),
        "names": len(_CAPITALISED.findall(stem)) / count,
        "commas": stem.count(",") / count,
        "questions": float(stem.count("?")),
        "ends_as_question": float(stem.rstrip().endswith("?")),
        "ends_open": float(stem.rstrip()[-1:] not in ".?!:"),
        "code": turn.code,
        "notation": turn.notation,
        "list_items": float(turn.steps),
        "formulas": float(len(_FORMULA.findall(stem))),
        "units": float(len(_UNIT.findall(stem))),
        "roman": float(len(_ROMAN.findall(text))),
        "years": float(len(_YEAR.findall(stem))),
        "spelt_numbers": float(len(_SPELT.findall(stem))),
        "last_words": float(len(last)),
        "not_ascii": 0.0 if text.isascii() else sum(ord(char) > 127 for char in text) / (len(text) + 1),
    }
    values |= _counted(stem, words)
    values |= _numbers(shape) | _options(shape)
    values |= {f"opens_{word}": float(opener == word) for word in _OPENERS}
    return values


def _numbers(shape: Shape) -> dict[str, float]:
    numbers = shape.numbers
    return {
        "numbers": float(len(numbers)),
        "distinct_numbers": float(len(set(numbers))),
        "number_density": len(numbers) / max(1, len(shape.words)),
        "largest": math.log1p(max(numbers, default=0.0)),
        "smallest": math.log1p(min(numbers, default=0.0)),
        "decimals": float(sum(number != int(number) for number in numbers)),
        "round": sum(number % 10 == 0 for number in numbers) / max(1, len(numbers)),
        "small_numbers": float(sum(number <= 12 for number in numbers)),
    }


def _options(shape: Shape) -> dict[str, float]:
    options = shape.options
    if not options:
        names = ("options", "option_chars", "option_spread", "option_numbers", "option_formulas", "option_overlap")
        more = (
            "option_in_stem",
            "longest_is_last",
            "option_share",
            "option_all_none",
            "option_distinct",
            "option_words",
        )
        return dict.fromkeys((*names, *more), 0.0)
    lengths = [len(option) for option in options]
    mean = sum(lengths) / len(lengths)
    bags = [{word.casefold() for word in _WORD.findall(option)} for option in options]
    shared = set.intersection(*bags) if all(bags) else set()
    union = set.union(*bags)
    stem = set(shape.words)
    return {
        "options": float(len(options)),
        "option_chars": math.log1p(mean),
        "option_spread": (max(lengths) - min(lengths)) / (mean + 1),
        "option_numbers": sum(bool(_NUMBER.search(option)) for option in options) / len(options),
        "option_formulas": sum(bool(_FORMULA.search(option)) for option in options) / len(options),
        "option_overlap": len(shared) / max(1, min(map(len, bags)) or 1),
        "option_in_stem": len(union & stem) / max(1, len(union)),
        "longest_is_last": float(lengths[-1] == max(lengths)),
        "option_share": sum(lengths) / (len(shape.text) + 1),
        "option_all_none": float(sum(bool(_ALL_NONE.search(option)) for option in options)),
        "option_distinct": float(len(union)),
        "option_words": sum(map(len, bags)) / len(bags),
    }
