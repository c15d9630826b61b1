"""Ways to ask: by intent, the wordings that all ask the same. `{t}` is a subject, `{v}` something that one does, `{n}`
a kind of thing, `{a}` and `{b}` two subjects.

Two wordings of one intent are the same question; two intents about one subject are two questions.
"""

from __future__ import annotations


def _intents(table: str) -> dict[str, tuple[str, ...]]:
    """`intent: wording | wording ...`, each beginning at the table's own indent, gone on with at a deeper one."""
    joined = table.strip().replace("\n        ", " ").splitlines()
    named = (line.strip().split(": ", 1) for line in joined)
    return {name: tuple(wording.strip() for wording in wordings.split(" | ")) for name, wordings in named}


SUBJECT_INTENTS = _intents(
    """
    define: What is {t}? | What's {t}? | Define {t}. | What exactly is {t}? | What is meant by {t}? | What does {t}
        mean? | What is the meaning of {t}? | What is the definition of {t}?
    work: How does {t} work? | How exactly does {t} work? | Can you explain how {t} works? | Explain how {t} works.
        | In what way does {t} work?
    why: Why is {t} important? | Why does {t} matter? | What makes {t} important? | What is the importance of {t}?
    history: What is the history of {t}? | How did {t} begin? | What are the origins of {t}? | Where does {t} come
        from? | How did {t} start?
    who: Who invented {t}? | Who came up with {t}? | Who is the inventor of {t}? | Who was it that invented {t}?
    when: When was {t} invented? | In what year was {t} invented? | What year was {t} invented?
    learn: How do I learn {t}? | How can I learn {t}? | What is the best way to learn {t}? | How should I learn {t}?
        | How can one learn {t}? | What are some good ways to learn {t}? | How do you learn {t}? | Is there a good
        way to learn {t}?
    start: How do I get started with {t}? | How can I get started with {t}? | How should I start with {t}? | What is
        the best way to start with {t}? | How do you start with {t}?
    book: What is the best book on {t}? | Which is the best book on {t}? | What are the best books on {t}? | What
        are some good books on {t}? | Which books on {t} are the best? | What book on {t} would you recommend? |
        Which book should I read on {t}?
    course: What is the best course on {t}? | Which is the best course on {t}? | What are some good courses on {t}?
        | Which course on {t} is the best?
    site: What are the best websites for {t}? | Which is the best website for {t}? | What are some good websites for
        {t}?
    pros: What are the pros and cons of {t}? | What are the advantages and disadvantages of {t}? | What are the
        benefits and drawbacks of {t}?
    benefits: What are the benefits of {t}? | What are the advantages of {t}? | What are some benefits of {t}? |
        What benefits does {t} have? | What is good about {t}?
    risks: What are the risks of {t}? | What are the disadvantages of {t}? | What are the dangers of {t}?
    effects: What are the effects of {t}? | What effects does {t} have? | What effect does {t} have? | What are the
        consequences of {t}?
    causes: What causes {t}? | What are the causes of {t}? | What is the cause of {t}? | What are the reasons for
        {t}?
    opinion: What do you think about {t}? | What do you think of {t}? | What are your thoughts on {t}? | What is
        your opinion on {t}? | What is your opinion about {t}? | What's your view on {t}? | How do you feel about
        {t}?
    future: What is the future of {t}? | What does the future hold for {t}? | How will {t} develop in the future? |
        What will the future of {t} be like?
    cost: How much does {t} cost? | What does {t} cost? | What is the cost of {t}? | What is the price of {t}? | How
        expensive is {t}?
    hard: Is {t} hard? | Is {t} difficult? | How hard is {t}? | How difficult is {t}?
    worth: Is {t} worth it? | Is {t} worth the effort? | Is {t} really worth it?
    safe: Is {t} safe? | Is {t} dangerous? | How safe is {t}? | Is {t} really safe?
    legal: Is {t} legal? | Is {t} illegal? | Is it legal to do {t}?
    dead: Is {t} dead? | Is {t} dying? | Is {t} still alive?
    jobs: What jobs are there in {t}? | What kinds of jobs are there in {t}? | What are the career options in {t}?
    salary: What is the average salary in {t}? | How much do people earn in {t}? | How much money do people make in
        {t}?
    examples: What are some examples of {t}? | What is an example of {t}? | Can you give examples of {t}? | Give me
        some examples of {t}.
    types: What are the types of {t}? | What types of {t} are there? | What kinds of {t} are there? | What are the
        different types of {t}? | How many types of {t} are there?
    improve: How can I improve my {t}? | How do I improve my {t}? | What is the best way to improve my {t}? | How do
        I get better at {t}? | What can I do to improve my {t}?
    popular: Why is {t} so popular? | Why is {t} popular? | What makes {t} so popular? | How come {t} is so popular?
    hate: Why do people hate {t}? | Why do so many people hate {t}? | What makes people hate {t}?
    like: Why do people like {t}? | Why do so many people like {t}? | What makes people like {t}?
    poem: Write a poem about {t}. | Please write a poem about {t}. | Compose a poem about {t}. | Can you write a
        poem about {t}?
    story: Write a story about {t}. | Write a short story about {t}. | Tell me a story about {t}.
    summary: Give me a short overview of {t}. | Give me a brief overview of {t}. | Write a short overview of {t}.
    explain: Explain {t} in simple terms. | In simple terms, explain {t}. | Can you explain {t} in simple terms? |
        Please explain {t} in simple words.
    """
)

