-- What became of each request that took part in an experiment; a shadow's are of the operator's organisation.
CREATE TABLE experiment_outcomes (
    org            TEXT NOT NULL,
    request_id     TEXT NOT NULL,
    experiment     TEXT NOT NULL,
    version        TEXT NOT NULL,  -- names the arms as they were defined
    arm            TEXT NOT NULL,
    unit           TEXT NOT NULL,  -- a hash of the tenant, user or conversation whose arm it is
    cost_microusd  BIGINT NOT NULL,
    latency_ms     DOUBLE PRECISION NOT NULL,
    escalated      INTEGER NOT NULL,
    failed         INTEGER NOT NULL,
    PRIMARY KEY (org, request_id),
    FOREIGN KEY (org, request_id) REFERENCES requests (org, request_id) ON DELETE CASCADE
);
CREATE INDEX experiment_outcomes_by_arm ON experiment_outcomes (experiment, version, arm, unit);
