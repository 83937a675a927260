"""The same figures in Python, from what the server sent and what is in the topic: no SQL, and nothing of Essaim's."""

import json
import re
from collections import Counter, defaultdict
from datetime import datetime, timedelta

KEYWORDS = re.compile(
    "data|données|daten|datos|データ|climat|clima|klima|musi|música|音楽|rust|open source|logiciel libre|freie software", re.IGNORECASE
)
ENTITIES = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#39;", "'"), ("&amp;", "&")]


def ingested(events):
    """What ingest.sql must make of the server's events: messages, and ids of deleted toots."""
    messages = []
    for event, data in events:
        if event != "update":
            continue
        status = json.loads(data)
        if status["content"] is None:
            continue
        text = re.sub("<[^>]*>", " ", status["content"])
        for entity, character in ENTITIES:
            text = text.replace(entity, character)
        if not KEYWORDS.search(text):
            continue
        author = status["account"]
        message = {name: status[name] for name in ("id", "created_at", "visibility", "reblogs_count", "favourites_count", "language", "replies_count")}
        message |= {"content": text, "user_id": author["id"], "tags": [tag["name"] for tag in status["tags"]]}
        message |= {name: author[name] for name in ("username", "acct", "display_name", "followers_count", "following_count", "statuses_count")}
        messages.append({name: value for name, value in message.items() if value is not None})
    return messages, [(data,) for event, data in events if event == "delete"]


def comparable(messages):
    """Messages in an order of their own: partitions have none among them."""
    return sorted(json.dumps(message, sort_keys=True, ensure_ascii=False) for message in messages)


class Toots:
    """The tables that stream.sql and history.sql must make of the topic's messages."""

    def __init__(self, messages, deleted):
        self.deleted = {id for (id,) in deleted}
        self.toots = {}
        for message in messages:
            if message.get("id") is None or message.get("content") is None:
                continue
            text = re.sub(r"https?://\S+", " ", message["content"]).lower()
            text = re.sub(r"\s+", " ", text).strip(" ")
            if text:
                self.toots.setdefault(message["id"], message | {"text": text, "at": datetime.fromisoformat(message["created_at"][:-1])})

    def filtered(self):
        return sorted(
            (id, t["at"], t["username"], t["acct"], t.get("language"), t["text"], ",".join(t["tags"]), t["reblogs_count"], t["favourites_count"])
            for id, t in self.toots.items()
        )

    def windows(self):
        hour = timedelta(hours=1)
        hours = lambda toot: toot["at"].replace(minute=0, second=0, microsecond=0)  # noqa: E731
        return [(start, start + hour, *count_and_average(texts)) for start, texts in grouped(self.toots.values(), lambda t: [hours(t)])]

    def users(self):
        return [(user, *count_and_average(texts)) for user, texts in grouped(self.toots.values(), lambda toot: [toot["username"]])]

    def hashtags(self):
        return [(tag, *count_and_average(texts)) for tag, texts in grouped(self.toots.values(), lambda toot: toot["tags"])]

    def kept(self):
        """Toots that were not deleted."""
        return {id: toot for id, toot in self.toots.items() if id not in self.deleted}

    def active(self, more_than):
        counts = Counter(toot["username"] for toot in self.kept().values())
        return sorted((user, count) for user, count in counts.items() if count > more_than)

    def of_active(self, more_than):
        counts = dict(self.active(more_than))
        return sorted((id, t["username"], counts[t["username"]], t["text"]) for id, t in self.kept().items() if t["username"] in counts)

    def by_day_and_hashtag(self):
        counts = Counter((toot["at"].date(), tag) for toot in self.kept().values() for tag in toot["tags"])
        return sorted((day, tag, count) for (day, tag), count in counts.items())

    def top_hashtags(self, most):
        counts = Counter(tag for toot in self.kept().values() for tag in toot["tags"])
        return sorted(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0].encode()))[:most])

    def per_day(self):
        return [(day, *count_and_average(texts)) for day, texts in grouped(self.kept().values(), lambda toot: [toot["at"].date()])]


def grouped(toots, keys):
    """(key, texts of the toots that have it), in order of keys."""
    groups = defaultdict(list)
    for toot in toots:
        for key in keys(toot):
            groups[key].append(toot["text"])
    return sorted(groups.items())


def count_and_average(texts):
    return len(texts), sum(map(len, texts)) / len(texts)
