-- The first job of docker/compose.yaml: toots from Kafka as they are written, their authors from Postgres, counted every
-- ten seconds into two Postgres tables. The job creates the tables. The master fills in ${PGPASSWORD} from its environment.

CREATE UNBOUNDED EXTERNAL TABLE toots (
  id BIGINT,
  created_at TIMESTAMP,
  language VARCHAR,
  content VARCHAR,
  tags VARCHAR[],
  account STRUCT<id BIGINT, username VARCHAR>
) STORED AS KAFKA LOCATION 'kafka://kafka:9092/toots'
OPTIONS (format 'json', event_time 'created_at', watermark_delay '10 seconds', idle_timeout '1 minute');

CREATE EXTERNAL TABLE accounts STORED AS POSTGRES
LOCATION 'postgres://essaim:${PGPASSWORD}@postgres:5432/essaim' OPTIONS (table 'accounts');

CREATE EXTERNAL TABLE toots_by_language STORED AS POSTGRES
LOCATION 'postgres://essaim:${PGPASSWORD}@postgres:5432/essaim'
OPTIONS (table 'toots_by_language', mode 'upsert', key 'window_start,language');

CREATE EXTERNAL TABLE toots_by_region STORED AS POSTGRES
LOCATION 'postgres://essaim:${PGPASSWORD}@postgres:5432/essaim'
OPTIONS (table 'toots_by_region', mode 'upsert', key 'window_start,region,hashtag');

-- An epoch begins every so often: what arrived is in Postgres about so much later.
SET essaim.trigger = '500 milliseconds';
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

-- What is talked about where, and before how many followers.
INSERT INTO toots_by_region
SELECT window_start, region, hashtag, count(*) AS toots, sum(followers_count) AS followers_reached
FROM (SELECT created_at, account['id'] AS account_id, unnest(tags) AS hashtag FROM toots) AS tagged
JOIN accounts ON accounts.id = tagged.account_id
GROUP BY window(created_at, INTERVAL '10 seconds'), region, hashtag;
