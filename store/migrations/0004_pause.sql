-- Version 4.

-- step: pause
-- Whether a person has paused the outbox: then it has one row, and no relay publishes.
create table {{.Pause}} (
    one       boolean     not null default true check (one),
    reason    text        not null,
    paused_by text        not null,
    paused_at timestamptz not null,
    constraint {{.PauseKey}} primary key (one)
);

comment on table {{.Pause}} is 'Has a row while a person has paused the outbox: see outbox-relay pause.';
comment on column {{.Pause}}.paused_by is 'Who did it, for people.';

-- step: privileges of the pause
-- Who may write what the leader records may write this: a relay that was let in before needs no new GRANT.
do $$
declare
    role text;
begin
    for role in
        select distinct case acl.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(acl.grantee)) end
          from pg_class c, aclexplode(c.relacl) acl
         where c.oid = {{.RelayLiteral}}::regclass and acl.privilege_type = 'INSERT' and acl.grantee <> c.relowner
    loop
        execute 'grant select, insert, update, delete on table ' || {{.PauseLiteral}} || ' to ' || role;
    end loop;
end
$$;
