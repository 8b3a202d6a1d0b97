-- Version 2. How each step is run on tables in use: step.go.

-- step: state of the relay
-- lock: Relay
-- How far a scan may skip, what the broker took at most, and why nothing is published.
alter table {{.Relay}}
    add column scan_from     bigint not null default 0,
    add column max_payload   bigint,
    add column trouble       text,
    add column trouble_since timestamptz,
    add column trouble_at    timestamptz;

comment on column {{.Relay}}.scan_from is 'A hint: every row with a lower seq has been settled. Who puts a row with a lower seq back lowers it in the same transaction.';
comment on column {{.Relay}}.max_payload is 'The largest payload that the broker took, as a leader last saw it; null if unknown.';
comment on column {{.Relay}}.trouble is 'Why the leader cannot publish, since trouble_since, as it last said at trouble_at; null if it can.';

-- step: numbers of dead letters
-- lock: Dead
-- Dead letters get a key of their own, since two of them may have one seq. An identity column would rewrite the table under
-- its lock, so the numbers come from a default first. The relay of version 1 gives rows up meanwhile, and its role must
-- be able to draw numbers.
create sequence {{.LetterSequence}};
grant usage on sequence {{.LetterSequence}} to public;
alter table {{.Dead}} add column letter bigint;
alter table {{.Dead}} alter column letter set default nextval({{.LetterSequenceLiteral}}::regclass);

-- step: numbers of the dead letters that there are
-- In the order of their seqs.
update {{.Dead}} d set letter = numbered.letter
  from (select sorted.seq, nextval({{.LetterSequenceLiteral}}::regclass) as letter
          from (select seq from {{.Dead}} where letter is null order by seq) sorted) numbered
 where d.seq = numbered.seq and d.letter is null;

-- step: check that each dead letter has a number
-- lock: Dead
alter table {{.Dead}} add constraint outbox_letter_given check (letter is not null) not valid;

-- step: proof of that check
-- With it the column becomes NOT NULL without a scan under an exclusive lock.
alter table {{.Dead}} validate constraint outbox_letter_given;

-- step: index of the dead letters' numbers
-- concurrently: Dead LetterIndex
create unique index{{.Concurrently}} {{.LetterIndex}} on {{.Dead}} (letter);

-- step: index of the dead letters' seqs
-- concurrently: Dead DeadSeqIndex
-- By which people name them.
create index{{.Concurrently}} {{.DeadSeqIndex}} on {{.Dead}} (seq);

-- step: index of the dead letters' aggregates
-- concurrently: Dead DeadHashIndex
-- With on_dead = "hold" every fetch asks which aggregates wait for a decision. A hash takes ids of any length, where a
-- b-tree refuses a row.
create index{{.Concurrently}} {{.DeadHashIndex}} on {{.Dead}} using hash (aggregate_id);

-- step: key of the dead letters
-- lock: Dead
-- The new one takes the old one's place. There is a key at any time, as publications of all tables demand.
alter table {{.Dead}} alter column letter set not null;
alter table {{.Dead}} drop constraint outbox_letter_given;
alter table {{.Dead}} alter column letter drop default;
alter table {{.Dead}} alter column letter add generated always as identity;
select setval(pg_get_serial_sequence({{.DeadLiteral}}, 'letter'), nextval({{.LetterSequenceLiteral}}::regclass), false);
drop sequence {{.LetterSequence}};
alter table {{.Dead}} drop constraint {{.DeadKey}};
alter table {{.Dead}} add constraint {{.DeadKey}} primary key using index {{.LetterIndex}};
drop index {{.Schema}}.{{.DeadIndex}};
comment on column {{.Dead}}.letter is 'Names the dead letter. Seqs are the producers'', and two may be equal.';

-- step: replica identity of the archive
-- lock: Published
-- A publication of all tables makes Postgres refuse updates and deletions in tables without a key or a replica identity.
alter table {{.Published}} replica identity full;
{{- range .Parts}}

-- step: replica identity of part {{.Number}} of the archive
-- lock: Part{{.Number}}
alter table {{.Name}} replica identity full;
{{- end}}

{{- range .Parts}}

