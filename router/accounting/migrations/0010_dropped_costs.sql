-- What requests cost that were dropped since they had had their time: budgets over all time still count them. `model` is ''
-- for whole requests, else of the tries at that model.
CREATE TABLE dropped_costs (
    org       TEXT NOT NULL,
    holder    TEXT NOT NULL,
    team      TEXT NOT NULL,
    key_id    TEXT NOT NULL,
    model     TEXT NOT NULL,
    microusd  BIGINT NOT NULL,
    PRIMARY KEY (org, holder, team, key_id, model)
);
CREATE INDEX requests_by_user ON requests (org, end_user);
