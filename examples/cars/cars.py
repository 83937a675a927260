"""A file of used cars, as one finds them: the same for the same number."""

import csv
import random

# Maker, country, models, what a new one costs.
BRANDS = [
    ("audi", "Germany", ["A1", "A3", "A4", "Q5"], 38000), ("bmw", "Germany", ["1 Series", "3 Series", "X1"], 40000),
    ("ford", "United States", ["Fiesta", "Focus", "Kuga"], 24000), ("hyundai", "Korea", ["i10", "i30", "Tucson"], 22000),
    ("mercedes", "Germany", ["A Class", "C Class", "GLC"], 43000), ("skoda", "Czechia", ["Fabia", "Octavia", "Kodiaq"], 23000),
    ("toyota", "Japan", ["Aygo", "Yaris", "Corolla"], 25000), ("vw", "Germany", ["Polo", "Golf", "Tiguan"], 27000),
]  # fmt: skip
COLUMNS = ["brand", "model", "year", "price", "transmission", "mileage", "fuelType", "tax", "mpg", "engineSize"]


def write(path, count, seed=5):
    """Writes `count` cars; one in a hundred without a price."""
    dice = random.Random(seed)
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for _ in range(count):
            brand, _, models, new = dice.choice(BRANDS)
            year = min(2024, int(2024 - dice.expovariate(0.25)))
            age = 2024 - year
            fuel = dice.choice(["Petrol", "Petrol", "Diesel", "Hybrid", "Electric"])
            dear = {"Hybrid": 1.15, "Electric": 1.3}.get(fuel, 1)
            price = max(500, new * dear * dice.uniform(0.7, 1.3) * 0.86**age)
            rows.writerow([
                brand,
                # As the well-known files have it: with a blank before.
                f" {dice.choice(models)}",
                year,
                "" if dice.random() < 0.01 else f"{price:.2f}",
                dice.choice(["Manual", "Automatic", "Semi-Auto"]),
                int(dice.uniform(5000, 16000) * (age + 0.2)),
                fuel,
                dice.choice([0, 20, 145, 150]),
                round(dice.uniform(25, 75), 1),
                dice.choice([1.0, 1.2, 1.5, 2.0, 3.0]),
            ])  # fmt: skip
