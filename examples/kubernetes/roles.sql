-- The roles, for an administrator of the database to run once, before the migration. Give each a password with \password.

CREATE ROLE "outbox_migrator" LOGIN;
CREATE ROLE "outbox_relay" LOGIN;
CREATE ROLE "outbox_producer" LOGIN;

-- The first of the statements in grants.sql. The others need the tables, so they come after the migration.
GRANT USAGE, CREATE ON SCHEMA "public" TO "outbox_migrator";
