"""What the demo models know: small tables, written for them."""

from __future__ import annotations


def _pairs(text: str) -> dict[str, str]:
    """`key: value` separated by `;` or line ends."""
    entries = [entry.strip() for entry in text.replace("\n", ";").split(";") if entry.strip()]
    table = dict(_pair(entry) for entry in entries)
    if len(table) != len(entries):
        raise ValueError("a key stands twice in a table")
    return table


def _pair(entry: str) -> tuple[str, str]:
    key, _, value = entry.partition(":")
    return key.strip(), value.strip()


CAPITALS = _pairs("""
France: Paris; Germany: Berlin; Italy: Rome; Spain: Madrid; Portugal: Lisbon; Austria: Vienna; Belgium: Brussels
Poland: Warsaw; Greece: Athens; Ireland: Dublin; Norway: Oslo; Sweden: Stockholm; Finland: Helsinki
Denmark: Copenhagen; Hungary: Budapest; Romania: Bucharest; Bulgaria: Sofia; Croatia: Zagreb; Ukraine: Kyiv
Iceland: Reykjavik; Turkey: Ankara; Russia: Moscow; Egypt: Cairo; Kenya: Nairobi; Nigeria: Abuja; Ghana: Accra
Morocco: Rabat; Ethiopia: Addis Ababa; India: New Delhi; China: Beijing; Japan: Tokyo; Thailand: Bangkok
Vietnam: Hanoi; Indonesia: Jakarta; Nepal: Kathmandu; Iran: Tehran; Iraq: Baghdad; Canada: Ottawa; Cuba: Havana
Mexico: Mexico City; Brazil: Brasilia; Argentina: Buenos Aires; Chile: Santiago; Peru: Lima; Colombia: Bogota
Ecuador: Quito; Uruguay: Montevideo; Venezuela: Caracas; Australia: Canberra; New Zealand: Wellington
""")

CONTINENTS = _pairs("""
France: Europe; Germany: Europe; Italy: Europe; Spain: Europe; Poland: Europe; Greece: Europe; Norway: Europe
Egypt: Africa; Kenya: Africa; Nigeria: Africa; Ghana: Africa; Morocco: Africa; Ethiopia: Africa; India: Asia
China: Asia; Japan: Asia; Thailand: Asia; Vietnam: Asia; Nepal: Asia; Iran: Asia; Canada: North America
Mexico: North America; Cuba: North America; Brazil: South America; Argentina: South America; Chile: South America
Peru: South America; Colombia: South America
""")

ELEMENT_SYMBOLS = _pairs("""
hydrogen: H; helium: He; lithium: Li; carbon: C; nitrogen: N; oxygen: O; fluorine: F; neon: Ne; sodium: Na
magnesium: Mg; aluminium: Al; silicon: Si; phosphorus: P; sulfur: S; chlorine: Cl; argon: Ar; potassium: K
calcium: Ca; titanium: Ti; iron: Fe; nickel: Ni; copper: Cu; zinc: Zn; silver: Ag; tin: Sn; iodine: I; gold: Au
mercury: Hg; lead: Pb; uranium: U
""")

ELEMENT_NUMBERS = _pairs("""
hydrogen: 1; helium: 2; lithium: 3; carbon: 6; nitrogen: 7; oxygen: 8; fluorine: 9; neon: 10; sodium: 11
magnesium: 12; aluminium: 13; silicon: 14; phosphorus: 15; sulfur: 16; chlorine: 17; argon: 18; potassium: 19
calcium: 20; titanium: 22; iron: 26; nickel: 28; copper: 29; zinc: 30; silver: 47; tin: 50; iodine: 53; gold: 79
mercury: 80; lead: 82; uranium: 92
""")

PLANET_PLACES = _pairs("""
Mercury: first; Venus: second; Earth: third; Mars: fourth; Jupiter: fifth; Saturn: sixth; Uranus: seventh
Neptune: eighth
""")

HTTP_CODES = _pairs("""
200: OK; 201: Created; 202: Accepted; 204: No Content; 301: Moved Permanently; 302: Found; 304: Not Modified
400: Bad Request; 401: Unauthorized; 402: Payment Required; 403: Forbidden; 404: Not Found; 405: Method Not Allowed
408: Request Timeout; 409: Conflict; 410: Gone; 413: Content Too Large; 422: Unprocessable Content
429: Too Many Requests; 500: Internal Server Error; 501: Not Implemented; 502: Bad Gateway
503: Service Unavailable; 504: Gateway Timeout
""")

# (how many of the second make one of the first): "How many minutes are in an hour?"
UNITS = {
    ("seconds", "a minute"): 60,
    ("minutes", "an hour"): 60,
    ("hours", "a day"): 24,
    ("days", "a week"): 7,
    ("months", "a year"): 12,
    ("weeks", "a year"): 52,
    ("years", "a decade"): 10,
    ("years", "a century"): 100,
    ("millimetres", "a centimetre"): 10,
    ("centimetres", "a metre"): 100,
    ("metres", "a kilometre"): 1000,
    ("grams", "a kilogram"): 1000,
    ("kilograms", "a tonne"): 1000,
    ("millilitres", "a litre"): 1000,
    ("inches", "a foot"): 12,
    ("feet", "a yard"): 3,
    ("ounces", "a pound"): 16,
    ("bits", "a byte"): 8,
    ("degrees", "a circle"): 360,
    ("degrees", "a right angle"): 90,
    ("sides", "a triangle"): 3,
    ("sides", "a square"): 4,
    ("sides", "a hexagon"): 6,
    ("items", "a dozen"): 12,
    ("legs", "a spider"): 8,
    ("legs", "an insect"): 6,
}

