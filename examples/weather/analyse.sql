-- What the measurements say, once from the topic and once from MongoDB: both must say the same.
CREATE EXTERNAL TABLE topic (
  name VARCHAR, dt BIGINT,
  coord STRUCT<lon DOUBLE, lat DOUBLE>,
  weather STRUCT<main VARCHAR>[],
  main STRUCT<temp DOUBLE, feels_like DOUBLE, pressure BIGINT, humidity BIGINT>,
  wind STRUCT<speed DOUBLE>, clouds STRUCT<"all" BIGINT>, rain STRUCT<"1h" DOUBLE>, snow STRUCT<"1h" DOUBLE>
) STORED AS KAFKA LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_TOPIC}' OPTIONS (format 'json');

CREATE EXTERNAL TABLE collection (
  name VARCHAR, dt BIGINT,
  coord STRUCT<lon DOUBLE, lat DOUBLE>,
  weather STRUCT<main VARCHAR>[],
  main STRUCT<temp DOUBLE, feels_like DOUBLE, pressure BIGINT, humidity BIGINT>,
  wind STRUCT<speed DOUBLE>, clouds STRUCT<"all" BIGINT>, rain STRUCT<"1h" DOUBLE>, snow STRUCT<"1h" DOUBLE>
) STORED AS MONGODB LOCATION '${ESSAIM_VAR_MONGODB}' OPTIONS (collection 'observations');

-- Which city lies in which region.
CREATE EXTERNAL TABLE regions STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}' OPTIONS (table 'regions');

CREATE EXTERNAL TABLE correlations STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'correlations', mode 'overwrite', key 'source,x,y');

CREATE EXTERNAL TABLE weather_by_region STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'weather_by_region', mode 'overwrite', key 'source,region');

CREATE EXTERNAL TABLE weather_by_city STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'weather_by_city', mode 'overwrite', key 'source,city');

CREATE VIEW measured AS
SELECT
  source, name AS city, dt, coord['lon'] AS longitude, coord['lat'] AS latitude, weather[1]['main'] AS condition,
  -- With two digits, as they are measured: sums of decimals do not depend on the order of rows.
  CAST(main['temp'] AS DECIMAL(6, 2)) AS temperature, CAST(main['feels_like'] AS DECIMAL(6, 2)) AS feels_like,
  main['pressure'] AS pressure, main['humidity'] AS humidity, CAST(wind['speed'] AS DECIMAL(6, 2)) AS wind, clouds['all'] AS clouds,
  -- No rain is told by leaving it out.
  CAST(coalesce(rain['1h'], 0) AS DECIMAL(6, 2)) AS rain, CAST(coalesce(snow['1h'], 0) AS DECIMAL(6, 2)) AS snow
FROM (
  SELECT 'topic' AS source, name, dt, coord, weather, main, wind, clouds, rain, snow FROM topic
  UNION ALL
  SELECT 'mongodb' AS source, name, dt, coord, weather, main, wind, clouds, rain, snow FROM collection
);

-- All pairs of all numbers, in one query.
CREATE VIEW numbers AS
SELECT source, [temperature, feels_like, CAST(pressure AS DECIMAL(6, 2)), CAST(humidity AS DECIMAL(6, 2)), wind, CAST(clouds AS DECIMAL(6, 2)), rain, snow] AS v
FROM measured;

CREATE VIEW names AS
SELECT * FROM (VALUES (1, 'temperature'), (2, 'feels like'), (3, 'pressure'), (4, 'humidity'), (5, 'wind'), (6, 'clouds'), (7, 'rain'), (8, 'snow')) AS n(i, name);

INSERT INTO correlations
SELECT source, a.name AS x, b.name AS y, corr(v[a.i], v[b.i]) AS correlation
FROM numbers CROSS JOIN names a CROSS JOIN names b
GROUP BY source, a.name, b.name;

INSERT INTO weather_by_region
SELECT
  source, region, count(*) AS measurements, avg(humidity) AS mean_humidity, avg(temperature) AS mean_temperature,
  count(DISTINCT city) FILTER (WHERE condition = 'Rain') AS cities_with_rain,
  count(DISTINCT city) FILTER (WHERE condition = 'Snow') AS cities_with_snow
FROM measured JOIN regions USING (city)
GROUP BY source, region;

INSERT INTO weather_by_city
SELECT
  source, city, max(longitude) AS longitude, max(latitude) AS latitude, count(*) AS measurements,
  avg(temperature) AS mean_temperature, avg(humidity) AS mean_humidity, avg(wind) AS mean_wind, sum(rain) AS rain, sum(snow) AS snow
FROM measured GROUP BY source, city;
