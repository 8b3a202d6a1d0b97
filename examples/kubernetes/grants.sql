-- Privileges on the outbox public.outbox, for the owner of the tables to run.

-- The migrator creates and upgrades the tables, and owns them. Run this one before outbox-relay migrate, the others after it.
GRANT USAGE, CREATE ON SCHEMA "public" TO "outbox_migrator";

-- A producer inserts events. It needs no other column: seq, attempts and so on are the relay's.
GRANT USAGE ON SCHEMA "public" TO "outbox_producer";
GRANT INSERT (id, topic, aggregate_type, aggregate_id, event_type, data, headers) ON "public"."outbox" TO "outbox_producer";
GRANT EXECUTE ON FUNCTION "public"."outbox_emitted"(), "public"."outbox_emit"(text, text, text, text, text, jsonb, uuid), "public"."outbox_emit"(text, text, text, text, jsonb, jsonb, uuid), "public"."outbox_emit"(text, text, text, text, json, jsonb, uuid), "public"."outbox_emit"(text, text, text, text, bytea, jsonb, uuid) TO "outbox_producer";

-- The relay, and the commands dead, replay, pause, resume, status, find and doctor.
GRANT USAGE ON SCHEMA "public" TO "outbox_relay";
GRANT SELECT, INSERT, UPDATE, DELETE ON "public"."outbox", "public"."outbox_dead", "public"."outbox_relay", "public"."outbox_candidates", "public"."outbox_pause" TO "outbox_relay";
GRANT SELECT, UPDATE, DELETE ON "public"."outbox_published" TO "outbox_relay";
GRANT SELECT, INSERT, DELETE, TRUNCATE ON "public"."outbox_published_0", "public"."outbox_published_1", "public"."outbox_published_2" TO "outbox_relay";
GRANT SELECT ON "public"."outbox_migrations" TO "outbox_relay";
GRANT SELECT ON SEQUENCE "public"."outbox_seq_seq" TO "outbox_relay";
