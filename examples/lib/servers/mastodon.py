"""Mastodon's streaming API: `GET /api/v1/streaming/public`, server-sent events, as docs.joinmastodon.org describes it.

Events are `update` (a status), `status.update` (an edited one) and `delete` (an id, no JSON object); comment lines say that
the connection lives. The stream sets off when as many clients as are expected have connected. Each event has an id, and a client that comes
back with `Last-Event-ID` gets what follows it; one that comes back without misses what was sent meanwhile.
"""

import json
import random
import time
from datetime import datetime, timedelta, timezone

from .base import LocalServer, Refused

TAGS = {
    "en": ["rust", "dataengineering", "climate", "photography", "music", "opensource", "football", "books"],
    "fr": ["données", "climat", "cuisine", "musique", "logiciellibre", "photo"],
    "de": ["datenschutz", "klima", "fußball", "musik", "freiesoftware"],
    "ja": ["anime", "jpop", "nihongo"],
    "es": ["datos", "música", "fútbol", "clima"],
}
WORDS = {
    "en": "the a data stream of today new open source music climate rust is great we love this code and photo from our city news about energy".split(),
    "fr": "les données du climat une chanson le logiciel libre est à nous aujourd'hui été forêt cœur l'énergie de la ville et musique".split(),
    "de": "die Daten der Straße über Energie freie Software ist schön heute Musik und Größe Klima für alle in der Stadt".split(),
    "ja": "今日 の データ は とても 音楽 写真 天気 が 好き です 新しい エネルギー".split(),
    "es": "los datos de la ciudad música año clima código abierto es mañana energía y canción niño para todos".split(),
}
EMOJI = ["🐝", "🎶", "🌍", "👩‍💻", "🔥", "⚽️", "❤️", "🇫🇷"]
ENTITIES = ["&amp;", "&lt;3", "&quot;ok&quot;", "it&#39;s", "&gt;&gt;"]


class Mastodon(LocalServer):
    """`count` toots of `days` days, sent at `per_second`, with what real timelines have: edits, deletions, repetitions, disorder."""

    def __init__(self, count, per_second, days=7, clients=1, seed=1, token="local-token"):
        super().__init__()
        self.token = token
        self.per_second = per_second
        # (event, data as it is sent); its number from 1 is the id.
        self.events = list(events(count, days, random.Random(seed)))
        self.clients = clients
        self.started = None
        self.connections = 0
        self.routes["/api/v1/streaming/public"] = self.stream
        self.routes["/api/v1/streaming/health"] = lambda query, headers: "OK"

    def sent(self):
        """How many events have been due so far."""
        if self.started is None:
            return 0
        return min(len(self.events), int((time.monotonic() - self.started) * self.per_second))

    def stream(self, _query, headers):
        """Checks the token, and returns what writes the stream."""
        if headers.get("Authorization") != f"Bearer {self.token}":
            raise Refused(401, {"error": "Missing access token"})
        last = headers.get("Last-Event-ID")
        with self.lock:
            self.connections += 1
            if self.connections == self.clients:
                self.started = time.monotonic()
            position = int(last) if last else self.sent()
        return lambda handler: self.write(handler, position)

    def write(self, handler, position):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Cache-Control", "no-store")
        # Without a length the stream ends with the connection.
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b":)\n")
        thump = time.monotonic() + 1
        while not self.stopping.is_set():
            upto = self.sent()
            for number in range(position, upto):
                event, data = self.events[number]
                handler.wfile.write(f"id: {number + 1}\nevent: {event}\ndata: {data}\n\n".encode())
            position = max(position, upto)
            if time.monotonic() > thump:
                handler.wfile.write(b":thump\n")
                thump = time.monotonic() + 1
            time.sleep(0.01)


