"""The same figures with pandas, from the messages of the topic."""

from decimal import ROUND_HALF_UP, Decimal

import pandas

NAMES = ["temperature", "feels like", "pressure", "humidity", "wind", "clouds", "rain", "snow"]


def measured(messages, regions):
    """One row a message. Times are left out: nothing is made of them."""
    two = lambda number: Decimal(str(number)).quantize(Decimal("0.01"))  # noqa: E731
    return pandas.DataFrame(
        {
            "city": message["name"],
            "region": regions[message["name"]],
            "longitude": message["coord"]["lon"],
            "latitude": message["coord"]["lat"],
            "condition": message["weather"][0]["main"],
            "temperature": two(message["main"]["temp"]),
            "feels like": two(message["main"]["feels_like"]),
            "pressure": two(message["main"]["pressure"]),
            "humidity": two(message["main"]["humidity"]),
            "wind": two(message["wind"]["speed"]),
            "clouds": two(message["clouds"]["all"]),
            "rain": two(message.get("rain", {}).get("1h", 0)),
            "snow": two(message.get("snow", {}).get("1h", 0)),
        }
        for message in messages
    )


def mean(values):
    """Six digits, rounded as PostgreSQL does."""
    return (sum(values, Decimal(0)) / len(values)).quantize(Decimal("0.000001"), ROUND_HALF_UP)


def correlations(rows):
    """{(x, y): correlation} of all pairs."""
    matrix = rows[NAMES].astype(float).corr()
    return {(x, y): matrix.loc[x, y] for x in NAMES for y in NAMES}


def by_region(rows):
    return [
        (
            region,
            len(of),
            int(sum(of["humidity"])) / len(of),
            mean(of["temperature"]),
            of[of["condition"] == "Rain"]["city"].nunique(),
            of[of["condition"] == "Snow"]["city"].nunique(),
        )
        for region, of in rows.groupby("region")
    ]


def by_city(rows):
    return [
        (
            city,
            of["longitude"].max(),
            of["latitude"].max(),
            len(of),
            mean(of["temperature"]),
            int(sum(of["humidity"])) / len(of),
            mean(of["wind"]),
            sum(of["rain"]),
            sum(of["snow"]),
        )
        for city, of in rows.groupby("city")
    ]
