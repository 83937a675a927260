-- Each toot once, with the place that Kafka keeps it at: what the test compares everything else with.
SET essaim.trigger = '500 milliseconds';

CREATE UNBOUNDED EXTERNAL TABLE toots (created_at TIMESTAMP, language VARCHAR)
STORED AS KAFKA LOCATION 'kafka://kafka:9092/toots' OPTIONS (format 'json');

CREATE EXTERNAL TABLE seen STORED AS POSTGRES
LOCATION 'postgres://essaim:${PGPASSWORD}@postgres:5432/essaim' OPTIONS (table 'seen');

INSERT INTO seen SELECT _partition AS part, _offset AS place, created_at, language FROM toots;
