-- The weather of twenty cities, asked for again and again, into a topic: a message for each city and time.
SET essaim.trigger = '500 milliseconds';

CREATE UNBOUNDED EXTERNAL TABLE weather_api (
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
) STORED AS HTTP LOCATION '${ESSAIM_VAR_WEATHER}/data/2.5/weather?q={city}&units=metric&appid=${ESSAIM_VAR_WEATHER_KEY}'
OPTIONS (
  'url.city' '["Oslo,NO", "Stockholm,SE", "Helsinki,FI", "Copenhagen,DK", "Reykjavik,IS", "Paris,FR", "London,GB", "Dublin,IE", "Amsterdam,NL", "Brussels,BE", "Berlin,DE", "Warsaw,PL", "Prague,CZ", "Vienna,AT", "Budapest,HU", "Madrid,ES", "Lisbon,PT", "Rome,IT", "Athens,GR", "Valletta,MT"]',
  interval '${ESSAIM_VAR_WEATHER_INTERVAL}'
);

CREATE EXTERNAL TABLE weather STORED AS KAFKA LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_TOPIC}'
OPTIONS (format 'json', key 'id');

-- A city measures every ten minutes: what has been asked for twice is there once. A measurement is remembered for a day.
SET essaim.state_ttl = '1 day';
INSERT INTO weather
SELECT DISTINCT ON (id, dt) id, name, dt, coord, weather, main, visibility, wind, clouds, rain, snow, sys, timezone
FROM weather_api;
