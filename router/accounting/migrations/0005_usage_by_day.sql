-- The sums by day without the key too: a long time is then a few thousand rows.
CREATE TABLE usage_plain_days (
    org                    TEXT NOT NULL,
    day_unix_ms           BIGINT NOT NULL,
    team                   TEXT NOT NULL,
    model                  TEXT NOT NULL,
    provider               TEXT NOT NULL,
    task                   TEXT NOT NULL,
    strategy               TEXT NOT NULL,
    status                 TEXT NOT NULL,
    cache_verdict          TEXT NOT NULL,
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
    PRIMARY KEY (org, day_unix_ms, team, model, provider, task, strategy, status, cache_verdict)
);
INSERT INTO usage_plain_days
SELECT org, opened_at_unix_ms / 86400000 * 86400000, team, COALESCE(model, ''), COALESCE(provider, ''),
    COALESCE(task, ''), COALESCE(strategy, ''), status, cache_verdict,
    COUNT(*),
    SUM(CASE WHEN status IN ('error', 'abandoned') THEN 1 ELSE 0 END),
    SUM(CASE WHEN cache_verdict IN ('hit-exact', 'hit-semantic') THEN 1 ELSE 0 END),
    SUM(CASE WHEN cache_verdict IN ('hit-exact', 'hit-semantic') THEN 0 ELSE input_tokens END),
    SUM(CASE WHEN cache_verdict IN ('hit-exact', 'hit-semantic') THEN 0 ELSE output_tokens END),
    SUM(CASE WHEN cache_verdict IN ('hit-exact', 'hit-semantic') THEN 0 ELSE cached_input_tokens END),
    SUM(CASE WHEN cache_verdict IN ('hit-exact', 'hit-semantic') THEN 0 ELSE cache_write_5m_tokens END),
    SUM(CASE WHEN cache_verdict IN ('hit-exact', 'hit-semantic') THEN 0 ELSE cache_write_1h_tokens END),
    SUM(CASE WHEN cache_verdict IN ('hit-exact', 'hit-semantic') THEN 0 ELSE reasoning_tokens END),
    SUM(cost_microusd), SUM(saved_microusd)
FROM requests GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9;
