"""Markets: snapshots of a polled API as files in S3, the files as a stream, CSV with the volatility, and posts beside prices."""

import json

import check as expected
from lib import s3
from lib.example import keep, main
from lib.servers.coingecko import CoinGecko, snapshot
from lib.servers.mastodon import Mastodon
from plots import draw

# Snapshots, a quarter of an hour apart; and posts of as much time.
SNAPSHOTS, SNAPSHOTS_SHORT = 110, 24
# Seconds from one snapshot to the next.
PERIOD = 0.4


def drop(store, bucket, number):
    """Puts a snapshot into the bucket as others do: one JSON array over many lines."""
    body = json.dumps(snapshot(number), indent=2).encode()
    store.put_object(Bucket=bucket, Key=f"raw/market-{number}.json", Body=body)


def stream(run, cluster, store, bucket, timeline, wanted):
    """Runs the three jobs until there are enough snapshots, and kills a worker and the master meanwhile."""
    # Two of an earlier day, which are there before the job is.
    for number in (-2, -1):
        drop(store, bucket, number)
    for job in ("posts", "stream", "fetch"):
        cluster.submit(run.folder / f"{job}.sql", name=job)
    fetched = lambda: len(expected.objects(store, bucket, "raw/"))  # noqa: E731
    cluster.until("a third of the snapshots", lambda: fetched() >= wanted / 3, "fetch", "stream")
    cluster.crash_worker()
    run.say("killed a worker")
    cluster.until("two thirds of the snapshots", lambda: fetched() >= wanted * 2 / 3, "fetch", "stream")
    cluster.crash_master()
    run.say("killed the master, whose state is in the bucket")
    cluster.until("all snapshots", lambda: fetched() >= wanted, "fetch", "stream")
    cluster.stop("fetch")
    # One that comes late, and an empty file.
    drop(store, bucket, -3)
    store.put_object(Bucket=bucket, Key="raw/empty.json", Body=b"")
    coins = list(expected.coins(expected.objects(store, bucket, "raw/")))
    cluster.wait_for_rows("stream", len(coins))
    cluster.stop("stream")
    toots = [data for event, data in timeline.events if event == "update"]
    cluster.wait_for_rows("posts", len(toots))
    cluster.stop("posts")
    run.say(f"{len(coins):,} coins of {len(coins) // 100} snapshots, and {len(toots):,} posts")
    return coins


def check(run, market, timeline, store, bucket, coins):
    """Compares the bucket's files and the tables with what the market gave."""
    # Which snapshot a coin is of, by its time: each one that is there has all of its coins, as they were served.
    given = {}
    for number in {*market.served, -1, -2, -3}:
        for of in snapshot(number):
            given[of["id"], of["last_updated"]] = of
    # Nulls may be left out, and what nobody asked for is not there.
    same = lambda found, whole: all(whole[name] == value for name, value in found.items())  # noqa: E731
    run.check("each coin in raw/ is as the market gave it", [c for c in coins if not same(c, given[c["id"], c["last_updated"]])], [])
    places = {(coin["id"], coin["last_updated"]) for coin in coins}
    run.check("no coin is in raw/ twice", len(places), len(coins))
    lines = list(expected.read_csv(expected.objects(store, bucket, "volatility/")))
    wanted = [expected.volatility(coin) for coin in coins if (coin.get("total_volume") or 0) > 1000]
    by = lambda row: (row[0], row[15])  # noqa: E731
    run.check(f"volatility/, {len(wanted):,} lines", sorted(lines, key=by), sorted(wanted, key=by))
    run.check("coin_prices", run.postgres.query('SELECT * FROM coin_prices ORDER BY id COLLATE "C", last_updated'), expected.prices(coins))
    run.check("posts_per_hour", run.postgres.query("SELECT * FROM posts_per_hour ORDER BY 1"), expected.posts(timeline.events))


def pipeline(run):
    run.services()
    wanted = SNAPSHOTS_SHORT if run.short else SNAPSHOTS
    bucket = "essaim-markets"
    # A little more than the prices.
    days = wanted * 1.15 / 96
    with s3.server() as variables, CoinGecko(PERIOD, limit=(20, 1)) as market, Mastodon(int(1500 * days), int(1500 / 96 / PERIOD), days) as timeline:
        store = s3.client(variables)
        store.create_bucket(Bucket=bucket)
        run.variables |= variables | {
            "ESSAIM_VAR_BUCKET": bucket,
            "ESSAIM_VAR_COINGECKO": market.url,
            "ESSAIM_VAR_MARKET_INTERVAL": f"{int(PERIOD * 1000)} milliseconds",
            "ESSAIM_VAR_MASTODON": timeline.url,
            "ESSAIM_VAR_MASTODON_TOKEN": timeline.token,
        }
        with run.cluster(state_dir=f"s3://{bucket}/state") as cluster:
            coins = stream(run, cluster, store, bucket, timeline, wanted)
            check(run, market, timeline, store, bucket, coins)
            draw(run.postgres, run.plots)
            keep(run, cluster)
    return f"{len(coins):,} coins of {len(coins) // 100} snapshots, a worker and the master killed meanwhile"


if __name__ == "__main__":
    main("markets", pipeline)
