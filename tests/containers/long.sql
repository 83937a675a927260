-- Tasks of a second or more, so that a worker that is stopped has some to finish.
CREATE EXTERNAL TABLE numbers STORED AS GENERATOR LOCATION '' OPTIONS (number_of_rows '200000000');

CREATE EXTERNAL TABLE digits STORED AS POSTGRES
LOCATION 'postgres://essaim:${PGPASSWORD}@postgres:5432/essaim' OPTIONS (table 'digits', mode 'upsert', key 'digit');

INSERT INTO digits SELECT value % 10 AS digit, count(*) AS numbers FROM numbers GROUP BY value % 10;
