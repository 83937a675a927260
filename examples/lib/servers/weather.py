"""OpenWeatherMap's current weather: `GET /data/2.5/weather?q=Paris,FR&units=metric&appid=KEY`, as openweathermap.org/current describes it.

A city's measurement changes every `period` seconds; until then the answer is the same, and so is its ETag.
"""

import math
import random
import time

from .base import LocalServer, RateLimit, Refused

# Name, country, region, longitude, latitude, mean temperature.
CITIES = [
    ("Oslo", "NO", "North", 10.75, 59.91, 1), ("Stockholm", "SE", "North", 18.07, 59.33, 2),
    ("Helsinki", "FI", "North", 24.94, 60.17, 0), ("Copenhagen", "DK", "North", 12.57, 55.68, 5),
    ("Reykjavik", "IS", "North", -21.9, 64.13, -1), ("Paris", "FR", "West", 2.35, 48.85, 9),
    ("London", "GB", "West", -0.13, 51.51, 8), ("Dublin", "IE", "West", -6.26, 53.35, 8),
    ("Amsterdam", "NL", "West", 4.9, 52.37, 8), ("Brussels", "BE", "West", 4.35, 50.85, 8),
    ("Berlin", "DE", "East", 13.4, 52.52, 6), ("Warsaw", "PL", "East", 21.01, 52.23, 3),
    ("Prague", "CZ", "East", 14.42, 50.09, 5), ("Vienna", "AT", "East", 16.37, 48.21, 7),
    ("Budapest", "HU", "East", 19.04, 47.5, 8), ("Madrid", "ES", "South", -3.7, 40.42, 14),
    ("Lisbon", "PT", "South", -9.14, 38.72, 16), ("Rome", "IT", "South", 12.5, 41.9, 15),
    ("Athens", "GR", "South", 23.73, 37.98, 17), ("Valletta", "MT", "South", 14.51, 35.9, 18),
]  # fmt: skip


class Weather(LocalServer):
    """Measurement `n` of a city is the same in every run."""

    def __init__(self, period, key="local-key", limit=None):
        super().__init__()
        self.period, self.key = period, key
        self.limit = RateLimit(*limit) if limit else None
        self.started = time.monotonic()
        # (city, number of the measurement) that somebody has got.
        self.served = set()
        self.routes["/data/2.5/weather"] = self.weather

    def weather(self, query, _headers):
        if query.get("appid") != self.key:
            raise Refused(401, {"cod": 401, "message": "Invalid API key. Please see https://openweathermap.org/faq#error401 for more info."})
        name = query.get("q", "").split(",")[0]
        city = next((city for city in CITIES if city[0] == name), None)
        if city is None:
            raise Refused(404, {"cod": "404", "message": "city not found"})
        number = int((time.monotonic() - self.started) / self.period)
        with self.lock:
            self.served.add((name, number))
        return measurement(city, number)


def measurement(city, number):
    """What OpenWeatherMap says of a city, ten minutes after the measurement before. Rain and snow are absent when there is none."""
    name, country, _, longitude, latitude, mean = city
    dice = random.Random(f"{name} {number}")
    at = 1_772_409_600 + number * 600
    hour = at / 3600 % 24 + longitude / 15
    clouds = max(0, min(100, int(dice.gauss(55, 35))))
    temperature = round(mean + 5 * math.sin((hour - 9) / 24 * 2 * math.pi) * (1 - clouds / 200) + dice.gauss(0, 2), 2)
    wet = clouds > 60 and dice.random() < 0.6
    snows = wet and temperature < 1.5
    humidity = max(20, min(100, int(85 - temperature + (15 if wet else 0) + dice.gauss(0, 6))))
    fall = round(dice.expovariate(1.2) + 0.1, 2)
    main = "Snow" if snows else "Rain" if wet else "Clouds" if clouds > 25 else "Clear"
    body = {
        "coord": {"lon": longitude, "lat": latitude},
        "weather": [{"id": 800, "main": main, "description": main.lower(), "icon": "01d"}],
        "base": "stations",
        "main": {
            "temp": temperature,
            "feels_like": round(temperature - dice.uniform(0, 3), 2),
            "temp_min": round(temperature - dice.uniform(0, 2), 2),
            "temp_max": round(temperature + dice.uniform(0, 2), 2),
            "pressure": int(dice.gauss(1013, 9)) - (8 if wet else 0),
            "humidity": humidity,
        },
        "visibility": 10000 if not wet else dice.randrange(2000, 10000),
        "wind": {"speed": round(dice.expovariate(0.25), 2), "deg": dice.randrange(360)},
        "clouds": {"all": clouds},
        "dt": at,
        "sys": {"country": country, "sunrise": at - at % 86400 + 25200, "sunset": at - at % 86400 + 64800},
        "timezone": 3600 * round(longitude / 15),
        "id": 1000 + [other[0] for other in CITIES].index(name),
        "name": name,
        "cod": 200,
    }
    if wet:
        body["snow" if snows else "rain"] = {"1h": fall}
    return body
