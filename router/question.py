"""What a text asks, apart from how it is put: the kind of question, and the words that remain.

"How do I", "What is the best way to" and "Is there a way to" open the same question; "Why" and "When" do not. English
only: the kind of any other text is None, and nothing is taken off it but greetings.
"""

from __future__ import annotations

import re
from functools import cache

_GREETING = (
    r"\s*(?:(?:hi|hello|hey|hiya|good (?:morning|afternoon|evening|day)|dear \w+)(?: there| all| everyone)?"
    r"\s*[,!.:\n][\s,!.:]*)"
)
_PLEASE = (
    r"\s*(?:(?:please|kindly|quick question|question|just curious|just wondering|so|well|okay|ok)\s*[,:]\s*)?"
    r"(?:(?:(?:can|could|would|will) (?:you|someone|anyone|anybody|somebody)(?: please| kindly)? |please |kindly )?"
    r"(?:(?:answer|answer this|help me understand|tell me|let me know|explain to me)[\s,:-]+)"
    r"|(?:please|kindly)[\s,:-]+"
    r"|i(?:'d| would) (?:like|love) to know[\s,:-]+|i (?:want|need|wish) to know[\s,:-]+"
    r"|i(?:'m| am| was) (?:wondering|curious)[\s,:-]+"
    r"|(?:does|do) (?:anyone|anybody|someone|you) know[\s,:-]+|any idea[\s,:-]+)?"
)
_THANKS = (
    r"[\s,:;-]*\b(?:(?:many )?thanks|thank you|thx|please|cheers|much appreciated)"
    r"(?: (?:in advance|a lot|so much|very much|for (?:your|any|the) help))*[\s.!]*$"
)

_WHO = r"(?:i|you|we|one|someone|somebody|anyone|a person|people|they)"
_WHAT = r"(?:what|which|whats|what's|what're|which one)(?: exactly)?(?: is| are| was| were| would be)?"
_GOOD = (
    r"(?:the|a|an|some|any|your|very|best|good|better|right|correct|proper|great|effective|top|possible|ideal|perfect"
    r"|most)"
)
_KINDS: dict[str, tuple[str, ...]] = {
    "how_long": (
        rf"how (?:long|much time)(?: does| do| will| would| did| should| can| is| has)?(?: it| {_WHO})?(?: "
        r"usually| typically)?(?: take[sn]?| need)?(?: to| for)?",
    ),
    "how_many": (
        r"how many",
        r"what(?:'s| is) the (?:total )?(?:number|count|amount) of",
    ),
    "how_much": (
        r"(?:about )?how much(?: money)?(?: does| do| will| would| did| is| are)?(?: it)?(?: cost)?(?: to)?",
        r"what(?:'s| is| are| was) the (?:cost|price|costs|prices) of",
    ),
    "how_other": (
        r"how (?!(?:do|does|did|can|could|should|would|to|is|are|was|were|has|have|will|might|exactly|come) )"
        r"\w+ (?:is|are|was|were|do|does|did|can|should|would|will)",
        r"how (?:often|far|old|soon)",
    ),
    "feel": (r"(?:what|how) (?:does|do|did|would|is|was) (?:it|that) (?:feel )?(?:like )?(?:to |being )",),
    "opinion": (
        rf"what (?:do|does|did|would) {_WHO} think (?:of|about|on)",
        rf"(?:{_WHAT} )?(?:your|people's|the) (?:thoughts?|opinions?|views?|reviews?|take)(?: on| about| of)",
        r"how do you feel about",
    ),
    "how": (
        rf"{_WHAT}(?: {_GOOD})* (?:way|ways|method|methods|technique|techniques|tips|steps|tricks)(?: (?:by "
        rf"which|in which|that|for)? ?{_WHO} can)? (?:to|of|for|on)",
        rf"what (?:can|should|could|must|do) {_WHO} do(?: to| in order to| so that {_WHO}| if {_WHO} want to)",
        rf"is there (?:any|a|some) (?:{_GOOD} )*(?:way|method|trick)(?: for me)?(?: to| of| that i can| i can)",
        r"what(?:'s| is) the (?:process|procedure) (?:of|to|for)",
        r"(?:please )?(?:show me|explain|teach me|tell me) how to",
        r"how (?:do|does|did|can|could|should|would|might|will|to|is|are|was|were|has|have)(?: "
        rf"{_WHO}(?![\w']))?(?: go about| best| properly| actually| really| possibly)*",
    ),
    "should": (
        rf"should {_WHO}",
        r"(?:is|would) it(?: be)?(?: a)? (?:good|wise|worth(?: "
        r"it)?|advisable|okay|ok|better|smart|right|recommended|bad)(?: idea)?(?: for me)?(?: to| if i)?",
        r"(?:do|would) you recommend",
    ),
    "must": (
        rf"(?:do|must|does) {_WHO} (?:really )?(?:have|need) to",
        rf"must {_WHO}",
        r"is it (?:really )?(?:necessary|required|mandatory|obligatory)(?: to)?",
    ),
    "can": (
        rf"(?:can|could|may) {_WHO}",
        r"is it (?:even )?possible(?: to| that| for me to)?",
        r"is there (?:any|a) (?:possibility|chance)(?: that| of| to)?",
        r"(?:am i|are you) able to",
    ),
    "why": (
        r"why",
        rf"(?:{_WHAT} )?(?:the )?(?:main )?(?:reasons?|causes?) (?:of|for|behind|why|that)",
        r"what (?:makes|causes|caused|made)",
        r"how come",
    ),
    "when": (
        r"when",
        r"(?:at |in |on |during )?(?:what|which) (?:time|year|date|day|month|century)",
        r"what(?:'s| is| was) the (?:date|year)(?: of)?",
    ),
    "where": (
        r"where",
        r"(?:in|at|from|to) (?:what|which) (?:place|city|country|state|location)",
        r"(?:what|which) (?:is|are|'s) the (?:location|place|places) (?:of|to|where)",
    ),
    "who": (
        r"who",
        r"whose",
        r"whom",
        r"which (?:person|man|woman|people)",
    ),
    "what": (rf"{_WHAT}",),
    "yes_no": (
        r"(?:is|are|am|was|were|do|does|did|has|have|had|can|could|should|must|may|will|would|might|shall|isn't|aren't|don't|doesn't|did"
        r"n't|won't)",
    ),
}
_FRONTED = r"((?:in|at|on|for|with|as|during|after|before|from|within|under|without|according to)\b[^,.?!;:\n]{1,60}), "
_KIND = "|".join(f"(?P<{name}>(?:{'|'.join(patterns)})(?![\\w']))" for name, patterns in _KINDS.items())

