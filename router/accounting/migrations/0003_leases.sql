-- What each process may use of a limit, see router/accounting/budget.py. Instead of `budget_leases`, which knew only the
-- monthly budgets of organisations. Whatever the limit is not narrowed to (team, key_id, model) is empty.
CREATE TABLE leases (
    org        TEXT NOT NULL,
    unit       TEXT NOT NULL,
    span       TEXT NOT NULL,
    team       TEXT NOT NULL,
    key_id     TEXT NOT NULL,
    model      TEXT NOT NULL,
    period     TEXT NOT NULL,
    holder     TEXT NOT NULL,
    sequence   BIGINT NOT NULL,
    base       BIGINT NOT NULL,
    authority  BIGINT NOT NULL,
    PRIMARY KEY (org, unit, span, team, key_id, model, period, holder)
);
INSERT INTO leases
SELECT org, 'microusd', 'month', '', '', '', month, holder, sequence, base_microusd, authority_microusd FROM budget_leases;
DROP TABLE budget_leases;
CREATE INDEX leases_by_holder ON leases (holder);
