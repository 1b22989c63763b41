BEGIN TRANSACTION;
CREATE TABLE admin_keys (
	public_id VARCHAR(16) NOT NULL, 
	secret_sha256 VARCHAR(64) NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	scopes JSON NOT NULL, 
	team VARCHAR(64), 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME, 
	revoked_at DATETIME, 
	CONSTRAINT pk_admin_keys PRIMARY KEY (public_id)
);
INSERT INTO "admin_keys" VALUES('cefdfae4bc1d1a77','14c97bd62f75334e7a3b614742bef9f40415b5ced7dddb75afb2b99bd2a72fda','hr','["read"]',NULL,'2026-12-02 08:14:08.819511',NULL,NULL);
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0015');
CREATE TABLE alerts (
	id VARCHAR(32) NOT NULL, 
	at DATETIME NOT NULL, 
	type VARCHAR(32) NOT NULL, 
	identity VARCHAR(300) NOT NULL, 
	user VARCHAR(300), 
	name VARCHAR(256), 
	threshold INTEGER NOT NULL, 
	spent BIGINT NOT NULL, 
	amount BIGINT NOT NULL, 
	since DATETIME NOT NULL, 
	resets_at DATETIME, 
	CONSTRAINT pk_alerts PRIMARY KEY (id)
);
CREATE TABLE api_keys (
	public_id VARCHAR(16) NOT NULL, 
	user VARCHAR(256) NOT NULL, 
	secret_sha256 VARCHAR(64) NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	created_at DATETIME NOT NULL, 
	expires_at DATETIME, 
	revoked_at DATETIME, 
	last_used_on DATE, 
	limits JSON, 
	models JSON, 
	files BOOLEAN, 
	traffic_class VARCHAR(64), 
	people JSON, 
	bound_team VARCHAR(64), 
	CONSTRAINT pk_api_keys PRIMARY KEY (public_id), 
	CONSTRAINT fk_api_keys_user FOREIGN KEY(user) REFERENCES users (name)
);
INSERT INTO "api_keys" VALUES('3ff04e36f278c9a6','alice','6e5e6b0d1090ef202e861de48f70e1142da9f9796014d1496e214d30715be84b','','2026-12-02 08:14:08.818807',NULL,NULL,NULL,'{"key-usd-day": "2 usd/day"}','["gpt-*"]',NULL,NULL,NULL,NULL);
CREATE TABLE calls (
	id VARCHAR(32) NOT NULL, 
	started_at DATETIME NOT NULL, 
	user VARCHAR(300) NOT NULL, 
	team VARCHAR(64), 
	key_id VARCHAR(16), 
	"plan" VARCHAR(64) NOT NULL, 
	endpoint VARCHAR(64) NOT NULL, 
	model VARCHAR(256) NOT NULL, 
	slug VARCHAR(100) NOT NULL, 
	provider VARCHAR(32) NOT NULL, 
	attempts INTEGER DEFAULT '1' NOT NULL, 
	estimated_input_tokens BIGINT NOT NULL, 
	estimated_output_tokens BIGINT NOT NULL, 
	input_tokens BIGINT, 
	cached_input_tokens BIGINT, 
	cache_write_tokens BIGINT, 
	cache_write_1h_tokens BIGINT, 
	output_tokens BIGINT, 
	reasoning_tokens BIGINT, 
	web_searches BIGINT, 
	other_tool_calls VARCHAR(128), 
	tiers VARCHAR(64), 
	estimated BOOLEAN NOT NULL, 
	cost_micro_usd BIGINT NOT NULL, 
	status VARCHAR(32) NOT NULL, 
	client_left BOOLEAN NOT NULL, 
	tags JSON, 
	basis VARCHAR(16), waited_ms INTEGER, first_byte_ms INTEGER, limits_ms FLOAT, total_ms BIGINT, streamed BOOLEAN, limits TEXT, 
	CONSTRAINT pk_calls PRIMARY KEY (id)
);
INSERT INTO "calls" VALUES('1d87dcf6171843e3a8ff454c00e5bd81','2026-11-25 12:00:00.123456','user:alice','research','0123456789abcdef','pro','chat.chat','claude-haiku-4-5-20251001','claude-haiku-4-5','anthropic',1,900,500,1000,600,100,0,200,50,0,NULL,NULL,0,1485,'answered',0,'{"project": "a"}',NULL,NULL,NULL,NULL,NULL,0,'');
INSERT INTO "calls" VALUES('1ddceb7ca89046da9273574f20648883','2026-11-25 12:00:00.123456','user:bob',NULL,'0123456789abcdef','pro','chat.chat','claude-haiku-4-5-20251001','claude-haiku-4-5','anthropic',1,900,500,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1,3400,'unfinished',0,NULL,NULL,NULL,NULL,NULL,NULL,0,NULL);
CREATE TABLE changes (
	id INTEGER NOT NULL, 
	at DOUBLE NOT NULL, 
	until DOUBLE, 
	action VARCHAR(64) NOT NULL, 
	identity TEXT NOT NULL, 
	"limit" TEXT NOT NULL, 
	amount TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	"by" TEXT NOT NULL, 
	CONSTRAINT pk_changes PRIMARY KEY (id)
);
CREATE TABLE stored_answers (
	id VARCHAR(128) NOT NULL, 
	user VARCHAR(300) NOT NULL, 
	provider VARCHAR(32) NOT NULL, 
	"key" VARCHAR(300) NOT NULL, 
	tokens BIGINT, 
	created_at DATETIME NOT NULL, 
	CONSTRAINT pk_stored_answers PRIMARY KEY (id)
);
CREATE TABLE teams (
	name VARCHAR(64) NOT NULL, 
	created_at DATETIME NOT NULL, 
	limits JSON, 
	CONSTRAINT pk_teams PRIMARY KEY (name)
);
INSERT INTO "teams" VALUES('research','2026-12-02 08:14:08.815591','{"team-usd-month": "100 usd/month"}');
CREATE TABLE users (
	name VARCHAR(256) NOT NULL, 
	"plan" VARCHAR(64) NOT NULL, 
	created_at DATETIME NOT NULL, 
	team VARCHAR(64), 
	limits JSON, 
	deactivated_at DATETIME, 
	brought_by VARCHAR(16), 
	CONSTRAINT pk_users PRIMARY KEY (name)
);
INSERT INTO "users" VALUES('alice','pro','2026-12-02 08:14:08.818363','research',NULL,NULL,NULL);
CREATE INDEX ix_users_brought_by ON users (brought_by);
CREATE INDEX ix_api_keys_user ON api_keys (user);
CREATE INDEX ix_calls_user_started_at ON calls (user, started_at, status, input_tokens, output_tokens, cost_micro_usd);
CREATE INDEX ix_calls_started_at ON calls (started_at);
CREATE INDEX ix_stored_answers_created_at ON stored_answers (created_at);
CREATE INDEX ix_alerts_identity_at ON alerts (identity, at);
CREATE INDEX ix_changes_at ON changes (at);
CREATE INDEX ix_calls_team_started_at ON calls (team, started_at, status, input_tokens, output_tokens, cost_micro_usd);
COMMIT;
