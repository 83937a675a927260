-- New files in the bucket as they appear: exploded, dated, filtered, with the volatility of a day, to another prefix as CSV.
SET essaim.trigger = '500 milliseconds';

-- One object a line, as fetch.sql writes them, or one array over many lines, as others put them there.
CREATE UNBOUNDED EXTERNAL TABLE snapshots (
  id VARCHAR, symbol VARCHAR, name VARCHAR, current_price DOUBLE, market_cap BIGINT, total_volume BIGINT,
  high_24h DOUBLE, low_24h DOUBLE, price_change_24h DOUBLE, price_change_percentage_24h DOUBLE,
  ath DOUBLE, ath_date TIMESTAMP, atl DOUBLE, atl_date TIMESTAMP, last_updated TIMESTAMP,
  roi STRUCT<currency VARCHAR, percentage DOUBLE, times DOUBLE>
) STORED AS JSON LOCATION 's3://${ESSAIM_VAR_BUCKET}/raw/' OPTIONS (multi_line 'true', on_error 'skip');

CREATE EXTERNAL TABLE volatility STORED AS CSV LOCATION 's3://${ESSAIM_VAR_BUCKET}/volatility/' OPTIONS (has_header 'true');

CREATE EXTERNAL TABLE coin_prices STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'coin_prices', mode 'upsert', key 'id,last_updated');

INSERT INTO volatility
SELECT
  id, symbol, name, current_price, market_cap, total_volume, high_24h, low_24h, price_change_24h, price_change_percentage_24h,
  ath, ath_date, atl, atl_date, roi['percentage'] AS roi_percentage, last_updated,
  CAST(date_part('hour', last_updated) AS INT) AS hour, to_char(last_updated, '%A') AS day_of_week,
  (high_24h - low_24h) / current_price * 100 AS volatility_24h
FROM snapshots
WHERE total_volume > 1000;

INSERT INTO coin_prices
SELECT id, last_updated, current_price AS price, total_volume
FROM snapshots
WHERE id IN ('bitcoin', 'ethereum', 'solana', 'cardano');