OPPOSITES = _pairs("""
hot: cold; big: small; fast: slow; up: down; left: right; day: night; old: new; open: closed; happy: sad
high: low; long: short; early: late; hard: soft; light: dark; rich: poor; strong: weak; full: empty; wet: dry
clean: dirty; first: last; good: bad; true: false; near: far; loud: quiet; thick: thin; wide: narrow; push: pull
buy: sell; win: lose; start: stop; inside: outside; above: below; always: never; more: less
""")

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

ANIMALS = _pairs("""
dog: puppy; cat: kitten; cow: calf; horse: foal; sheep: lamb; pig: piglet; goose: gosling; duck: duckling
bear: cub; deer: fawn; goat: kid; frog: tadpole; swan: cygnet; hen: chick
""")

TERMS = _pairs("""
TTFT: the time until the first token of an answer
TPOT: the time per output token after the first one
KV cache: the stored keys and values of tokens already read
prefill: the phase in which a model reads the prompt
decode: the phase in which a model writes the answer token by token
token: a piece of text that a model reads or writes at once
tokenizer: the part that cuts text into tokens
context window: the most tokens that a model can look at
temperature: a setting for how random the sampling is
greedy decoding: always taking the most likely token
vLLM: an engine that serves language models fast
PagedAttention: keeping the KV cache in blocks like pages of memory
continuous batching: letting requests join and leave a running batch
quantization: storing weights with fewer bits
LoRA: a small set of extra weights that adapts a model
Ray: a framework that runs Python on many machines
Ray Serve: the part of Ray that serves models and applications
Ray actor: a Python object that lives in its own process
Ray task: a function that runs on a worker
replica: one running copy of a deployment
deployment: a class that Ray Serve runs in one or more replicas
autoscaling: adding and removing replicas as the load changes
backpressure: refusing new work while too much is waiting
latency: the time that one request takes
throughput: the amount of work done per second
goodput: the work per second that meets its latency target
cache hit: a request that is answered from the cache
semantic cache: a cache that finds questions with the same meaning
embedding: a list of numbers that stands for a meaning
router: the part that chooses a model for each request
cascade: asking a small model first and a larger one when needed
receipt: the record of what a request did and what it cost
circuit breaker: a switch that stops calls to a failing backend
retry: sending a failed request once more
rate limit: the most requests allowed in a time
""")

BUILT_INS = _pairs("""
len: the number of items; max: the largest item; min: the smallest item; sum: the total of the items
sorted: a new sorted list; abs: the absolute value; round: the rounded number; int: a whole number
float: a floating point number; str: a text; list: a list; dict: a dictionary; set: a set of unique items
tuple: a tuple; bool: True or False; type: the class of an object; range: a sequence of numbers
enumerate: pairs of index and item; zip: items of several lists in pairs; print: None; input: a line typed by the user
open: a file object; any: True if one item is true; all: True if every item is true; chr: the character of a code
ord: the code of a character; reversed: the items from last to first; isinstance: whether an object has a class
hash: the hash of an object; id: the identity of an object
""")

LISTS = {
    "primary colours": (3, "red, yellow, blue"),
    "seasons": (4, "spring, summer, autumn, winter"),
    "compass directions": (4, "north, east, south, west"),
    "vowels": (5, "a, e, i, o, u"),
    "days of the weekend": (2, "Saturday, Sunday"),
    "inner planets": (4, "Mercury, Venus, Earth, Mars"),
    "outer planets": (4, "Jupiter, Saturn, Uranus, Neptune"),
    "states of matter": (3, "solid, liquid, gas"),
    "human senses": (5, "sight, hearing, touch, smell, taste"),
    "largest oceans": (3, "Pacific, Atlantic, Indian"),
    "first prime numbers": (5, "2, 3, 5, 7, 11"),
    "first even numbers": (4, "2, 4, 6, 8"),
    "first square numbers": (4, "1, 4, 9, 16"),
    "noble gases": (3, "helium, neon, argon"),
    "common HTTP methods": (4, "GET, POST, PUT, DELETE"),
    "Python collection types": (4, "list, tuple, set, dict"),
    "tiers of Switchyard": (3, "small, medium, large"),
    "phases of inference": (2, "prefill, decode"),
    "card suits": (4, "hearts, diamonds, clubs, spades"),
    "months of winter": (3, "December, January, February"),
}

# Plain things that somebody may have bought or lost.
_THINGS = """
apple bread chair door engine flower garden house island jacket kettle lamp mirror needle orange pencil queen river
stone table umbrella violin window yellow zebra anchor bridge candle dragon eagle forest guitar hammer ink jungle key
lemon mountain night ocean paper quilt rocket signal train under valley wagon yard zero
"""
WORDS = tuple(_THINGS.split())
