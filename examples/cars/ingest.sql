-- Two sources at once into two topics: a file of used cars, played as if people were filling in a form, and news of car makers.
SET essaim.trigger = '100 milliseconds';

CREATE UNBOUNDED EXTERNAL TABLE cars_file (
  brand VARCHAR, model VARCHAR, year INT, price DECIMAL(10, 2), transmission VARCHAR, mileage BIGINT, "fuelType" VARCHAR,
  tax INT, mpg DOUBLE, "engineSize" DOUBLE
) STORED AS CSV LOCATION '${ESSAIM_VAR_CARS}' OPTIONS (has_header 'true', rows_per_second '500', on_error 'skip');

CREATE UNBOUNDED EXTERNAL TABLE news_api (
  id BIGINT, title VARCHAR, body VARCHAR, published_at VARCHAR, source STRUCT<name VARCHAR>, keywords VARCHAR[],
  sentiment STRUCT<title STRUCT<polarity VARCHAR, score DOUBLE>>
) STORED AS HTTP LOCATION '${ESSAIM_VAR_NEWS}/news/stories?per_page=20'
OPTIONS (
  'header.X-AYLIEN-NewsAPI-Application-ID' '${ESSAIM_VAR_NEWS_ID}', 'header.X-AYLIEN-NewsAPI-Application-Key' '${ESSAIM_VAR_NEWS_KEY}',
  json_path '$.stories[*]', paging 'cursor', cursor_param 'cursor', cursor_path '$.next_page_cursor',
  interval '${ESSAIM_VAR_NEWS_INTERVAL}'
);

CREATE EXTERNAL TABLE used_cars STORED AS KAFKA LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_CARS_TOPIC}' OPTIONS (format 'json', key 'brand');
CREATE EXTERNAL TABLE car_news STORED AS KAFKA LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_NEWS_TOPIC}' OPTIONS (format 'json', key 'id');

-- The form was sent when the row was played.
INSERT INTO used_cars
SELECT _replayed_at AS listed_at, trim(brand) AS brand, trim(model) AS model, year, price, transmission, mileage, "fuelType", tax, mpg, "engineSize"
FROM cars_file WHERE price > 0;

INSERT INTO car_news
SELECT id, title, body, published_at, source['name'] AS source, keywords, sentiment['title']['polarity'] AS polarity
FROM news_api;
