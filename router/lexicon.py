"""Word lists of the vetoes: closed classes and common opposites, written down by hand from general knowledge."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def forms(table: str) -> dict[str, str]:
    """`canonical other-form ...` per line -> each form to the canonical one."""
    return {form: line.split()[0] for line in table.strip().splitlines() for form in line.split()}


def _axes(table: str) -> dict[str, tuple[str, int]]:
    """`word ... / opposite ...` per line -> each word to its line's first word and its side."""
    sides: dict[str, tuple[str, int]] = {}
    for line in table.strip().splitlines():
        axis = line.split()[0]
        for side, words in enumerate(line.split("/")):
            sides.update({word: (axis, side) for word in words.split()})
    return sides


FUNCTION_WORDS: dict[str, frozenset[str]] = {
    "english": words(
        """
        a about an and any are as at be been being but by can could did do does doing done for from get got had
        has have having he her here hers him his how i i'd i'll i'm i've if in into is it it'd it'll its it's
        like may me might mine must my of on one ones onto or our ours out please shall she should so some
        such than that the their theirs them then there there's these they they're this those through to too
        upon us very was we were what what's whats when where where's which while who whom who's whose why will
        with would you you'd you'll you're you've your yours let's anyone someone somebody
        anybody something anything way ways
        """
    ),
    "german": words(
        """
        der die das den dem ein eine einen einer ist sind und oder nicht wie was warum wer ich du wir mit für
        auf von zu im kann man bitte
        """
    ),
    "french": words(
        """
        le la les un une des du de est sont et ou ne pas comment quoi pourquoi qui je tu nous vous avec pour sur
        dans peut quel quelle s'il
        """
    ),
    "spanish": words(
        """
        el la los las un una unos de del es son y o no cómo qué por quién yo tú con para en puede cuál cuáles
        está
        """
    ),
    "italian": words(
        """
        il lo la gli le un una di del è sono e o non come cosa perché chi io tu con per su nel può quale
        """
    ),
    "portuguese": words(
        """
        o a os as um uma de do da é são e ou não como que por quem eu você com para em no na pode qual
        """
    ),
    "dutch": words(
        """
        de het een is zijn en of niet hoe wat waarom wie ik jij wij met voor op van te in kan welke alstublieft
        """
    ),
}

LANGUAGE_NAMES = words(
    """
    english german french spanish italian portuguese dutch polish russian ukrainian turkish arabic hebrew
    hindi bengali urdu tamil telugu chinese mandarin cantonese japanese korean vietnamese thai indonesian
    swedish norwegian danish finnish greek czech hungarian romanian latin python java javascript typescript
    rust golang ruby php perl kotlin scala swift haskell fortran cobol matlab julia lua bash powershell sql
    html css json yaml xml csv toml latex markdown
    """
)

SCRIPTS: tuple[tuple[int, str], ...] = (
    (0x024F, "latin"), (0x02FF, "other"), (0x03FF, "greek"), (0x052F, "cyrillic"), (0x058F, "armenian"),
    (0x05FF, "hebrew"), (0x08FF, "arabic"), (0x097F, "devanagari"), (0x0DFF, "indic"), (0x0E7F, "thai"),
    (0x11FF, "hangul"), (0x1DFF, "other"), (0x1EFF, "latin"), (0x1FFF, "greek"), (0x303F, "other"), (0x30FF, "kana"),
    (0x9FFF, "han"), (0xABFF, "other"), (0xD7FF, "hangul"),
)  # fmt: skip
"""Last code point of a range and its script, in order (Unicode blocks, coarsely)."""

NUMBER_WORDS: dict[str, str] = forms(
    """
    2 two
    3 three
    4 four
    5 five
    6 six
    7 seven
    8 eight
    9 nine
    10 ten
    11 eleven
    12 twelve
    13 thirteen
    14 fourteen
    15 fifteen
    16 sixteen
    17 seventeen
    18 eighteen
    19 nineteen
    20 twenty
    30 thirty
    40 forty
    50 fifty
    60 sixty
    70 seventy
    80 eighty
    90 ninety
    zero
    hundred
    thousand
    million
    billion
    trillion
    dozen
    half
    quarter
    twice double
    thrice triple
    """
)
"""`one` is left out: it is more often a pronoun."""

