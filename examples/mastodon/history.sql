-- What the toots of all days say, in batch, into new tables. Toots that were deleted since are left out.
CREATE EXTERNAL TABLE filtered_toots STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}' OPTIONS (table 'filtered_toots');

CREATE EXTERNAL TABLE deleted_toots STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}' OPTIONS (table 'deleted_toots');

CREATE EXTERNAL TABLE active_users STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'active_users', mode 'overwrite', key 'username');

CREATE EXTERNAL TABLE toots_of_active_users STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'toots_of_active_users', mode 'overwrite', key 'toot_id');

CREATE EXTERNAL TABLE toots_by_day_and_hashtag STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'toots_by_day_and_hashtag', mode 'overwrite', key 'day,hashtag');

CREATE EXTERNAL TABLE top_hashtags STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'top_hashtags', mode 'overwrite', key 'hashtag');

CREATE EXTERNAL TABLE toots_per_day STORED AS POSTGRES
LOCATION 'postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${PGDATABASE}'
OPTIONS (table 'toots_per_day', mode 'overwrite', key 'day');

CREATE VIEW toots AS
SELECT t.* FROM filtered_toots t LEFT ANTI JOIN deleted_toots d ON t.toot_id = d.toot_id;

CREATE VIEW tagged AS
SELECT CAST(created_at AS DATE) AS day, unnest(string_to_array(hashtags, ',')) AS hashtag FROM toots WHERE hashtags <> '';

-- Who writes a lot: more than 20 toots, and what they wrote.
CREATE VIEW active AS SELECT username, count(*) AS toots FROM toots GROUP BY username HAVING count(*) > 20;

INSERT INTO active_users SELECT * FROM active;

INSERT INTO toots_of_active_users
SELECT t.toot_id, t.username, a.toots, t.text FROM toots t JOIN active a ON t.username = a.username;

INSERT INTO toots_by_day_and_hashtag
SELECT day, hashtag, count(*) AS toots FROM tagged GROUP BY day, hashtag;

-- The most frequent ones; of two that are as frequent the first by name.
INSERT INTO top_hashtags
SELECT hashtag, count(*) AS toots FROM tagged GROUP BY hashtag ORDER BY toots DESC, hashtag LIMIT 10;

INSERT INTO toots_per_day
SELECT CAST(created_at AS DATE) AS day, count(*) AS toots, avg(character_length(text)) AS avg_length
FROM toots GROUP BY 1;
