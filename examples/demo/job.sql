-- The job of `make demo`: toots from Kafka, their authors from Postgres, two new Postgres tables.
-- The master fills in ${…} from its environment.

CREATE EXTERNAL TABLE toots (
  id BIGINT,
  created_at TIMESTAMP,
  language VARCHAR,
  content VARCHAR,
  tags VARCHAR[],
  account STRUCT<id BIGINT, username VARCHAR>
) STORED AS KAFKA LOCATION 'kafka://${DEMO_KAFKA}/toots'
OPTIONS (format 'json');

CREATE EXTERNAL TABLE accounts STORED AS POSTGRES LOCATION '${DEMO_POSTGRES}'
OPTIONS (table 'accounts');

CREATE EXTERNAL TABLE toots_per_minute STORED AS POSTGRES LOCATION '${DEMO_POSTGRES}'
OPTIONS (table 'toots_per_minute', mode 'overwrite', key 'minute,language');

CREATE EXTERNAL TABLE hashtags_per_region STORED AS POSTGRES LOCATION '${DEMO_POSTGRES}'
OPTIONS (table 'hashtags_per_region', mode 'overwrite', key 'region,hashtag');

-- How much is written each minute, in which language, how long, and before how many followers.
INSERT INTO toots_per_minute
SELECT
  date_trunc('minute', created_at) AS minute,
  language,
  count(*) AS toots,
  avg(character_length(regexp_replace(content, '<[^>]*>', '', 'g'))) AS avg_length,
  sum(followers_count) AS followers_reached
FROM toots JOIN accounts ON accounts.id = toots.account['id']
GROUP BY 1, 2;

-- What is talked about where.
INSERT INTO hashtags_per_region
SELECT region, hashtag, count(*) AS toots, sum(followers_count) AS followers_reached
FROM (SELECT account['id'] AS account_id, unnest(tags) AS hashtag FROM toots) AS tagged
JOIN accounts ON accounts.id = tagged.account_id
GROUP BY region, hashtag;
