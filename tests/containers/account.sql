-- What is wrong with the results, given that :sent toots were sent; nothing if all is right.
WITH wrong(what) AS (
  SELECT format('%s toots are in seen, %s places of Kafka', count(*), count(DISTINCT (part, place)))
  FROM seen HAVING count(*) <> :sent OR count(DISTINCT (part, place)) <> :sent
  UNION ALL
  SELECT format('partition %s: %s toots, but the last place is %s', part, count(*), max(place))
  FROM seen GROUP BY part HAVING count(*) <> max(place) + 1
  UNION ALL
  SELECT format('%s toots are counted in toots_by_language', sum(toots))
  FROM toots_by_language HAVING sum(toots) IS DISTINCT FROM :sent
  UNION ALL
  SELECT format('window %s, %s: %s toots, but %s counted', window_start, language, true_toots, toots)
  FROM toots_by_language FULL JOIN (
    SELECT date_bin('10 seconds', created_at, '2000-01-01') AS window_start, language, count(*) AS true_toots
    FROM seen GROUP BY 1, 2
  ) AS truth USING (window_start, language)
  WHERE toots IS DISTINCT FROM true_toots
)
SELECT what FROM wrong LIMIT 10