ACTION_INTENTS = _intents(
    """
    how: How do I {v}? | How can I {v}? | What is the best way to {v}? | How should I {v}? | How would you {v}? |
        How to {v}? | What are some ways to {v}? | What are the best ways to {v}? | What can I do to {v}? | What
        should I do to {v}? | Is there any way to {v}? | How do you {v}? | How can one {v}? | What's a good way to
        {v}? | How does one {v}? | How could I {v}? | What are some tips to {v}? | I want to {v}. How do I do that?
    should: Should I {v}? | Is it a good idea to {v}? | Would it be a good idea to {v}? | Is it wise to {v}? | Would
        you recommend that I {v}?
    can: Can I {v}? | Is it possible to {v}? | Am I able to {v}? | Can one {v}? | Can you {v}?
    why: Why should I {v}? | Why is it important to {v}? | What is the point if I {v}?
    people: Why do people {v}? | Why do so many people {v}? | What makes people {v}? | What are the reasons that
        people {v}? | How come people {v}?
    long: How long does it take to {v}? | How much time does it take to {v}? | How long will it take to {v}? | How
        many hours does it take to {v}?
    cost: How much does it cost to {v}? | What does it cost to {v}? | How much money does it take to {v}? | How
        expensive is it to {v}?
    where: Where can I {v}? | Where do I {v}? | Where is the best place to {v}? | What is the best place to {v}? |
        Where should I {v}?
    when: When should I {v}? | What is the best time to {v}? | When is the best time to {v}? | When is a good time
        to {v}?
    feel: What does it feel like to {v}? | What is it like to {v}? | How does it feel to {v}?
    who: Who can help me {v}? | Who could help me {v}?
    must: Do I have to {v}? | Do I need to {v}? | Is it necessary to {v}? | Must I {v}?
    ever: Have you ever tried to {v}? | Did you ever try to {v}?
    often: How often should I {v}? | How often do I need to {v}?
    happens: What happens if I {v}? | What will happen if I {v}? | What would happen if I {v}?
    hard: How hard is it to {v}? | How difficult is it to {v}? | Is it hard to {v}? | Is it difficult to {v}?
    app: Which app helps to {v}? | What app can I use to {v}? | What is the best app to {v}?
    email: Write an email that asks a friend to {v}. | Write an email asking a friend to {v}.
    steps: List the steps to {v}. | What are the steps to {v}? | Give me the steps to {v}.
    """
)

NOUN_INTENTS = _intents(
    """
    best: What is the best {n}? | Which is the best {n}? | What's the best {n}? | Which {n} is the best? | What is
        the best {n} ever? | What are the best {n}s? | What {n} is the best? | Which {n} do you think is the best?
    worst: What is the worst {n}? | Which is the worst {n}? | Which {n} is the worst?
    favourite: What is your favourite {n}? | What is your favorite {n}? | Which is your favorite {n}? | Which {n} do
        you like the most?
    buy: Which {n} should I buy? | What {n} should I buy? | Which {n} would you buy? | What is the best {n} to buy?
    cheapest: What is the cheapest {n}? | Which is the cheapest {n}? | Which {n} is the cheapest?
    oldest: What is the oldest {n}? | Which is the oldest {n}? | Which {n} is the oldest?
    popular: What is the most popular {n}? | Which {n} is the most popular? | Which is the most popular {n}?
    overrated: What is the most overrated {n}? | Which {n} is the most overrated?
    find: Where can I find a good {n}? | Where do I find a good {n}? | How can I find a good {n}?
    choose: How do I choose a {n}? | How should I choose a {n}? | How can I choose the right {n}?
    recommend: Can you recommend a good {n}? | Could you suggest a good {n}? | What is a good {n}? | What are some
        good {n}s?
    count: How many {n}s are there? | What is the number of {n}s? | How many {n}s exist?
    last: What was the last {n} you tried? | Which {n} did you try last?
    """
)

PAIR_INTENTS = _intents(
    """
    difference: What is the difference between {a} and {b}? | What's the difference between {a} and {b}? | How do
        {a} and {b} differ? | What is the difference between {b} and {a}? | What are the differences between {a} and
        {b}? | What distinguishes {a} from {b}?
    better: Which is better, {a} or {b}? | What is better, {a} or {b}? | Which is better: {b} or {a}? | Is {a} or
        {b} better?
    cheaper: Which is cheaper, {a} or {b}? | What is cheaper, {a} or {b}? | Which costs less, {a} or {b}?
    common: What do {a} and {b} have in common? | What do {b} and {a} have in common? | What is similar between {a}
        and {b}?
    cause: Does {a} cause {b}? | Can {a} cause {b}? | Is {b} caused by {a}?
    effect: What is the effect of {a} on {b}? | How does {a} affect {b}? | What effect does {a} have on {b}?
    relation: What is the relationship between {a} and {b}? | How are {a} and {b} related? | How is {a} related to
        {b}?
    replace: Will {a} replace {b}? | Is {a} going to replace {b}? | Can {a} replace {b}?
    switch: Should I switch from {a} to {b}? | Is it worth switching from {a} to {b}?
    than: Is {a} better than {b}? | Why is {a} better than {b}?
    """
)
"""Who swaps a and b asks another question, but for those that are symmetric."""

SYMMETRIC = frozenset({"difference", "better", "cheaper", "common", "relation"})

NOT_QUITE: frozenset[frozenset[str]] = frozenset(
    map(frozenset, (("how", "steps"), ("learn", "start"), ("book", "course"), ("cost", "worth"), ("why", "popular")))
)
"""Intents so near to each other that a pair of them teaches nothing: left out."""
