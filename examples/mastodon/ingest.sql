-- The public timeline into a topic: events cannot be read again, and a topic can.
SET essaim.trigger = '200 milliseconds';

CREATE UNBOUNDED EXTERNAL TABLE updates (
  id VARCHAR, created_at VARCHAR, content VARCHAR, visibility VARCHAR, language VARCHAR,
  replies_count BIGINT, reblogs_count BIGINT, favourites_count BIGINT,
  tags STRUCT<name VARCHAR>[],
  account STRUCT<id VARCHAR, username VARCHAR, acct VARCHAR, display_name VARCHAR,
                 followers_count BIGINT, following_count BIGINT, statuses_count BIGINT>
) STORED AS SSE LOCATION '${ESSAIM_VAR_MASTODON}/api/v1/streaming/public'
OPTIONS (events 'update', 'header.Authorization' 'Bearer ${ESSAIM_VAR_MASTODON_TOKEN}', on_error 'skip');

-- What comes with a deletion is the toot's id alone, and no JSON object.
CREATE UNBOUNDED EXTERNAL TABLE deletes
STORED AS SSE LOCATION '${ESSAIM_VAR_MASTODON}/api/v1/streaming/public'
OPTIONS (events 'delete', format 'raw', 'header.Authorization' 'Bearer ${ESSAIM_VAR_MASTODON_TOKEN}');

CREATE EXTERNAL TABLE mastodon_stream STORED AS KAFKA LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_TOPIC}'
OPTIONS (format 'json', key 'id');

CREATE EXTERNAL TABLE deleted_toots STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'deleted_toots', mode 'upsert', key 'toot_id');

-- Without tags, and with what the common entities stand for.
CREATE VIEW texts AS
SELECT *,
  replace(replace(replace(replace(replace(
    regexp_replace(content, '<[^>]*>', ' ', 'g'),
  '&lt;', '<'), '&gt;', '>'), '&quot;', '"'), '&#39;', ''''), '&amp;', '&') AS text
FROM updates;

INSERT INTO mastodon_stream
SELECT
  id, created_at, text AS content, account['id'] AS user_id, account['username'] AS username, account['acct'] AS acct,
  account['display_name'] AS display_name, visibility, reblogs_count, favourites_count, tags['name'] AS tags, language,
  replies_count, account['followers_count'] AS followers_count, account['following_count'] AS following_count,
  account['statuses_count'] AS statuses_count
FROM texts
-- The keywords: a toot that has one of them stays.
WHERE regexp_like(text, 'data|données|daten|datos|データ|climat|clima|klima|musi|música|音楽|rust|open source|logiciel libre|freie software', 'i');

-- An id is remembered for a day, should its deletion be told twice.
SET essaim.state_ttl = '1 day';
INSERT INTO deleted_toots SELECT DISTINCT data AS toot_id FROM deletes;
