"""Fewer characters for the same question: spaces that say nothing, and paragraphs that are in every mail.

Only in what users say: instructions of the application (system, developer), answers and results of tools stay as they
are. What may hang on its very bytes stays too: code (fenced, inline, indented), quotations, tables, and every line that
asks for something. No word is changed or moved; without `boilerplate` none is left out.
"""

from __future__ import annotations

import re

# Callers choose what is searched, and a search holds up the whole process: none of these may take more than time in
# proportion to the text, so repetitions that can meet the same characters are possessive (`++`).
_KEPT = re.compile(
    r"(?:^|(?<=\n))[ ]{0,3}(?P<fence>```+|~~~+).*?(?:\n[ ]{0,3}(?P=fence)[^\n]*|\Z)"  # a fence that never ends, too
    r"|(?<!`)(?P<ticks>`++)[^`]++(?P=ticks)"
    r"|<(?P<tag>pre|code|xml|script|style)\b.*?(?:</(?P=tag)>|\Z)"
    r'|"[^"]{0,4000}"|\u201c[^\u201c\u201d]{0,4000}\u201d|\u00ab[^\u00ab\u00bb]{0,4000}\u00bb|\u201e[^\u201c-\u201e]{0,4000}[\u201c\u201d]'
    r"|(?<!\w)'[^'\n]{1,400}'(?!\w)|\u2018[^\u2018\u2019\n]{1,400}\u2019(?!\w)|\u300c[^\u300c\u300d]{0,4000}\u300d",
    re.DOTALL | re.IGNORECASE,
)
_FORMED_LINE = re.compile(
    r"^(?: {4}|\t| {0,3}>)|\||[{};]\s*$|^\s*+[-+*#]{0,3}\s*+\w++\s*+[:=]\s*+\S|^\s*(?:[-*+]|\d+[.)])\s"
)
_ASKS = re.compile(
    r"[?\uff1f\u061f]|^\s*(?:please|kindly|do|don't|make|write|answer|reply|respond|return|use|give|list|explain|"
    r"describe|summari[sz]e|translate|rewrite|convert|extract|classify|compare|fix|find|show|tell|create|generate|keep|ignore|"
    r"remember|note|format|output|include|exclude|count|solve|check|review|implement|add|remove|replace)\b"
    r"|\b(?:must|should|shall|never|always|only|exactly|at most|at least|do not|instructions?)\b",
    re.IGNORECASE,
)
_SPACES = re.compile(r"(?<=\S)[ \u00a0]{2,}(?=\S)")
_BOILERPLATE = re.compile(
    r"^\s*(?:"
    r"sent from my \w++(?: \w++){0,2}|get outlook for (?:ios|android)"
    r"|(?:confidentiality notice|disclaimer|legal notice)\s*:.*"
    r"|(?:this|the) (?:e-?mail|message)(?: and any (?:attachments|files))?[^\n]{0,60}"
    r"(?:confidential|intended (?:solely|only) for|legally privileged).*"
    r"|if you (?:are not the intended recipient|have received this (?:e-?mail|message) in error).*"
    r"|(?:please )?consider the environment before printing.*"
    r"|(?:click here to )?unsubscribe(?: from this list| here)?\.?"
    r"|view this (?:e-?mail|message) in (?:your|a) browser\.?"
    r"|(?:we use cookies|this (?:web)?site uses cookies).*"
    r"|(?:\(c\)|\u00a9|copyright)\s*+(?:\(c\)|\u00a9)?\s*+\d{4}.*all rights reserved\.?"
    r")\s*$",
    re.IGNORECASE | re.DOTALL,
)
MAX_BOILERPLATE_CHARS = 2_000
MAX_CHARS = 400_000
"""Of one text; a longer one is left alone, since nobody waits for this."""


def without_spaces(text: str) -> str:
    """Runs of spaces within a line of prose become one, those at its end none, and blank lines one. `text.split()`
    stays the same, and so does every line that is kept."""
    if len(text) > MAX_CHARS:
        return text
    kept = [match.span() for match in _KEPT.finditer(text)]
    lines: list[str] = []
    at = blanks = span = 0
    for line in text.split("\n"):
        end = at + len(line)
        while span < len(kept) and kept[span][1] <= at:
            span += 1
        inside = span < len(kept) and kept[span][0] < max(end, at + 1)
        at = end + 1
        blanks = 0 if line.strip() or inside else blanks + 1
        if blanks < 2:
            lines.append(line if inside else _shorter(line))
    return "\n".join(lines)


def without_boilerplate(text: str) -> tuple[str, int]:
    """Without paragraphs that are nothing but a well-known phrase, and how many there were. A text that is nothing else
    stays."""
    if len(text) > MAX_CHARS:
        return text, 0
    kept = [match.span() for match in _KEPT.finditer(text)]
    pieces: list[str] = []
    at = removed = span = 0
    for piece in re.split(r"(\n(?:[ \t]*\n)+)", text):
        end = at + len(piece)
        while span < len(kept) and kept[span][1] <= at:
            span += 1
        inside = span < len(kept) and kept[span][0] < end
        if piece.strip() and not inside and len(piece) <= MAX_BOILERPLATE_CHARS and _BOILERPLATE.match(piece):
            removed += 1
            if pieces:
                pieces.pop()  # the blank line before it
        else:
            pieces.append(piece)
        at = end
    shorter = "".join(pieces)
    return (shorter, removed) if removed and shorter.strip() else (text, 0)


def _shorter(line: str) -> str:
    if _FORMED_LINE.search(line) or _ASKS.search(line):
        return line
    return _SPACES.sub(" ", line).rstrip(" \t\u00a0")