_FRAMES = (
    r"(?:which|what) (?P<noun>[\w -]{2,40}?) (?:is|are|was) the (?P<best>best|worst|most \w+|\w+est)(?P<rest>\b.*)"
)


_ALIASES = (
    ("Second World War", r"world war (?:ii|2|two)|ww ?ii|ww ?2|2nd world war"),
    ("First World War", r"world war (?:i|1|one)|ww ?i|ww ?1|1st world war"),
    ("United States", r"usa|u\.s\.a\.|u\.s\.|(?:the )?united states of america"),
    ("United Kingdom", r"uk|u\.k\."),
    ("artificial intelligence", r"ai|a\.i\."),
)
"""Names that are written in several ways: the one that is kept, and all of them."""

_ALIAS_HINTS = ("world", "ww", "usa", "u.s.", "united", "uk", "u.k.", "ai", "a.i.")
"""One of these is in a word of each of them."""

_NOT_POLITE = ("what ", "what's ", "how ", "why ", "when ", "where ", "who ", "which ", "is ", "are ", "should ", "in ")
"""Most questions begin so, and what is taken off does not."""

_THANKED = ("thank", "thx", "please", "cheers", "appreciated")

_TOUGH = (
    r"(?:is|are) (?!it |there )(?P<what>[^,.?!]{2,60}?) (?P<how>safe|easy|hard|difficult|possible"
    r"|legal|illegal|healthy|dangerous|ok|okay|bad|good|expensive|important|necessary)"
    r" to (?P<do>\w+)(?P<rest>[^,?.!]*[?.!]*)$"
)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """At the first use: together they take some 50 ms, which a process that only imports this need not spend."""
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


def _may_contain(text: str, hints: tuple[str, ...]) -> bool:
    """Saves most texts a search. Beyond ASCII there are letters that a pattern takes for others."""
    if not text.isascii():
        return True
    lowered = text.lower()
    for hint in hints:  # noqa: SIM110  (`any` takes twice as long)
        if hint in lowered:
            return True
    return False


def may_have_alias(piece: str) -> bool:
    """Whether what stands between two spaces may be a part of one of the names that are written in several ways."""
    return _may_contain(piece, _ALIAS_HINTS)


def one_wording(text: str, may_be_alias: bool = True) -> str:
    """`text`, already bare, with names in one form, and "are eggs safe to eat" as "is it safe to eat eggs"."""
    if may_be_alias:
        for name, forms in _ALIASES:
            text = _compiled(rf"\b(?:{forms})(?![\w-])").sub(name, text)
    turned = _compiled(_TOUGH).match(text)
    if turned and not re.search(r"\bto\b", turned["what"]):
        return f"is it {turned['how']} to {turned['do']} {turned['what']}{turned['rest']}"
    return text


def bare(text: str) -> str:
    """`text` without the greeting before it, the please around it and the thanks after it."""
    start = 0
    if not text[:9].lower().startswith(_NOT_POLITE):
        for pattern in (_GREETING, _PLEASE, _PLEASE):
            match = _compiled(pattern).match(text, start)
            start = match.end() if match else start
    end = _compiled(_THANKS).search(text, start) if _may_contain(text, _THANKED) else None
    stripped = text[start : end.start() if end and end.start() > start else len(text)].strip()
    return stripped or text.strip()


def asked(text: str) -> tuple[str | None, str]:
    """The kind of question that `text`, already bare, opens as, and what follows that opening."""
    text = " ".join(text.replace("\u2019", "'").split())
    turned = _compiled(_FRAMES).match(text)
    if turned:
        text = f"what is the {turned['best']} {turned['noun']}{turned['rest']}"
    match = _compiled(_KIND).match(text)
    if match is None:
        fronted = _compiled(_FRONTED).match(text)
        match = _compiled(_KIND).match(text, fronted.end()) if fronted else None
        if fronted is None or match is None:
            return None, text
        return match.lastgroup, f"{text[match.end() :].rstrip(' ?.!')} {fronted.group(1)}"
    return match.lastgroup, text[match.end() :]
