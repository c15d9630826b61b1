-- What became of answers, for the strategies that learn: good and bad outcomes as they counted at `at_unix_ms`.
CREATE TABLE experience (
    org         TEXT NOT NULL,
    work        TEXT NOT NULL,
    model       TEXT NOT NULL,
    good        DOUBLE PRECISION NOT NULL,
    bad         DOUBLE PRECISION NOT NULL,
    at_unix_ms  BIGINT NOT NULL,
    PRIMARY KEY (org, work, model)
);
