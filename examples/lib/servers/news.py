"""A news API with the shape of Aylien's: `GET /news/stories?per_page=20&cursor=…`, with an id and a key in headers.

Stories of all times stay there; each answer has at most `per_page` and the cursor that leads to the next ones. A new story
appears every `period` seconds.
"""

import random
import time
from datetime import timedelta, timezone

from .base import LocalServer, RateLimit, Refused

BRANDS = ["audi", "bmw", "ford", "hyundai", "mercedes", "skoda", "toyota", "vw"]
SUBJECTS = ["recalls {} models", "sells fewer {} than last year", "shows a new electric {}", "opens a {} plant", "raises the price of the {}"]


class News(LocalServer):
    """Story `n` is the same in every run."""

    def __init__(self, period, start, application="local-app", key="local-key", limit=None, most=None):
        super().__init__()
        self.period, self.start, self.most = period, start, most
        self.application, self.key = application, key
        self.limit = RateLimit(*limit) if limit else None
        self.started = time.monotonic()
        self.routes["/news/stories"] = self.stories

    def there(self):
        """How many stories there are by now."""
        there = int((time.monotonic() - self.started) / self.period)
        return there if self.most is None else min(there, self.most)

    def stories(self, query, headers):
        if headers.get("X-AYLIEN-NewsAPI-Application-ID") != self.application or headers.get("X-AYLIEN-NewsAPI-Application-Key") != self.key:
            raise Refused(401, {"errors": [{"status": "401", "code": "KB401", "title": "Invalid application ID or key"}]})
        size = int(query.get("per_page", 10))
        try:
            first = 0 if query.get("cursor", "*") == "*" else int(query["cursor"].removeprefix("after-"))
        except ValueError:
            raise Refused(422, {"errors": [{"status": "422", "title": "Invalid cursor"}]}) from None
        numbers = range(first, min(first + size, self.there()))
        # The cursor leads on from the last story, also where there is none yet: who comes back with it gets the new ones.
        answer = {"stories": [self.story(number) for number in numbers], "next_page_cursor": f"after-{max(first, numbers.stop)}"}
        return answer

    def story(self, number):
        dice = random.Random(f"story {number}")
        # Some makers are spoken of more than others.
        brands = list(dict.fromkeys(dice.choices(BRANDS, range(2, 2 + len(BRANDS)), k=dice.choice([1, 1, 2]))))
        subject = dice.choice(SUBJECTS)
        at = self.start + timedelta(seconds=number * self.period)
        return {
            "id": 5_000_000_000 + number,
            "title": f"{brands[0].upper() if dice.random() < 0.3 else brands[0].title()} {subject.format('cars')}",
            "body": " ".join(f"{brand.title()} {dice.choice(SUBJECTS).format('car')}." for brand in brands),
            "published_at": at.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "source": {"name": dice.choice(["Autoweek", "The Wheel", "Motor Daily"])},
            "keywords": brands + ["cars"],
            "language": "en",
            "sentiment": {"title": {"polarity": dice.choice(["positive", "neutral", "negative"]), "score": round(dice.random(), 2)}},
        }
