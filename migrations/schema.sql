CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0006');
CREATE TABLE api_key (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	name TEXT NOT NULL, 
	secret_sha256 BLOB NOT NULL, 
	scopes TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	expires_at FLOAT, 
	revoked_at FLOAT, quotas TEXT, 
	CONSTRAINT pk_api_key PRIMARY KEY (id)
);
CREATE TABLE idempotency (
	tenant TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	request_sha256 BLOB NOT NULL, 
	job_id TEXT NOT NULL, 
	created_at FLOAT NOT NULL, 
	CONSTRAINT pk_idempotency PRIMARY KEY (tenant, "key")
)
 WITHOUT ROWID

;
CREATE TABLE job (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	priority INTEGER NOT NULL, 
	run_at FLOAT NOT NULL, 
	queue_until FLOAT, 
	attempt INTEGER NOT NULL, 
	lease_owner TEXT, 
	lease_token BIGINT NOT NULL, 
	cancel_requested BOOLEAN NOT NULL, 
	sequence INTEGER NOT NULL, 
	created_at FLOAT NOT NULL, 
	queued_at FLOAT NOT NULL, 
	started_at FLOAT, 
	finished_at FLOAT, 
	ttl_seconds FLOAT, 
	expires_at FLOAT, 
	request_id TEXT, 
	traceparent TEXT, 
	retried_from TEXT, 
	spec TEXT NOT NULL, 
	result TEXT, memory_bytes BIGINT DEFAULT '0' NOT NULL, millicpus INTEGER DEFAULT '0' NOT NULL, wall_seconds FLOAT DEFAULT '0' NOT NULL, cpu_seconds FLOAT DEFAULT '0' NOT NULL, key_id TEXT, storage_bytes BIGINT DEFAULT '0' NOT NULL, upload_bytes BIGINT DEFAULT '0' NOT NULL, 
	CONSTRAINT pk_job PRIMARY KEY (id)
);
CREATE TABLE job_artifact (
	job_id TEXT NOT NULL, 
	path TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	mode INTEGER NOT NULL, 
	sha256 TEXT NOT NULL, 
	at_byte BIGINT NOT NULL, 
	CONSTRAINT pk_job_artifact PRIMARY KEY (job_id, path), 
	CONSTRAINT fk_job_artifact_job_id_job FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE job_contents (
	job_id TEXT NOT NULL, 
	contents BLOB NOT NULL, 
	CONSTRAINT pk_job_contents PRIMARY KEY (job_id), 
	CONSTRAINT fk_job_contents_job_id_job FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE job_event (
	job_id TEXT NOT NULL, 
	seq INTEGER NOT NULL, 
	at FLOAT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	attempt INTEGER NOT NULL, 
	message TEXT, 
	CONSTRAINT pk_job_event PRIMARY KEY (job_id, seq), 
	CONSTRAINT fk_job_event_job_id_job FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE job_label (
	job_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_job_label PRIMARY KEY (job_id, name), 
	CONSTRAINT fk_job_label_job_id_job FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
CREATE TABLE job_log (
	job_id TEXT NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	stdout_truncated BOOLEAN NOT NULL, 
	stderr_truncated BOOLEAN NOT NULL, 
	path TEXT, 
	entries BLOB, 
	body BLOB, 
	CONSTRAINT pk_job_log PRIMARY KEY (job_id), 
	CONSTRAINT fk_job_log_job_id_job FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE job_stats (
	job_id TEXT NOT NULL, 
	samples BLOB NOT NULL, 
	CONSTRAINT pk_job_stats PRIMARY KEY (job_id), 
	CONSTRAINT fk_job_stats_job_id_job FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE job_stdin (
	job_id TEXT NOT NULL, 
	stdin BLOB NOT NULL, 
	CONSTRAINT pk_job_stdin PRIMARY KEY (job_id), 
	CONSTRAINT fk_job_stdin_job_id_job FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE CASCADE
);
CREATE TABLE job_total (
	name TEXT NOT NULL, 
	value BIGINT NOT NULL, 
	CONSTRAINT pk_job_total PRIMARY KEY (name)
)
 WITHOUT ROWID

;
INSERT INTO "job_total" VALUES('accepted',0);
INSERT INTO "job_total" VALUES('cancelled',0);
INSERT INTO "job_total" VALUES('error',0);
INSERT INTO "job_total" VALUES('expired',0);
INSERT INTO "job_total" VALUES('failed',0);
INSERT INTO "job_total" VALUES('network_limit',0);
INSERT INTO "job_total" VALUES('out_of_memory',0);
INSERT INTO "job_total" VALUES('output_limit',0);
INSERT INTO "job_total" VALUES('succeeded',0);
INSERT INTO "job_total" VALUES('timed_out',0);
CREATE TABLE key_usage_hour (
	key_id TEXT NOT NULL, 
	hour INTEGER NOT NULL, 
	jobs BIGINT NOT NULL, 
	cpu_seconds FLOAT NOT NULL, 
	memory_byte_seconds FLOAT NOT NULL, 
	CONSTRAINT pk_key_usage_hour PRIMARY KEY (key_id, hour)
);
CREATE TABLE sandbox (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	state TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	message TEXT, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	ended_at FLOAT, 
	image_digest TEXT, 
	execs INTEGER NOT NULL, 
	request_id TEXT, 
	"plan" TEXT NOT NULL, 
	usage TEXT, 
	CONSTRAINT pk_sandbox PRIMARY KEY (id)
);
CREATE TABLE tenant (
	name TEXT NOT NULL, 
	quotas TEXT NOT NULL, 
	CONSTRAINT pk_tenant PRIMARY KEY (name)
);
CREATE TABLE tenant_storage (
	tenant TEXT NOT NULL, 
	used_bytes BIGINT NOT NULL, 
	CONSTRAINT pk_tenant_storage PRIMARY KEY (tenant)
);
CREATE TABLE usage_hour (
	tenant TEXT NOT NULL, 
	hour INTEGER NOT NULL, 
	jobs BIGINT NOT NULL, 
	cpu_seconds FLOAT NOT NULL, 
	memory_byte_seconds FLOAT NOT NULL, 
	CONSTRAINT pk_usage_hour PRIMARY KEY (tenant, hour)
);
CREATE TABLE webhook_event (
	id TEXT NOT NULL, 
	tenant TEXT NOT NULL, 
	policy TEXT NOT NULL, 
	window_hour INTEGER NOT NULL, 
	created_at FLOAT NOT NULL, 
	body TEXT NOT NULL, 
	attempts INTEGER NOT NULL, 
	next_at FLOAT, 
	CONSTRAINT pk_webhook_event PRIMARY KEY (id), 
	CONSTRAINT uq_webhook_event_tenant_policy_window_hour UNIQUE (tenant, policy, window_hour)
);
CREATE INDEX ix_job_list ON job (tenant, id);
CREATE INDEX ix_job_claim ON job (priority DESC, id) WHERE state = 'queued' OR state = 'retrying';
CREATE INDEX ix_job_queue_until ON job (queue_until) WHERE state = 'queued' OR state = 'retrying';
CREATE INDEX ix_job_active ON job (state) WHERE state = 'running' OR state = 'starting';
CREATE INDEX ix_job_expire ON job (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX ix_job_label_find ON job_label (name, value, job_id);
CREATE INDEX ix_idempotency_created_at ON idempotency (created_at);
CREATE INDEX ix_sandbox_list ON sandbox (tenant, id);
CREATE INDEX ix_job_key ON job (key_id) WHERE state = 'queued' OR state = 'retrying';
CREATE INDEX ix_job_line ON job (tenant, priority DESC, id, key_id, run_at, state) WHERE state = 'queued' OR state = 'retrying';
CREATE INDEX ix_webhook_event_next_at ON webhook_event (next_at) WHERE next_at IS NOT NULL;
CREATE INDEX ix_webhook_event_settled ON webhook_event (created_at) WHERE next_at IS NULL;
CREATE TRIGGER job_storage_more AFTER INSERT ON job BEGIN
        INSERT INTO tenant_storage (tenant, used_bytes) VALUES (new.tenant, new.storage_bytes)
            ON CONFLICT (tenant) DO UPDATE SET used_bytes = used_bytes + excluded.used_bytes;
    END;
CREATE TRIGGER job_storage_change AFTER UPDATE OF storage_bytes ON job BEGIN
        UPDATE tenant_storage SET used_bytes = used_bytes + new.storage_bytes - old.storage_bytes
            WHERE tenant = new.tenant;
    END;
CREATE TRIGGER job_storage_less AFTER DELETE ON job BEGIN
        UPDATE tenant_storage SET used_bytes = used_bytes - old.storage_bytes
            WHERE tenant = old.tenant;
    END;