-- step: index of part {{.Number}} of the archive
-- concurrently: Part{{.Number}} AfterIndex{{.Number}}
-- Who leads after a crash looks for what was published lately. Rows come nearly in the order of "after", so that the lowest
-- and the highest of each few pages tell enough. That costs an insert a quarter of what a b-tree does.
create index{{$.Concurrently}} {{.Index}} on {{.Name}} using brin (after) with (pages_per_range = 32);
{{- end}}

-- step: function that summarizes the archive
-- New pages have to be summarized, and only an owner may do that. The relay calls it every few seconds.
create function {{.SummarizeFunction}}(part integer) returns void
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    perform brin_summarize_new_values((array[{{range $i, $part := .Parts}}{{if $i}}, {{end}}{{.Literal}}{{end}}]::regclass[])[part + 1]);
end
$$;

comment on function {{.SummarizeFunction}}(integer) is 'Brings the index of a part of the archive up to date.';

-- step: wake-up
-- As before, but PERFORM starts a query of its own, which an initial value does not: it costs a producer as much as all the rest.
create or replace function {{.WakeFunction}}() returns trigger
language plpgsql
as $$
declare
    number pg_catalog.xid8 := pg_catalog.pg_current_xact_id(); -- It is drawn before the seq.
begin
    if pg_catalog.pg_try_advisory_xact_lock_shared({{.WakeKey}}) then
        return null;
    end if;
    if not pg_catalog.texteq(coalesce(pg_catalog.current_setting('outbox.notify', true), ''), 'off') then -- Then the relay's poll finds the event.
        perform pg_catalog.pg_notify({{.ChannelLiteral}}, '');
    end if;
    return null;
end
$$;

-- step: what a row must be like
-- The relay relies on none of them: rows may be older than the checks, and an owner may drop them. A row with a last error
-- may hold anything: it was there before, and comes back.
--
-- Constraints would do the same, but Postgres parses and plans them anew for each statement: ten of them make a transaction
-- with one event a third dearer, one that calls a function by a tenth to a fifth, and this by half of that.
--
-- All names are qualified: the caller's search_path does not matter. What is null is for the columns' own NOT NULL.
create function {{.CheckFunction}}() returns trigger
language plpgsql
as $$
declare
    violated pg_catalog.text := case
        when new.last_error is not null then null
        when new.seq operator(pg_catalog.<=) 0 then 'outbox_seq_positive'
        when new.id operator(pg_catalog.=) '00000000-0000-0000-0000-000000000000'::pg_catalog.uuid then 'outbox_id_not_nil'
        when pg_catalog.texteq(new.topic, '') then 'outbox_topic_not_empty'
        when pg_catalog.texteq(new.aggregate_type, '') then 'outbox_aggregate_type_not_empty'
        when pg_catalog.texteq(new.aggregate_id, '') then 'outbox_aggregate_id_not_empty'
        when pg_catalog.texteq(new.event_type, '') then 'outbox_event_type_not_empty'
        -- Right are null, and an object of strings, numbers, booleans and arrays of these: to lax mode all else is an array of one.
        when pg_catalog.textne(pg_catalog.jsonb_typeof(new.headers), 'null')
             and (pg_catalog.textne(pg_catalog.jsonb_typeof(new.headers), 'object')
                  or pg_catalog.jsonb_path_exists(new.headers, 'lax $.*[*].type() ? (@ != "string" && @ != "number" && @ != "boolean")'::pg_catalog.jsonpath))
            then 'outbox_headers_flat'
        when new.created_at operator(pg_catalog.<) '0001-01-01 00:00:00+00'::pg_catalog.timestamptz
             or new.created_at operator(pg_catalog.>=) '10000-01-01 00:00:00+00'::pg_catalog.timestamptz then 'outbox_created_at_in_range'
        when new.attempts operator(pg_catalog.<) 0 or new.attempts operator(pg_catalog.>) 1000000 then 'outbox_attempts_in_range'
        when not pg_catalog.isfinite(new.retry_at) then 'outbox_retry_at_finite'
    end;
