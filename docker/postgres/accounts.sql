-- The accounts that write the toots of the demo.
CREATE TABLE accounts (
  id bigint PRIMARY KEY, username text NOT NULL, region text NOT NULL, followers_count bigint NOT NULL
);
INSERT INTO accounts
SELECT id, 'user' || id,
  (ARRAY['Africa', 'Asia', 'Europe', 'North America', 'Oceania', 'South America'])[1 + id * 7 % 6],
  id * 7919 % 10007
FROM generate_series(1::bigint, 5000) AS id;
-- So that the job is planned with what the table really holds, and not anew once the server has found out by itself.
ANALYZE accounts;
