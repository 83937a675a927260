"""The same figures in Python, from the files in the bucket."""

import csv
import io
import json
from collections import Counter
from datetime import datetime

FOUR = ("bitcoin", "ethereum", "solana", "cardano")


def objects(s3, bucket, prefix):
    """The files of a prefix: {key: bytes}. What begins with _ is the sink's own."""
    found = {}
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            if "/_" not in item["Key"]:
                found[item["Key"]] = s3.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
    return found


def coins(files):
    """All coins of the files: of arrays, and of lines."""
    for body in files.values():
        text = body.decode()
        if text.lstrip().startswith("["):
            yield from json.loads(text)
        else:
            yield from (json.loads(line) for line in text.splitlines())


def at(text):
    return datetime.fromisoformat(text.removesuffix("Z"))


def volatility(coin):
    """A line of the CSV, as values."""
    updated = at(coin["last_updated"])
    plain = ("id", "symbol", "name", "current_price", "market_cap", "total_volume", "high_24h", "low_24h", "price_change_24h", "price_change_percentage_24h", "ath")
    return (
        *(coin[name] for name in plain),
        at(coin["ath_date"]),
        coin["atl"],
        at(coin["atl_date"]),
        (coin.get("roi") or {}).get("percentage"),
        updated,
        updated.hour,
        updated.strftime("%A"),
        (coin["high_24h"] - coin["low_24h"]) / coin["current_price"] * 100,
    )


def read_csv(files):
    """The lines of all CSV files, with the types of `volatility`."""
    whole, number = int, float
    types = [str, str, str, number, whole, whole, number, number, number, number, number, at, number, at, number, at, whole, str, number]
    for body in files.values():
        rows = csv.reader(io.StringIO(body.decode()))
        next(rows)
        for row in rows:
            yield tuple(of(value) if value != "" else None for of, value in zip(types, row, strict=True))


def prices(all_coins):
    return sorted((coin["id"], at(coin["last_updated"]), coin["current_price"], coin["total_volume"]) for coin in all_coins if coin["id"] in FOUR)


def posts(events):
    hours = Counter(at(json.loads(data)["created_at"]).replace(minute=0, second=0, microsecond=0) for event, data in events if event == "update")
    return sorted(hours.items())
