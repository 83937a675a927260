-- Both topics in one job: prices in windows of 100 ms, what the news speak of, and each joined with the other.
SET essaim.trigger = '200 milliseconds';

CREATE UNBOUNDED EXTERNAL TABLE used_cars (
  listed_at TIMESTAMP, brand VARCHAR, model VARCHAR, year INT, price DECIMAL(10, 2), mileage BIGINT, "fuelType" VARCHAR
) STORED AS KAFKA LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_CARS_TOPIC}'
OPTIONS (format 'json', event_time 'listed_at', watermark_delay '5 seconds', idle_timeout '10 seconds');

CREATE UNBOUNDED EXTERNAL TABLE car_news (id BIGINT, title VARCHAR, published_at TIMESTAMP, keywords VARCHAR[], polarity VARCHAR)
STORED AS KAFKA LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_NEWS_TOPIC}'
OPTIONS (format 'json', event_time 'published_at', watermark_delay '5 seconds', idle_timeout '10 seconds');

-- Where a maker is at home: a table that does not move.
CREATE EXTERNAL TABLE brands STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}' OPTIONS (table 'brands');
SET essaim.table_refresh = '1 minute';

CREATE EXTERNAL TABLE prices STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'prices', mode 'upsert', key 'window_start,brand');

CREATE EXTERNAL TABLE mentions STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'mentions', mode 'upsert', key 'window_start,brand');

CREATE EXTERNAL TABLE attention STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'attention', mode 'upsert', key 'window_start,brand');

CREATE EXTERNAL TABLE prices_by_country STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'prices_by_country', mode 'upsert', key 'country,fuel');

-- Only makers count among the keywords.
CREATE VIEW stories AS
SELECT published_at, keyword, polarity
FROM (SELECT published_at, polarity, unnest(keywords) AS keyword FROM car_news) AS taken_apart
WHERE keyword <> 'cars';

INSERT INTO prices
SELECT window_start, window_end, brand, count(*) AS cars, min(price) AS lowest, avg(price) AS mean, max(price) AS highest
FROM used_cars GROUP BY window(listed_at, INTERVAL '100 milliseconds'), brand;

INSERT INTO mentions
SELECT window_start, window_end, keyword AS brand, count(*) AS mentions, count(*) FILTER (WHERE polarity = 'negative') AS negative
FROM stories GROUP BY window(published_at, INTERVAL '2 seconds'), keyword;

-- Stream with stream: of the same two seconds, what is said of a maker and what its cars cost.
SET essaim.output_mode = 'append';
INSERT INTO attention
SELECT c.window_start, c.brand, n.mentions, c.cars, c.mean
FROM (
  SELECT window_start, brand, count(*) AS cars, avg(price) AS mean
  FROM used_cars GROUP BY window(listed_at, INTERVAL '2 seconds'), brand
) AS c
JOIN (
  SELECT window_start, keyword AS brand, count(*) AS mentions
  FROM stories GROUP BY window(published_at, INTERVAL '2 seconds'), keyword
) AS n ON c.window_start = n.window_start AND c.brand = n.brand;

-- Stream with table.
SET essaim.output_mode = 'update';
INSERT INTO prices_by_country
SELECT country, "fuelType" AS fuel, count(*) AS cars, avg(price) AS mean, sum(mileage) AS mileage
FROM used_cars JOIN brands ON used_cars.brand = brands.brand
GROUP BY country, "fuelType";
