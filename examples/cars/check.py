"""The same figures with pandas, from the messages in both topics."""

import json
from decimal import ROUND_HALF_UP, Decimal

import pandas


def frame(records):
    """The messages of a topic."""
    return pandas.DataFrame([json.loads(value, parse_float=Decimal) for _, _, _, value in records])


def mean(values):
    """Of decimals of two digits: six digits, rounded as PostgreSQL does."""
    return (sum(values, Decimal(0)) / len(values)).quantize(Decimal("0.000001"), ROUND_HALF_UP)


def used_cars(records):
    cars = frame(records)
    cars["at"] = pandas.to_datetime(cars["listed_at"], format="ISO8601")
    cars["price"] = cars["price"].map(lambda price: Decimal(price).quantize(Decimal("0.01")))
    return cars


def stories(records):
    news = frame(records)
    news["at"] = pandas.to_datetime(news["published_at"], format="ISO8601").dt.tz_localize(None)
    news = news.explode("keywords")
    return news[news["keywords"] != "cars"]


def prices(cars):
    """(window_start, window_end, brand, cars, lowest, mean, highest) of windows of 100 ms."""
    groups = cars.groupby([cars["at"].dt.floor("100ms"), "brand"])["price"]
    end = pandas.Timedelta("100ms")
    return sorted((start.to_pydatetime(), (start + end).to_pydatetime(), brand, len(of), min(of), mean(of), max(of)) for (start, brand), of in groups)


def mentions(news):
    """(window_start, window_end, brand, mentions, negative) of windows of 2 s."""
    end = pandas.Timedelta("2s")
    groups = news.groupby([news["at"].dt.floor("2s"), "keywords"])["polarity"]
    return sorted((start.to_pydatetime(), (start + end).to_pydatetime(), brand, len(of), int((of == "negative").sum())) for (start, brand), of in groups)


def attention(cars, news):
    """(window_start, brand, mentions, cars, mean) of windows of 2 s that have both."""
    listed = {key: of for key, of in cars.groupby([cars["at"].dt.floor("2s"), "brand"])["price"]}
    told = news.groupby([news["at"].dt.floor("2s"), "keywords"]).size()
    return sorted(
        (start.to_pydatetime(), brand, int(count), len(listed[start, brand]), mean(listed[start, brand]))
        for (start, brand), count in told.items()
        if (start, brand) in listed
    )


def by_country(cars, countries):
    """(country, fuel, cars, mean, mileage)."""
    groups = cars.groupby([cars["brand"].map(countries), "fuelType"])
    return sorted((country, fuel, len(of), mean(of["price"]), int(of["mileage"].sum())) for (country, fuel), of in groups)