begin
    if violated is null then
        return new;
    end if;
    raise exception using errcode = 'check_violation', schema = tg_table_schema, table = tg_table_name, constraint = violated,
        message = pg_catalog.format('new row for relation %s violates check constraint %s', {{.OutboxLiteral}}, violated),
        detail = case violated
            when 'outbox_seq_positive' then 'seq must be above 0: leave it to the table.'
            when 'outbox_id_not_nil' then 'id must not be the nil UUID: leave it to the table, or give each event its own.'
            when 'outbox_headers_flat' then 'headers must be a JSON object whose values are strings, numbers, booleans or arrays of these.'
            when 'outbox_created_at_in_range' then 'created_at must be in the years 1 to 9999: leave it to the table.'
            when 'outbox_attempts_in_range' then 'attempts must be from 0 to 1000000: it is the relay''s.'
            when 'outbox_retry_at_finite' then 'retry_at must be finite: it is the relay''s.'
            else 'topic, aggregate_type, aggregate_id and event_type must not be empty.'
        end;
end
$$;

comment on function {{.CheckFunction}}() is 'Refuses rows that no relay could make sense of.';

-- step: checks of the outbox
-- lock: Outbox
create trigger {{.CheckTrigger}} before insert on {{.Outbox}}
    for each row execute function {{.CheckFunction}}();

alter table {{.Outbox}} add column given_up_at timestamptz;

comment on column {{.Outbox}}.given_up_at is 'When the row was given up and could not be moved to the dead letters. It is not fetched any more.';

-- step: index of rows that were given up
-- concurrently: Outbox GivenUpIndex
-- There are few or none.
create index{{.Concurrently}} {{.GivenUpIndex}} on {{.Outbox}} (given_up_at) where given_up_at is not null;

-- step: functions for producers
-- The payload is text, JSON or bytes. Text and JSON are stored in UTF-8, whatever the database's encoding. (A plain literal
-- for a bytea column is read in the escape format: '{"a":"C:\\new"}' loses a backslash, and '{"a":"\n"}' is an error. A
-- literal for this function is text.)
--
-- The caller's search_path does not matter: all names are qualified, and no operator is looked up. See the wake function.
create function {{.EmittedFunction}}() returns bigint
language plpgsql
security definer -- currval asks for a privilege on the sequence that producers need not have.
as $$
begin
    return pg_catalog.currval(pg_catalog.pg_get_serial_sequence({{.OutboxLiteral}}, 'seq')::pg_catalog.regclass);
end
$$;

comment on function {{.EmittedFunction}}() is 'The seq that this session has drawn last.';
{{range .Payloads}}
create function {{$.EmitFunction}}(topic text, aggregate_type text, aggregate_id text, event_type text, data {{.Type}}, headers jsonb default null, id uuid default null) returns bigint
language plpgsql
as $$
begin
    insert into {{$.Outbox}} (id, topic, aggregate_type, aggregate_id, event_type, data, headers)
    values (coalesce($7, pg_catalog.gen_random_uuid()), $1, $2, $3, $4, {{.Bytes}}, $6);
    if found then
        return {{$.EmittedFunction}}();
    end if;
    return null; -- A trigger has kept the row out.
end
$$;

comment on function {{$.EmitFunction}}(text, text, text, text, {{.Type}}, jsonb, uuid) is 'Inserts an event into the outbox and returns its seq; call it in the transaction whose change the event tells.';
{{end}}
-- step: privileges
-- Who may read the outbox may read its sequence, and who may insert may call the functions: a relay and producers that
-- were let in before need no new GRANT.
do $$
declare
    role text;
    emit regprocedure;
begin
    for role in
        select distinct case acl.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(acl.grantee)) end
          from pg_class c, aclexplode(c.relacl) acl
         where c.oid = {{.OutboxLiteral}}::regclass and acl.privilege_type = 'SELECT' and acl.grantee <> c.relowner
    loop
        execute 'grant select on sequence ' || pg_get_serial_sequence({{.OutboxLiteral}}, 'seq') || ' to ' || role;
    end loop;
    for role in
        select distinct case acl.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(acl.grantee)) end
          from pg_class c,
               lateral (select * from aclexplode(c.relacl)
                        union all select a.* from pg_attribute, aclexplode(attacl) a where attrelid = c.oid) acl
         where c.oid = {{.OutboxLiteral}}::regclass and acl.privilege_type = 'INSERT' and acl.grantee <> c.relowner
    loop
        for emit in
            select p.oid from pg_proc p
             where p.pronamespace = (select relnamespace from pg_class where oid = {{.OutboxLiteral}}::regclass)
               and p.proname in ({{.EmitNameLiteral}}, {{.EmittedNameLiteral}})
        loop
            execute 'grant execute on function ' || emit || ' to ' || role;
        end loop;
    end loop;
end
$$;
