-- Events from Kafka, exploded to one row a reading: a new CSV file every 10 seconds, and one merged CSV that grows.
-- What is no event is skipped and counted; `essaim status` shows how many.
CREATE UNBOUNDED EXTERNAL TABLE device_data (
  "eventId" VARCHAR,
  "eventOffset" BIGINT,
  "eventPublisher" VARCHAR,
  "customerId" VARCHAR,
  data STRUCT<devices STRUCT<"deviceId" VARCHAR, temperature INT, measure VARCHAR, status VARCHAR>[]>,
  "eventTime" TIMESTAMP
) STORED AS KAFKA
LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_TOPIC}' OPTIONS (on_error 'skip');

CREATE EXTERNAL TABLE files STORED AS CSV LOCATION '${ESSAIM_VAR_OUT}/readings/';
CREATE EXTERNAL TABLE merged STORED AS CSV LOCATION '${ESSAIM_VAR_OUT}/merged.csv';

SET essaim.trigger = '10 seconds';

CREATE VIEW readings AS
SELECT
  event_id, event_offset, publisher, customer_id,
  device['deviceId'] AS device_id, device['temperature'] AS temperature, device['measure'] AS measure, device['status'] AS status,
  event_time
FROM (
  SELECT
    "eventId" AS event_id, "eventOffset" AS event_offset, "eventPublisher" AS publisher, "customerId" AS customer_id,
    "eventTime" AS event_time, unnest(data['devices']) AS device
  FROM device_data
);

INSERT INTO files SELECT * FROM readings;
INSERT INTO merged SELECT * FROM readings;
