BEGIN TRANSACTION;
CREATE TABLE batches (number INTEGER PRIMARY KEY AUTOINCREMENT, entry BLOB);
CREATE TABLE buckets (
    key TEXT PRIMARY KEY, state BLOB, expiry INTEGER, handed BLOB, known_at REAL, changed TEXT);
INSERT INTO "buckets" VALUES('outage:{ada}',X'7604000000000000DB730358B66106',1796285648829286,NULL,0.0,'{"amount":10,"period_us":86400000000,"name":"outage","on_failure":"local"}');
CREATE TABLE facts (name TEXT PRIMARY KEY, value REAL);
INSERT INTO "facts" VALUES('ahead us',1.796140031333445e+15);
CREATE INDEX changed ON buckets (key) WHERE changed IS NOT NULL;
DELETE FROM "sqlite_sequence";
COMMIT;
