-- Toots from Kafka as they come, cleaned, then at once: each toot, toots per window, average length per author and per hashtag.
SET essaim.trigger = '500 milliseconds';

-- The watermark follows the toots' own times. They come up to 20 minutes late, and now and then twice.
CREATE UNBOUNDED EXTERNAL TABLE mastodon_stream (
  id VARCHAR, created_at TIMESTAMP, content VARCHAR, user_id VARCHAR, username VARCHAR, acct VARCHAR,
  reblogs_count BIGINT, favourites_count BIGINT, tags VARCHAR[], language VARCHAR, followers_count BIGINT
) STORED AS KAFKA LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_TOPIC}'
OPTIONS (format 'json', event_time 'created_at', watermark_delay '2 hours', idle_timeout '1 minute', on_error 'dead_letter');

CREATE EXTERNAL TABLE filtered_toots STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'filtered_toots', mode 'upsert', key 'toot_id');

CREATE EXTERNAL TABLE toots_time_window_aggregates STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'toots_time_window_aggregates', mode 'upsert', key 'window_start,window_end');

CREATE EXTERNAL TABLE user_avg_length STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'user_avg_length', mode 'upsert', key 'username');

CREATE EXTERNAL TABLE hashtag_avg_length STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'hashtag_avg_length', mode 'upsert', key 'hashtag');

-- Each toot once, without addresses, in lower case, with single blanks.
CREATE VIEW toots AS
SELECT DISTINCT ON (id) id, created_at, username, acct, language, tags, text, reblogs_count, favourites_count
FROM (
  SELECT *, trim(regexp_replace(lower(regexp_replace(content, 'https?://\S+', ' ', 'g')), '\s+', ' ', 'g')) AS text
  FROM mastodon_stream
  WHERE id IS NOT NULL AND content IS NOT NULL
)
WHERE text <> '';

INSERT INTO filtered_toots
SELECT id AS toot_id, created_at, username, acct, language, text, array_to_string(tags, ',') AS hashtags, reblogs_count, favourites_count
FROM toots;

INSERT INTO toots_time_window_aggregates
SELECT window_start, window_end, count(*) AS toots, avg(character_length(text)) AS avg_length
FROM toots GROUP BY window(created_at, INTERVAL '1 hour');

INSERT INTO user_avg_length
SELECT username, count(*) AS toots, avg(character_length(text)) AS avg_length
FROM toots GROUP BY username;

INSERT INTO hashtag_avg_length
SELECT hashtag, count(*) AS toots, avg(character_length(text)) AS avg_length
FROM (SELECT unnest(tags) AS hashtag, text FROM toots) AS tagged
GROUP BY hashtag;
