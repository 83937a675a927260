-- The devices: 500 events a second, each with 0 to 3 readings, some of them without a customer, an id or a status.
CREATE UNBOUNDED EXTERNAL TABLE ticks STORED AS GENERATOR LOCATION ''
OPTIONS (rows_per_second '500', number_of_rows '30000', seed '42');

-- One message an event, as JSON; its key is the event's UUID. Nulls are left out.
CREATE EXTERNAL TABLE device_data STORED AS KAFKA
LOCATION 'kafka://${KAFKA_BROKERS}/${ESSAIM_VAR_TOPIC}' OPTIONS (key 'eventId');

SET essaim.trigger = '200 milliseconds';

INSERT INTO device_data
SELECT
  uuid_of(seed, 'event') AS "eventId",
  value AS "eventOffset",
  'device' AS "eventPublisher",
  CASE WHEN uniform(0.0, 1.0, seed, 'no customer') >= 0.1
       THEN 'CI' || lpad(CAST(uniform(1, 40, seed, 'customer') AS VARCHAR), 5, '0') END AS "customerId",
  named_struct('devices', array_slice([
    named_struct(
      'deviceId', CASE WHEN uniform(0.0, 1.0, seed, 'no id', 1) >= 0.05 THEN 'D' || lpad(CAST(uniform(1, 30, seed, 'id', 1) AS VARCHAR), 3, '0') END,
      'temperature', CAST(round(normal(21.0, 6.0, seed, 'temperature', 1)) AS INT),
      'measure', 'C',
      'status', ['SUCCESS', 'SUCCESS', 'SUCCESS', 'STANDBY', 'ERROR', NULL][uniform(1, 6, seed, 'status', 1)]),
    named_struct(
      'deviceId', CASE WHEN uniform(0.0, 1.0, seed, 'no id', 2) >= 0.05 THEN 'D' || lpad(CAST(uniform(1, 30, seed, 'id', 2) AS VARCHAR), 3, '0') END,
      'temperature', CAST(round(normal(21.0, 6.0, seed, 'temperature', 2)) AS INT),
      'measure', 'C',
      'status', ['SUCCESS', 'SUCCESS', 'SUCCESS', 'STANDBY', 'ERROR', NULL][uniform(1, 6, seed, 'status', 2)]),
    named_struct(
      'deviceId', CASE WHEN uniform(0.0, 1.0, seed, 'no id', 3) >= 0.05 THEN 'D' || lpad(CAST(uniform(1, 30, seed, 'id', 3) AS VARCHAR), 3, '0') END,
      'temperature', CAST(round(normal(21.0, 6.0, seed, 'temperature', 3)) AS INT),
      'measure', 'C',
      'status', ['SUCCESS', 'SUCCESS', 'SUCCESS', 'STANDBY', 'ERROR', NULL][uniform(1, 6, seed, 'status', 3)])
  ], 1, uniform(0, 3, seed, 'devices'))) AS data,
  timestamp AS "eventTime"
FROM ticks;
