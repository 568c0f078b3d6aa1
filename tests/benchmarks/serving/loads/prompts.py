"""System prompts of a given length and distinct questions, so that no prefix cache holds a whole prompt."""

import itertools
import random
from collections.abc import Iterator

SUBJECTS = ("orders", "invoices", "accounts", "parcels", "refunds", "warranties", "passwords", "repairs", "gift cards")
RULES = (
    "Answer questions about {} in two short sentences, and name the page where the customer can read more.",
    "When a customer is upset about {}, say that you are sorry once, and then say what will be done.",
    "Never promise a date for {}: say which office decides, and how long it took in the last month.",
    "If somebody asks about {} of another person, explain politely that you may only speak about their own.",
)
QUESTIONS = (
    "How do I change {}?",
    "Where can I see my {} of last year?",
    "Somebody else paid for my {}; what now?",
    "What do {} cost when I live abroad?",
)
PLACES = ("Lisbon", "Bergen", "Toronto", "Osaka", "Nairobi", "Quito", "Perth", "Galway", "Tampere", "Graz")


def system(words: int, name: str) -> str:
    """A system prompt of at least `words` words; prompts of different `name`s share no prefix."""
    text = f"You are the help desk {name}."
    for rule, subject in itertools.cycle(itertools.product(RULES, SUBJECTS)):
        if len(text.split()) >= words:
            return text
        text += " " + rule.format(subject)
    raise AssertionError("the rules never end")


def questions(seed: int = 0) -> Iterator[str]:
    """An endless iterator of distinct short questions."""
    draw = random.Random(seed)
    for number in itertools.count():
        question = draw.choice(QUESTIONS).format(draw.choice(SUBJECTS))
        yield f"I write from {draw.choice(PLACES)}, case {seed}-{number}. {question}"
