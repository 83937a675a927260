-- How many posts an hour a public timeline has, to be seen beside the prices.
SET essaim.trigger = '500 milliseconds';

CREATE UNBOUNDED EXTERNAL TABLE posts (id VARCHAR, created_at TIMESTAMP)
STORED AS SSE LOCATION '${ESSAIM_VAR_MASTODON}/api/v1/streaming/public'
OPTIONS (events 'update', 'header.Authorization' 'Bearer ${ESSAIM_VAR_MASTODON_TOKEN}', event_time 'created_at', watermark_delay '1 day', on_error 'skip');

CREATE EXTERNAL TABLE posts_per_hour STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'posts_per_hour', mode 'upsert', key 'window_start');

INSERT INTO posts_per_hour
SELECT window_start, count(*) AS posts FROM posts GROUP BY window(created_at, INTERVAL '1 hour');