UNITS = forms(
    """
    mm millimeter millimeters millimetre millimetres
    cm centimeter centimeters centimetre centimetres
    meter meters metre metres
    km kms kilometer kilometers kilometre kilometres
    mile miles
    inch inches
    foot feet ft
    yard yards
    mg milligram milligrams
    gram grams gramme grammes
    kg kgs kilo kilos kilogram kilograms
    ton tons tonne tonnes
    lb lbs
    ounce ounces oz
    ml milliliter milliliters millilitre millilitres
    liter liters litre litres
    gallon gallons
    cup cups
    teaspoon teaspoons tsp
    tablespoon tablespoons tbsp
    ms millisecond milliseconds
    sec secs
    minute minutes min mins
    hour hours hr hrs
    day days
    week weeks
    month months
    year years yr yrs
    decade decades
    century centuries
    celsius centigrade
    fahrenheit
    kelvin
    degree degrees °
    kb kilobyte kilobytes
    mb megabyte megabytes
    gb gigabyte gigabytes
    tb terabyte terabytes
    bit bits
    byte bytes
    hz hertz
    mhz megahertz
    ghz gigahertz
    watt watts
    kw kilowatt kilowatts
    kwh
    volt volts
    amp amps ampere amperes
    kph kmh
    mph
    calorie calories kcal
    joule joules
    acre acres
    hectare hectares
    usd dollar dollars $
    eur euro euros €
    gbp sterling £
    jpy yen ¥
    inr rupee rupees rs ₹
    cent cents
    percent percentage %
    """
)

DATES = forms(
    """
    january jan
    february feb
    march
    april apr
    june jun
    july jul
    august aug
    september sep sept
    october oct
    november nov
    december dec
    monday mondays
    tuesday tuesdays
    wednesday wednesdays
    thursday thursdays
    friday fridays
    saturday saturdays
    sunday sundays
    weekend weekends
    weekday weekdays
    morning mornings
    afternoon afternoons
    evening evenings
    midnight
    noon midday
    easter
    christmas xmas
    """
)

NEGATIONS = words(
    """
    not no never none nobody nothing nowhere neither nor cannot cant dont wont doesnt didnt isnt arent wasnt
    werent shouldnt couldnt wouldnt hasnt havent hadnt without except excluding unless unable impossible
    hardly barely lacking nicht kein keine keinen nie ohne pas jamais nunca nada ningún nessuno nenhum niet
    geen
    """
)

QUANTIFIERS = forms(
    """
    all every each everyone everybody everything always entire
    most mostly majority
    more greater
    less fewer
    few seldom rarely
    only solely exclusively
    both
    either
    several
    exactly precisely
    approximately roughly approx
    second 2nd
    third 3rd
    fourth 4th
    fifth 5th
    maximum max
    minimum min
    """
)

QUANTIFIER_PHRASES = (
    "at least",
    "at most",
    "more than",
    "less than",
    "up to",
    "no more than",
    "other than",
    "instead of",
)

OPPOSITES = _axes(
    """
    ascend ascending / descend descending
    increase rais rise grow gain boost / decrease reduce lower drop shrink fall declin
    before / after
    above over / below under beneath
    more / less fewer
    most / least
    maximum max maximize / minimum min minimize
    first / last
    best / worst
    good better / bad worse
    high higher highest / low lower lowest
    hot warm hotter / cold cool colder
    big bigger biggest large larger largest / small smaller smallest little
    long longer longest / short shorter shortest
    fast faster fastest quick / slow slower slowest
    old older oldest / new newer newest young younger youngest
    early earlier earliest / late later latest
    left / right
    up / down
    north northern / south southern
    east eastern / west western
    input / output
    inside indoor indoors / outside outdoor outdoors
    internal / external
    inbound incoming / outbound outgoing
    import imports / export exports
    open / close closed shut
    start begin / stop end finish quit
    enable enabled / disable disabled
    allow permit / deny forbid block ban
    include / exclude
    add insert append / remove delete
    buy purchase / sell
    send / receive
    push / pull
    encode / decode
    encrypt / decrypt
    compress / decompress
    upload / download
    install / uninstall
    win / lose
    pros pro advantage advantages benefit benefits / cons con disadvantage disadvantages drawback drawbacks risk risks
    strength strengths / weakness weaknesses
    cause causes / effect effects
    male man men boy boys father husband son brother / female woman women girl girls mother wife daughter sister
    king / queen
    parent parents / child children kid kids
    teacher teachers / student students pupil pupils
    employer employers boss / employee employees
    landlord / tenant
    doctor doctors / patient patients
    buyer customer / seller vendor
    public / private
    legal legally / illegal illegally
    true / false
    positive / negative
    easy easier easiest simple / hard harder hardest difficult
    rich wealthy / poor
    strong stronger / weak weaker
    safe / dangerous unsafe harmful
    love like / hate dislike
    life live alive / death die dead
    same similar similarity similarities / different difference differences
    accept / reject refuse
    agree / disagree
    pass / fail
    horizontal horizontally / vertical vertically
    row rows / column columns
    must shall / may
    prefix / suffix
    read / write
    local locally / remote remotely global globally
    absolute / relative
    synchronous sync / asynchronous async
    mutable / immutable
    uppercase / lowercase
    union / intersection
    singular / plural
    past / future
    credit / debit
    borrow / lend
    asset assets / liability liabilities
    revenue profit income / loss expense expenses
    gross / net
    cheap cheaper cheapest / expensive
    domestic / international foreign
    summer / winter
    day / night
    encourage / discourage
    arrive arrival / depart departure leave
    ancient / modern
    rural / urban
    succeed succeeded success / failed failure mistake
    formal / informal
    """
)
