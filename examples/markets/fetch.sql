-- The market as it stands, asked for on a schedule, into a bucket: a JSON file each time, a line a coin.
SET essaim.trigger = '100 milliseconds';

CREATE UNBOUNDED EXTERNAL TABLE coingecko (
  id VARCHAR, symbol VARCHAR, name VARCHAR, current_price DOUBLE, market_cap BIGINT, total_volume BIGINT,
  high_24h DOUBLE, low_24h DOUBLE, price_change_24h DOUBLE, price_change_percentage_24h DOUBLE,
  ath DOUBLE, ath_date VARCHAR, atl DOUBLE, atl_date VARCHAR, last_updated VARCHAR,
  roi STRUCT<currency VARCHAR, percentage DOUBLE, times DOUBLE>
) STORED AS HTTP LOCATION '${ESSAIM_VAR_COINGECKO}/api/v3/coins/markets?vs_currency=usd&per_page=100&page=1'
OPTIONS (json_path '$[*]', interval '${ESSAIM_VAR_MARKET_INTERVAL}');

-- With its columns, as there may be files of others, which need not be lines.
CREATE EXTERNAL TABLE snapshots (
  id VARCHAR, symbol VARCHAR, name VARCHAR, current_price DOUBLE, market_cap BIGINT, total_volume BIGINT,
  high_24h DOUBLE, low_24h DOUBLE, price_change_24h DOUBLE, price_change_percentage_24h DOUBLE,
  ath DOUBLE, ath_date VARCHAR, atl DOUBLE, atl_date VARCHAR, last_updated VARCHAR,
  roi STRUCT<currency VARCHAR, percentage DOUBLE, times DOUBLE>
) STORED AS JSON LOCATION 's3://${ESSAIM_VAR_BUCKET}/raw/';

INSERT INTO snapshots
SELECT id, symbol, name, current_price, market_cap, total_volume, high_24h, low_24h, price_change_24h, price_change_percentage_24h,
  ath, ath_date, atl, atl_date, last_updated, roi
FROM coingecko;
