"""What is asked about: subjects, actions with other wordings of the same, and what narrows a question."""

from __future__ import annotations


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def wordings(text: str) -> tuple[tuple[str, ...], ...]:
    """What means the same stands on one line."""
    return tuple(tuple(part.strip() for part in line.split("|")) for line in lines(text))


SUBJECTS: tuple[tuple[str, ...], ...] = wordings(
    """
    machine learning
    deep learning
    artificial intelligence | AI
    quantum computing
    computer programming | programming
    web development
    data science
    cloud computing
    blockchain technology | blockchain
    Python
    JavaScript
    digital marketing | online marketing
    social media
    search engine optimization | SEO
    affiliate marketing
    the stock market
    stock trading
    real estate investing | real estate investment
    life insurance
    health insurance
    a credit score
    a mortgage
    compound interest
    inflation
    global warming
    climate change
    air pollution
    water pollution
    solar energy | solar power
    nuclear energy | nuclear power
    wind energy | wind power
    electric cars | electric vehicles
    self-driving cars | autonomous cars
    photosynthesis
    gravity
    black holes
    dark matter
    the big bang theory
    the human brain
    evolution
    genetic engineering
    stem cells
    the immune system
    high blood pressure | hypertension
    diabetes
    asthma
    migraine headaches | migraines
    back pain
    hair loss
    dandruff
    acne
    insomnia
    social anxiety
    depression
    stress
    meditation
    yoga
    intermittent fasting
    a vegan diet
    green tea
    coffee
    chocolate
    red wine
    olive oil
    weight training
    marathon running
    swimming
    chess
    poker
    football
    cricket
    the guitar
    the piano
    classical music
    jazz
    photography
    video editing
    graphic design
    interior design
    creative writing
    public speaking
    time management
    project management
    leadership
    communication skills
    English grammar
    the French language | French
    Spanish
    Japanese
    ancient Rome
    the French Revolution
    the Cold War
    World War I | the First World War
    the Great Depression
    democracy
    capitalism
    communism
    the electoral college
    the United Nations | the UN
    the European Union | the EU
    the death penalty | capital punishment
    gun control
    immigration
    feminism
    globalization | globalisation
    the caste system
    arranged marriage
    home schooling
    online education | online learning
    mechanical engineering
    civil engineering
    computer science
    electrical engineering
    medical school
    law school
    an MBA
    a PhD
    the GRE
    software testing
    cyber security | cybersecurity
    ethical hacking
    Linux
    Windows 10
    the iPhone
    Android
    Instagram
    Facebook
    YouTube
    WhatsApp
    Netflix
    bitcoin
    dropshipping
    public transport
    space travel
    time travel
    lucid dreaming
    astrology
    Buddhism
    Hinduism
    karma
    love
    happiness
    friendship
    dogs
    cats
    houseplants
    gardening
    mosquitoes
    earthquakes
    hurricanes
    volcanoes
    rainbows
    """
)

NARROWS: tuple[tuple[str, ...], ...] = wordings(
    """
    in India | in India
    in the US | in the USA | in America
    in the UK
    in Germany
    in Canada
    in New York
    in a week | in one week | within a week
    in a month | in one month | within a month
    in 10 days
    at home
    at work
    at school
    at night
    in winter
    in summer
    for free | free of charge
    for beginners | as a beginner
    for kids | for children
    for women
    for men
    as a student | while I am a student
    as a teenager
    as a foreigner
    without money
    without a degree
    without exercise
    with no experience | without experience
    on a Mac
    on an iPhone
    on Android
    on Windows
    in Excel
    after college
    after marriage
    before an exam
    during pregnancy
    when you are old
    with a small budget | on a small budget
    with kids
    alone
    together
    faster | more quickly
    legally
    permanently
    naturally
    professionally
    online
    offline
    """
)

FILLERS: tuple[str, ...] = (
    "quickly",
    "easily",
    "effectively",
    "properly",
    "successfully",
    "in real life",
    "nowadays",
    "in general",
    "exactly",
    "really",
    "actually",
    "for myself",
    "by myself",
    "these days",
    "in detail",
    "if possible",
    "as soon as possible",
    "well",
)
"""What hardly changes a question: a pair that differs by one of them is taken as the same, or left out."""

ADJECTIVES: tuple[str, ...] = lines("""
    cheap
    expensive
    famous
    old
    new
    small
    large
    local
    foreign
    healthy
    simple
    advanced
    dangerous
    safe
    traditional
    modern
    young
    formal
    public
    private
    black
    red
    digital
    medical
    legal
    political
    funny
    sad
    short
    long
    detailed
    professional
    """)

NOUNS: tuple[str, ...] = lines("""
    phone
    laptop
    movie
    song
    book
    restaurant
    hotel
    city
    university
    language
    game
    website
    app
    camera
    bike
    car
    dog breed
    hobby
    diet
    exercise
    gift
    holiday
    beach
    museum
    recipe
    joke
    tattoo
    company
    bank
    smartphone
    airline
    course
    podcast
    series
    programming language
    search engine
    browser
    editor
    operating system
    country
    """)

PEOPLE: tuple[str, ...] = (
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Henry",
    "Ines",
    "Jonas",
    "Kate",
    "Liam",
    "Maria",
    "Noah",
    "Olga",
    "Peter",
)
THINGS: tuple[str, ...] = (
    "apples",
    "pencils",
    "books",
    "marbles",
    "stamps",
    "cookies",
    "tickets",
    "roses",
    "bottles",
    "cards",
    "eggs",
    "chairs",
)
