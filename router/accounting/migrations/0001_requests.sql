-- What was asked, answered and paid. Written by one process, from the journals of all others.
-- Times are Unix milliseconds, money is integer micro-USD. JSON is TEXT. Plain enough for SQLite and PostgreSQL.

-- Requests under way: a row comes with the open record and goes with the close.
CREATE TABLE open_requests (
    org                 TEXT NOT NULL,
    request_id          TEXT NOT NULL,
    holder              TEXT NOT NULL,  -- the journal, and so the process, that it came from
    opened_at_unix_ms   BIGINT NOT NULL,
    team                TEXT NOT NULL,
    key_id              TEXT NOT NULL,
    end_user            TEXT NOT NULL,
    model               TEXT NOT NULL,
    reserved_microusd   BIGINT NOT NULL CHECK (reserved_microusd >= 0),
    PRIMARY KEY (org, request_id)
);
CREATE INDEX open_requests_by_holder ON open_requests (holder);

-- Requests that are over. The key is what makes a request close exactly once.
CREATE TABLE requests (
    org                    TEXT NOT NULL,
    request_id             TEXT NOT NULL,
    holder                 TEXT NOT NULL,
    opened_at_unix_ms      BIGINT NOT NULL,
    closed_at_unix_ms      BIGINT NOT NULL,
    team                   TEXT NOT NULL,
    key_id                 TEXT NOT NULL,
    end_user               TEXT NOT NULL,
    door                   TEXT NOT NULL,
    status                 TEXT NOT NULL CHECK (status IN ('ok', 'error', 'cancelled', 'abandoned')),
    error_code             TEXT,
    requested_model        TEXT NOT NULL,
    model                  TEXT,
    provider               TEXT,
    cache_verdict          TEXT NOT NULL,
    cached_from            TEXT,
    cache_similarity       DOUBLE PRECISION,
    finish_reason          TEXT,
    input_tokens           BIGINT NOT NULL,
    output_tokens          BIGINT NOT NULL,
    cached_input_tokens    BIGINT NOT NULL,
    cache_write_5m_tokens  BIGINT NOT NULL,
    cache_write_1h_tokens  BIGINT NOT NULL,
    reasoning_tokens       BIGINT NOT NULL,
    estimated              BOOLEAN NOT NULL,
    cost_microusd          BIGINT NOT NULL CHECK (cost_microusd >= 0),
    saved_microusd         BIGINT NOT NULL,
    price_version          TEXT NOT NULL,
    strategy               TEXT,
    strategy_version       TEXT,
    task                   TEXT,
    eligible               TEXT,  -- JSON list: the models that could have been chosen
    propensity             DOUBLE PRECISION,
    ttft_ms                DOUBLE PRECISION,
    total_ms               DOUBLE PRECISION NOT NULL,
    overhead_ms            DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (org, request_id)
);
CREATE INDEX requests_by_org_and_time ON requests (org, opened_at_unix_ms);

CREATE TABLE attempts (
    org            TEXT NOT NULL,
    request_id     TEXT NOT NULL,
    number         INTEGER NOT NULL,
    model          TEXT NOT NULL,
    backend        TEXT NOT NULL,
    outcome        TEXT NOT NULL,
    queued_ms      DOUBLE PRECISION NOT NULL,
    ttft_ms        DOUBLE PRECISION,
    total_ms       DOUBLE PRECISION NOT NULL,
    cost_microusd  BIGINT NOT NULL,
    PRIMARY KEY (org, request_id, number),
    FOREIGN KEY (org, request_id) REFERENCES requests (org, request_id) ON DELETE CASCADE
);

-- The close record as it was written; apart, so that sums over `requests` read narrow rows.
CREATE TABLE receipts (
    org         TEXT NOT NULL,
    request_id  TEXT NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (org, request_id),
    FOREIGN KEY (org, request_id) REFERENCES requests (org, request_id) ON DELETE CASCADE
);

-- What each process may spend of an org's month, see router/accounting/budget.py.
CREATE TABLE budget_leases (
    org                 TEXT NOT NULL,
    month               TEXT NOT NULL,
    holder              TEXT NOT NULL,
    sequence            BIGINT NOT NULL,
    base_microusd       BIGINT NOT NULL,
    authority_microusd  BIGINT NOT NULL,
    PRIMARY KEY (org, month, holder)
);

-- Records that no table takes: kept for a person to look at, since each may be money.
CREATE TABLE rejected_records (
    holder  TEXT NOT NULL,
    reason  TEXT NOT NULL,
    body    TEXT NOT NULL
);
