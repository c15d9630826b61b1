"""Words that ask for the same in most questions, written down by hand from general knowledge.

One group a line. They are evidence for the verifier, never proof: a veto is not lifted by them.
"""

from __future__ import annotations

from functools import lru_cache

from router.lexicon import forms

SYNONYMS: dict[str, str] = forms(
    """
    begin start commence
    buy purchase
    get obtain acquire receive gain
    make create build produce construct generate
    find locate discover
    fix repair solve resolve troubleshoot
    learn study
    improve better enhance increase boost develop
    reduce decrease lower lessen cut
    lose shed drop
    stop quit cease prevent avoid
    remove delete erase eliminate
    big large huge
    small little tiny
    fast quick rapid quickly rapidly
    easy simple easily
    hard difficult tough
    best top greatest finest
    good great nice decent
    bad terrible awful poor
    important significant essential crucial
    reason cause
    way method technique approach
    tip advice suggestion hint
    company firm business organization organisation
    job career work profession occupation
    salary pay wage
    cost price
    money cash
    kid child children kids
    movie film movies films
    picture photo image pictures photos images
    phone cellphone smartphone mobile
    car automobile vehicle
    doctor physician
    teacher instructor
    student pupil
    university college
    country nation
    city town
    house home
    fat weight
    ill sick unwell
    illness disease sickness
    happy glad joyful
    sad unhappy depressed
    scared afraid frightened fear
    angry mad furious
    smart intelligent clever
    rich wealthy
    famous popular
    beautiful pretty attractive
    strange weird odd unusual
    funny hilarious humorous
    real genuine legit legitimate actual true
    right correct proper
    wrong incorrect
    use utilize utilise employ
    help assist aid
    show display demonstrate
    tell inform
    explain describe
    choose select pick
    change modify alter
    send transfer
    recover retrieve restore regain
    forget forgot forgotten
    happen occur
    end finish complete
    need require
    want wish desire
    like enjoy
    hate dislike
    speak talk
    meet encounter
    join enter
    leave exit
    travel trip journey visit
    prepare get-ready
    convert turn
    download save
    join connect
    install set-up
    compare contrast
    difference distinction differ different
    similar alike
    meaning definition mean define
    purpose goal aim
    benefit advantage pro
    disadvantage drawback con
    effect impact consequence influence
    result outcome
    opinion view thought
    idea concept
    problem issue trouble
    mistake error
    skill ability
    rule regulation law
    book novel
    site website webpage
    app application
    programme program software
    computer pc laptop
    sleep rest
    eat consume
    drink beverage
    cook prepare
    girl woman lady
    boy man guy
    people person human someone folk
    husband spouse wife
    boyfriend partner girlfriend
    mother mom mum
    father dad
    symptom sign
    treat cure heal
    medicine drug medication
    pain ache
    test exam examination
    course class
    beginner newbie novice
    example instance
    kind type sort
    various different
    usually typically normally generally
    often frequently
    always constantly
    maybe perhaps possibly
    about regarding concerning
    reply respond answer
    delete deactivate
    raise increase
    vacation holiday
    hotel accommodation
    restaurant eatery diner
    biography
    revert undo reverse
    recent last latest
    total sum overall altogether combined
    each apiece per
    remain left
    """
)


_SUFFIXES = ("ments", "ment", "ings", "ing", "ies", "ied", "ers", "er", "est", "ed", "es", "ly", "s", "d", "e", "y")


@lru_cache(maxsize=32768)
def stem(word: str) -> str:
    """Crude on purpose: it need only bring the forms of one word together."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word[: -len(suffix)]
    return word


_BY_STEM = {stem(form): stem(word) for form, word in SYNONYMS.items()}


def same_word(stemmed: str) -> str:
    """The stem that stands for all of its group."""
    return _BY_STEM.get(stemmed, stemmed)
