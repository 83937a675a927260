-- The job of `make demo`: toots from Kafka as they are written, their authors from Postgres, into two Postgres tables.
-- The master fills in ${…} from its environment.

CREATE UNBOUNDED EXTERNAL TABLE toots (
  id BIGINT,
  created_at TIMESTAMP,
  language VARCHAR,
  content VARCHAR,
  tags VARCHAR[],
  account STRUCT<id BIGINT, username VARCHAR>
) STORED AS KAFKA LOCATION 'kafka://${DEMO_KAFKA}/toots'
OPTIONS (format 'json', starting_offsets 'earliest', event_time 'created_at', watermark_delay '10 seconds');

CREATE EXTERNAL TABLE accounts STORED AS POSTGRES LOCATION '${DEMO_POSTGRES}'
OPTIONS (table 'accounts');

CREATE EXTERNAL TABLE toots_by_language STORED AS POSTGRES LOCATION '${DEMO_POSTGRES}'
OPTIONS (table 'toots_by_language', mode 'upsert', key 'window_start,language');

CREATE EXTERNAL TABLE toots_by_hashtag STORED AS POSTGRES LOCATION '${DEMO_POSTGRES}'
OPTIONS (table 'toots_by_hashtag', mode 'upsert', key 'window_start,hashtag');

SET essaim.trigger = '50 milliseconds';
-- Accounts change less often than every epoch.
SET essaim.table_refresh = '1 minute';

-- How much is written in which language, and how long it is.
INSERT INTO toots_by_language
SELECT
  window_start,
  language,
  count(*) AS toots,
  avg(character_length(regexp_replace(content, '<[^>]*>', '', 'g'))) AS avg_length
FROM toots
GROUP BY window(created_at, INTERVAL '10 seconds'), language;

-- What is talked about, and before how many followers.
INSERT INTO toots_by_hashtag
SELECT window_start, hashtag, count(*) AS toots, sum(followers_count) AS followers_reached
FROM (SELECT created_at, account['id'] AS account_id, unnest(tags) AS hashtag FROM toots) AS tagged
JOIN accounts ON accounts.id = tagged.account_id
GROUP BY window(created_at, INTERVAL '5 seconds'), hashtag;
