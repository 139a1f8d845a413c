"""Sums of one and of two digits in words: `python sums.py SEED COUNT SHARE_OF_TWO_DIGITS > sums.jsonl`."""

import json
import random
import sys

seed, count, share = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
rng = random.Random(seed)
NAMES = ["Ann", "Ben", "Cara", "Dan", "Eve", "Finn", "Gina", "Hugo"]
THINGS = ["apples", "books", "cards", "coins", "shells", "stamps", "pencils", "marbles"]
seen = set()
while len(seen) < count:
    low, high = (10, 99) if rng.random() < share else (1, 9)
    name, things, a, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(low, high), rng.randint(low, high)
    question = f"{name} has {a} {things} and buys {b} more {things}. How many {things} does {name} have in total?"
    if question not in seen:
        seen.add(question)
        print(json.dumps({"question": question, "answer": str(a + b)}))
