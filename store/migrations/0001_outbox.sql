-- The outbox: only what still has to be published. A row exists = it is not settled.
create table {{.Outbox}} (
    seq            bigint generated always as identity (cache 1) primary key,
    id             uuid        not null default gen_random_uuid(),
    topic          text        not null,
    aggregate_type text        not null,
    aggregate_id   text        not null,
    event_type     text        not null,
    data           bytea       not null,
    headers        jsonb,
    created_at     timestamptz not null default clock_timestamp(),
    attempts       integer     not null default 0,
    retry_at       timestamptz,
    last_error     text
) with (
    -- The table is a queue: vacuum it by the number of dead rows, not by a share of its size, and at full
    -- speed. Truncating its tail would take an exclusive lock that producers wait for.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    vacuum_truncate = off
);

comment on table {{.Outbox}} is 'Transactional outbox: events that still have to be published.';
comment on column {{.Outbox}}.seq is 'The order of the events.';
comment on column {{.Outbox}}.id is 'Sent as Nats-Msg-Id: the broker stores an id once.';
comment on column {{.Outbox}}.headers is 'JSON object, name to string or array of strings; null for none.';
comment on column {{.Outbox}}.attempts is 'How often the broker refused this very row.';
comment on column {{.Outbox}}.retry_at is 'When the relay tries the refused row again.';

-- A new leader asks for the rows that wait for another attempt; there are few or none.
create index {{.RetryIndex}} on {{.Outbox}} (retry_at) where retry_at is not null;

-- Rows that were given up, with the seq they keep when they are put back.
create table {{.Dead}} (
    seq            bigint      primary key,
    id             uuid        not null,
    topic          text        not null,
    aggregate_type text        not null,
    aggregate_id   text        not null,
    event_type     text        not null,
    data           bytea       not null,
    headers        jsonb,
    created_at     timestamptz not null,
    attempts       integer     not null,
    last_error     text        not null,
    died_at        timestamptz not null default clock_timestamp()
);

comment on table {{.Dead}} is 'Dead letters of the outbox: outbox-relay dead list|show|requeue|discard.';

-- With on_dead = "hold" every fetch asks which aggregates wait for a decision.
create index {{.DeadIndex}} on {{.Dead}} (aggregate_type, aggregate_id);

-- What was published lately, if the relay is to retain it: from here comes back what the broker loses after it has
-- acknowledged it. The parts are filled in turn, and the oldest is emptied as a whole before it is filled again, so
-- nothing is ever vacuumed here, and no index costs anything.
create table {{.Published}} (
    part           smallint    not null,
    stream         text        not null,
    after          bigint      not null,
    published_at   timestamptz not null default now(),
    seq            bigint      not null,
    id             uuid        not null,
    topic          text        not null,
    aggregate_type text        not null,
    aggregate_id   text        not null,
    event_type     text        not null,
    data           bytea       not null,
    headers        jsonb,
    created_at     timestamptz not null
) partition by list (part);

comment on table {{.Published}} is 'Archive of the outbox: what was published within the relay''s retain.';
comment on column {{.Published}}.after is 'The event''s sequence in the stream is higher than this.';
{{range .Parts}}
create table {{.Name}} partition of {{$.Published}} for values in ({{.Number}}) with (autovacuum_enabled = off);
{{- end}}

-- One row a stream: its current leader, the leader's term number, and how far back one would have to read it. Whatever
-- row of the outbox was ever published has a higher sequence than the checkpoint, of the stream that was created at
-- stream_created; 0 is always true.
create table {{.Relay}} (
    stream            text        primary key,
    outbox            uuid        not null default gen_random_uuid(),
    term              bigint      not null,
    leader            text        not null,
    leader_since      timestamptz not null,
    stream_created    timestamptz,
    checkpoint        bigint      not null default 0,
    checkpoint_before bigint      not null default 0,
    part              smallint    not null default 0,
    part_since        timestamptz not null default clock_timestamp()
);

comment on table {{.Relay}} is 'The outbox relay''s own state: one row a stream.';
comment on column {{.Relay}}.outbox is 'Names this outbox in the stream.';
comment on column {{.Relay}}.term is 'Counts the leaders; the stream refuses those of earlier terms.';
comment on column {{.Relay}}.part is 'The part of the archive that is being filled.';

-- Wakes the relay. It holds the lock exclusively while it sleeps and only then, so a producer that gets the
-- shared lock knows that it is awake, and keeps it from falling asleep before this transaction has ended.
-- An unconditional NOTIFY would serialise the commits of the whole database through one lock.
--
-- It fires before the rows are made, and sees to it that the transaction has its number before it draws a seq: the
-- relay concludes from the one to the other which rows may still appear (floor.go).
--
-- The caller's search_path does not matter: all names are qualified, and no operator is looked up. One of the function's
-- own would have to be put in place and taken back at each call, which takes as long as all the rest.
create function {{.WakeFunction}}() returns trigger
language plpgsql
as $$
begin
    perform pg_catalog.pg_current_xact_id();
    if pg_catalog.pg_try_advisory_xact_lock_shared({{.WakeKey}}) then
        return null;
    end if;
    if not pg_catalog.texteq(coalesce(pg_catalog.current_setting('outbox.notify', true), ''), 'off') then -- Then the relay's poll finds the event.
        perform pg_catalog.pg_notify({{.ChannelLiteral}}, '');
    end if;
    return null;
end
$$;

create trigger {{.WakeTrigger}} before insert on {{.Outbox}}
    for each statement execute function {{.WakeFunction}}();
