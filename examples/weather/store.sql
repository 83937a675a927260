-- Every message whole into MongoDB, as it comes.
SET essaim.trigger = '500 milliseconds';

CREATE UNBOUNDED EXTERNAL TABLE weather (
  id BIGINT, name VARCHAR, dt BIGINT,
  coord STRUCT<lon DOUBLE, lat DOUBLE>,
  weather STRUCT<id BIGINT, main VARCHAR, description VARCHAR>[],
  main STRUCT<temp DOUBLE, feels_like DOUBLE, temp_min DOUBLE, temp_max DOUBLE, pressure BIGINT, humidity BIGINT>,
  visibility BIGINT,
  wind STRUCT<speed DOUBLE, deg BIGINT>,
  clouds STRUCT<"all" BIGINT>,
  rain STRUCT<"1h" DOUBLE>,
  snow STRUCT<"1h" DOUBLE>,
  sys STRUCT<country VARCHAR, sunrise BIGINT, sunset BIGINT>,
  timezone BIGINT
) STORED AS KAFKA LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_TOPIC}' OPTIONS (format 'json');

-- With its columns in the order of the INSERT: those of documents that are there have an order of their own.
CREATE EXTERNAL TABLE observations (
  id BIGINT, name VARCHAR, dt BIGINT,
  coord STRUCT<lon DOUBLE, lat DOUBLE>,
  weather STRUCT<id BIGINT, main VARCHAR, description VARCHAR>[],
  main STRUCT<temp DOUBLE, feels_like DOUBLE, temp_min DOUBLE, temp_max DOUBLE, pressure BIGINT, humidity BIGINT>,
  visibility BIGINT,
  wind STRUCT<speed DOUBLE, deg BIGINT>,
  clouds STRUCT<"all" BIGINT>,
  rain STRUCT<"1h" DOUBLE>,
  snow STRUCT<"1h" DOUBLE>,
  sys STRUCT<country VARCHAR, sunrise BIGINT, sunset BIGINT>,
  timezone BIGINT
) STORED AS MONGODB LOCATION '${ESSAIM_VAR_MONGODB}'
OPTIONS (collection 'observations');

INSERT INTO observations
SELECT id, name, dt, coord, weather, main, visibility, wind, clouds, rain, snow, sys, timezone FROM weather;
