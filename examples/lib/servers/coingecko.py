"""CoinGecko's markets: `GET /api/v3/coins/markets?vs_currency=usd&per_page=100&page=1`, as docs.coingecko.com describes it.

The market moves every `period` seconds, in steps of a quarter of an hour.
"""

import random
import time
from datetime import datetime, timedelta, timezone

from .base import LocalServer, RateLimit, Refused

KNOWN = [("bitcoin", "btc", "Bitcoin", 64000.0), ("ethereum", "eth", "Ethereum", 3200.0), ("solana", "sol", "Solana", 150.0), ("cardano", "ada", "Cardano", 0.45)]


class CoinGecko(LocalServer):
    """`coins` coins; snapshot `n` is the same in every run."""

    def __init__(self, period, coins=100, limit=None):
        super().__init__()
        self.period, self.coins = period, coins
        self.limit = RateLimit(*limit) if limit else None
        self.started = time.monotonic()
        # Numbers of the snapshots that somebody has got.
        self.served = set()
        self.routes["/api/v3/coins/markets"] = self.markets

    def markets(self, query, _headers):
        if "vs_currency" not in query:
            raise Refused(422, {"error": "Missing parameter vs_currency"})
        number = int((time.monotonic() - self.started) / self.period)
        with self.lock:
            self.served.add(number)
        coins = snapshot(number, self.coins)
        if "ids" in query:
            coins = [coin for coin in coins if coin["id"] in query["ids"].split(",")]
        size = min(250, int(query.get("per_page", 100)))
        page = int(query.get("page", 1))
        return coins[(page - 1) * size : page * size], {"per-page": str(size), "total": str(len(coins))}


def snapshot(number, coins=100):
    """The market as it is at one moment."""
    return [coin(rank, number) for rank in range(coins)]


def coin(rank, number):
    of_coin = random.Random(f"coin {rank}")
    id, symbol, name, base = KNOWN[rank] if rank < len(KNOWN) else (f"coin-{rank}", f"c{rank}", f"Coin {rank}", of_coin.lognormvariate(0, 3))
    # A walk that any snapshot can be told of by itself.
    drift = sum(random.Random(f"coin {rank} {step}").gauss(0, 0.006) for step in range(number + 1))
    dice = random.Random(f"coin {rank} {number} now")
    price = float(f"{base * (1 + drift):.6g}")
    high = float(f"{price * (1 + dice.uniform(0, 0.05)):.6g}")
    low = float(f"{price * (1 - dice.uniform(0, 0.05)):.6g}")
    at = datetime(2026, 3, 2, tzinfo=timezone.utc) + timedelta(minutes=15 * number)
    iso = lambda time: time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"  # noqa: E731
    return {
        "id": id,
        "symbol": symbol,
        "name": name,
        "image": f"https://assets.example/{id}.png",
        "current_price": price,
        "market_cap": int(price * 1e7 / (rank + 1)),
        "market_cap_rank": rank + 1,
        # One in ten is hardly traded, and one in twenty says nothing of it.
        "total_volume": None if rank % 20 == 19 else dice.randrange(10, 1000) if rank % 10 == 9 else dice.randrange(1001, 10**9),
        "high_24h": high,
        "low_24h": low,
        "price_change_24h": float(f"{price * drift:.6g}"),
        "price_change_percentage_24h": round(100 * drift, 5),
        "ath": float(f"{base * 2.5:.6g}"),
        "ath_date": iso(datetime(2025, 1, 20, 8, 30, tzinfo=timezone.utc) + timedelta(days=rank)),
        "atl": float(f"{base / 90:.6g}"),
        "atl_date": iso(datetime(2015, 10, 20, tzinfo=timezone.utc) + timedelta(days=rank)),
        "roi": {"currency": "usd", "percentage": round(of_coin.uniform(-50, 900), 4), "times": round(of_coin.uniform(0, 9), 6)} if rank % 4 == 1 else None,
        "last_updated": iso(at + timedelta(seconds=dice.uniform(0, 60))),
    }