def events(count, days, dice):
    """The stream: about `count` toots in order of arrival."""
    authors = [author(number, dice) for number in range(max(20, count // 40))]
    start = datetime(2026, 3, 2, tzinfo=timezone.utc)
    recent = []
    for number, at in enumerate(arrivals(start, days, count, dice)):
        # Some write much more than others.
        writer = authors[int(len(authors) * dice.random() ** 2)]
        # Toots from elsewhere arrive late: up to 20 minutes.
        status = toot(number, at - timedelta(seconds=dice.uniform(0, 1200)), writer, dice)
        line = json.dumps(status, ensure_ascii=False, separators=(",", ":"))
        yield "update", line
        recent = (recent + [(status, line)])[-40:]
        chance = dice.random()
        if chance < 0.03:
            # The same toot once more, as a reconnecting relay sends it.
            yield "update", dice.choice(recent)[1]
        elif chance < 0.06:
            edited = dict(dice.choice(recent)[0])
            edited["content"] = (edited["content"] or "<p></p>").replace("</p>", " (edited)</p>", 1)
            edited["edited_at"] = time_text(at)
            yield "status.update", json.dumps(edited, ensure_ascii=False, separators=(",", ":"))
        elif chance < 0.08:
            yield "delete", recent.pop(dice.randrange(len(recent)))[0]["id"]


def arrivals(start, days, count, dice):
    """`count` times in order: more in the evening than at night, and more towards the weekend."""
    times = []
    while len(times) < count:
        at = start + timedelta(days=dice.uniform(0, days))
        busy = 0.25 + 0.75 * (1 - abs(at.hour + at.minute / 60 - 18) / 18)
        if dice.random() < busy * (0.7 + 0.05 * at.weekday()):
            times.append(at)
    return sorted(times)


def time_text(at):
    return at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"


def author(number, dice):
    name = f"{dice.choice(['ana', 'bo', 'chloé', 'dmitri', 'eiko', 'farid', 'gül', 'hugo'])}{number}".replace("é", "e").replace("ü", "u")
    server = dice.choice(["", "@fosstodon.org", "@piaille.fr", "@mastodon.social"])
    return {
        "id": str(110000000000000000 + number),
        "username": name,
        "acct": name + server,
        "display_name": dice.choice([name.title(), f"{name} {dice.choice(EMOJI)}", ""]),
        "locked": False,
        "bot": dice.random() < 0.05,
        "followers_count": int(dice.paretovariate(1.1) * 20),
        "following_count": dice.randrange(1000),
        "statuses_count": dice.randrange(1, 20000),
        "language": dice.choice(list(WORDS)),
    }


def toot(number, at, author, dice):
    language = author["language"]
    words = dice.choices(WORDS[language], k=dice.randint(3, 40))
    for extra, chance in [(EMOJI, 0.4), (ENTITIES, 0.3)]:
        if dice.random() < chance:
            words.insert(dice.randrange(len(words)), dice.choice(extra))
    tags = dice.sample(TAGS[language], k=min(dice.choice([0, 0, 1, 1, 2, 3]), len(TAGS[language])))
    text = " ".join(words)
    if dice.random() < 0.3:
        text = text.title()
    if dice.random() < 0.2:
        text = text.replace(" ", "<br />", 1)
    if dice.random() < 0.2:
        text += "</p><p>" + "  ".join(dice.choices(WORDS[language], k=6))
    if dice.random() < 0.25:
        page = f"https://example.org/{number}?a=1&amp;b=2"
        text += f' <a href="{page}" rel="nofollow noopener" target="_blank"><span class="invisible">https://</span><span>{page[8:]}</span></a>'
    for tag in tags:
        text += f' <a href="https://mastodon.example/tags/{tag}" class="mention hashtag" rel="tag">#<span>{tag}</span></a>'
    public = {name: value for name, value in author.items() if name != "language"}
    return {
        "id": str(114000000000000000 + number * 977),
        "created_at": time_text(at),
        "in_reply_to_id": None,
        "sensitive": False,
        "spoiler_text": "",
        "visibility": dice.choice(["public", "public", "unlisted"]),
        # Not every client says it.
        "language": language if dice.random() < 0.95 else None,
        "uri": f"https://mastodon.example/users/{author['username']}/statuses/{number}",
        "replies_count": dice.randrange(5),
        "reblogs_count": int(dice.paretovariate(1.5)) - 1,
        "favourites_count": int(dice.paretovariate(1.2)) - 1,
        "edited_at": None,
        # A toot may be nothing but a picture.
        "content": None if dice.random() < 0.01 else f"<p>{text}</p>",
        "reblog": None,
        "account": public,
        "media_attachments": [],
        "mentions": [],
        "tags": [{"name": tag, "url": f"https://mastodon.example/tags/{tag}"} for tag in tags],
        "emojis": [],
    }
