-- Whose a response is, as its receipt says it; '' is not known. So that it can be erased when the books know it no more.
ALTER TABLE responses ADD COLUMN end_user TEXT NOT NULL DEFAULT '';
CREATE INDEX responses_by_user ON responses (org, end_user);
