-- What the users of `usage_by` add up to by week (from Thursday to Thursday: the first of January of 1970 was one): by user
-- there are many rows of days. Times are in those alone.
CREATE TABLE usage_user_weeks (
    org                    TEXT NOT NULL,
    week_unix_ms           BIGINT NOT NULL,
    end_user               TEXT NOT NULL,
    requests               BIGINT NOT NULL,
    errors                 BIGINT NOT NULL,
    hits                   BIGINT NOT NULL,
    input_tokens           BIGINT NOT NULL,
    output_tokens          BIGINT NOT NULL,
    cached_input_tokens    BIGINT NOT NULL,
    cache_write_5m_tokens  BIGINT NOT NULL,
    cache_write_1h_tokens  BIGINT NOT NULL,
    reasoning_tokens       BIGINT NOT NULL,
    cost_microusd          BIGINT NOT NULL,
    saved_microusd         BIGINT NOT NULL,
    PRIMARY KEY (org, week_unix_ms, end_user)
);
INSERT INTO usage_user_weeks
SELECT org, at_unix_ms / 604800000 * 604800000, value, SUM(requests), SUM(errors), SUM(hits), SUM(input_tokens),
    SUM(output_tokens), SUM(cached_input_tokens), SUM(cache_write_5m_tokens), SUM(cache_write_1h_tokens),
    SUM(reasoning_tokens), SUM(cost_microusd), SUM(saved_microusd)
FROM usage_by WHERE dimension = 'user' AND step = 'day' GROUP BY 1, 2, 3;
